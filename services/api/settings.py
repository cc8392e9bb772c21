"""What the api must be told, read once from the environment and handed on as values. Secrets have no defaults."""

from typing import Self

from pydantic import Field, SecretStr, model_validator

from services.backbone.settings import DatabaseSettings

MIB = 1 << 20
GIB = 1 << 30
SHORTEST_SECRET_BYTES = 32  # RFC 7518, 3.2: a key for HS256 has at least 256 bits


class ApiSettings(DatabaseSettings):
    """Settings of the api. Tokens are checked with a shared secret (development) or by a JWKS URL, never both."""

    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8000, ge=0, le=65535)
    objects_url: str
    sealing_key: SecretStr
    sealing_keys_retired: SecretStr = SecretStr("")
    jwt_secret: SecretStr | None = None
    jwt_jwks_url: str | None = None
    jwt_issuer: str = "runyard"
    jwt_audience: str = "runyard"
    jwt_leeway_s: int = Field(default=0, ge=0, le=120)
    max_json_bytes: int = Field(default=MIB, ge=1024)
    max_asset_bytes: int = Field(default=100 * 1_000_000, ge=1)
    max_dataset_bytes: int = Field(default=10 * GIB, ge=1)
    client_patience_s: float = Field(default=30, gt=0)
    slowest_body_bytes_per_s: int = Field(default=8192, ge=1)
    sweep_every_s: float = Field(default=600, gt=0)
    follow_poll_s: float = Field(default=0.3, gt=0)

    @model_validator(mode="after")
    def _one_way_to_check_tokens(self) -> Self:
        if (self.jwt_secret is None) == (self.jwt_jwks_url is None):
            raise ValueError("set exactly one of RUNYARD_JWT_SECRET and RUNYARD_JWT_JWKS_URL")
        if self.jwt_secret and len(self.jwt_secret.get_secret_value().encode()) < SHORTEST_SECRET_BYTES:
            raise ValueError(f"RUNYARD_JWT_SECRET needs at least {SHORTEST_SECRET_BYTES} bytes")
        return self
