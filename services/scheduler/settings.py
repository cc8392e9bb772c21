"""What the scheduler must be told, read once from the environment (`RUNYARD_…`) in `main`."""

from pydantic import Field

from services.backbone.settings import DatabaseSettings


class SchedulerSettings(DatabaseSettings):
    """Settings of the scheduler. `heartbeat_s` is the interval of the runners, and of the leader's own beacon."""

    consumer_group: str = "scheduler"
    heartbeat_s: float = Field(default=5.0, gt=0)
    lease_s: float = Field(default=60.0, gt=0)
    max_attempts: int = Field(default=3, ge=1)
    tick_s: float = Field(default=1.0, gt=0)
    load_interval_s: float = Field(default=10.0, gt=0)
