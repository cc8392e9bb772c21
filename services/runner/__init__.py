"""The service that runs scripts in sandboxed containers on one host and says how they ended."""
