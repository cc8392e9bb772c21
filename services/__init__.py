"""The services of Runyard, each a package that knows no other one; see DESIGN in docs/."""
