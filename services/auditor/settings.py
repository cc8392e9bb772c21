"""What the auditor must be told: what every service with a database is told."""

from services.backbone.settings import DatabaseSettings


class AuditorSettings(DatabaseSettings):
    """Settings of the auditor."""
