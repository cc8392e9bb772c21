"""The images of compose.yaml, for sites that no registry can be reached from."""
