"""What every service must be told, read once from the environment (`RUNYARD_…`) and handed on as values.

Secrets have no defaults. A service adds its own fields in its own `settings.py`.
"""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Settings that all services share."""

    model_config = SettingsConfigDict(env_prefix="RUNYARD_", frozen=True, extra="ignore", env_ignore_empty=True)

    log_level: str = "info"
    instance_id: str | None = Field(
        default=None,
        description="a name that this instance keeps over restarts: its partitions wait for it instead of moving",
    )
    health_host: str = "127.0.0.1"
    health_port: int = Field(default=0, ge=0, le=65535, description="0 picks a free port")
    kafka_bootstrap_servers: str = "127.0.0.1:9092"
    kafka_security_protocol: str = "PLAINTEXT"
    kafka_sasl_mechanism: str = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_ca_file: str | None = None
    poison_limit: int = Field(default=10, ge=1, description="of 100 messages; a consumer stops at it, above 100 never")
    stuck_after_s: float = Field(default=120.0, gt=0, description="of standing still, after which the process ends")
    topic_replication: int = Field(default=1, ge=1)
    broker_check_s: float = Field(default=5, gt=0, description="how often it asks whether it is still the same cluster")


class DatabaseSettings(ServiceSettings):
    """Settings of a service that owns a Postgres schema."""

    postgres_url: SecretStr
    postgres_pool_size: int = Field(default=10, ge=2)
