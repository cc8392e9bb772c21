"""What the auditor must be told, besides what every service with a database is told."""

from pydantic import Field

from services.backbone.settings import DatabaseSettings


class AuditorSettings(DatabaseSettings):
    """Settings of the auditor."""

    broker_check_s: float = Field(default=10, gt=0, description="How often it asks whether it is still the same broker")
