"""The service that keeps the history: the event store, its projections and the audit chain."""
