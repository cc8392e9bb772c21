"""The contract: event models, ids, topics and the lifecycle of a run. Pure: pydantic and the standard library."""
