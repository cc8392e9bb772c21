"""The service that decides which runner gets which run, and when."""
