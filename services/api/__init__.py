"""The service that clients talk to: registry of models and data, admission of runs, versions."""
