"""`runyard token`: bearer tokens for a system whose secret lies in a data folder.

Owns how a token is written (HS256, the claims that the api checks). Prints nothing but the token.
"""

import re
import time
from dataclasses import dataclass
from typing import Annotated

import jwt
import typer

from services.cli.data_dir import DataDir
from services.cli.errors import UsageRefused
from services.cli.options import DataDirOption

ISSUER = AUDIENCE = "runyard"
SCOPES = ("models:read", "models:write", "training:run", "audit:read")
TENANT = "local"
SUBJECT = "me"
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Claims:
    """Who a token speaks for, what it may do, and for how long."""

    tenant: str = TENANT
    subject: str = SUBJECT
    scopes: tuple[str, ...] = SCOPES
    expires_in_s: int = 12 * 3600


def write_token(secret: str, claims: Claims, now_s: int) -> str:
    """Sign a token that is valid from now on."""
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": claims.subject,
        "tenant": claims.tenant,
        "scope": " ".join(claims.scopes),
        "iat": now_s,
        "exp": now_s + claims.expires_in_s,
    }
    return jwt.encode(payload, secret, algorithm="HS256")


def mint(data_dir: DataDir, claims: Claims | None = None) -> str:
    """Sign a token with a data folder's secret."""
    return write_token(data_dir.secrets().jwt_secret, claims or Claims(), int(time.time()))


def duration_s(text: str) -> int:
    """Read a duration: a number with s, m, h or d behind it, or seconds.

    >>> duration_s("90m")
    5400

    Raises:
        UsageRefused: it is something else.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd]?)", text)
    if found is None:
        raise UsageRefused(f"--expires-in {text!r} is no duration: write 90s, 30m, 12h or 7d")
    return int(found[1]) * UNITS_S[found[2] or "s"]


def token(
    data_dir: DataDirOption,
    tenant: Annotated[str, typer.Option(help="Whose resources it opens.")] = TENANT,
    subject: Annotated[str, typer.Option(help="Who acts; the audit log names it.")] = SUBJECT,
    scopes: Annotated[str, typer.Option(help="Words with spaces or commas between.")] = " ".join(SCOPES),
    expires_in: Annotated[str, typer.Option(help="How long it is valid: 90s, 30m, 12h, 7d.")] = "12h",
) -> None:
    """Print a bearer token for the system of a data folder, and nothing else.

    [bold]Examples[/bold]

      export RUNYARD_TOKEN=$(runyard token)

      runyard token --subject ci --scopes models:read --expires-in 30m
    """
    wanted = tuple(re.split(r"[\s,]+", scopes.strip()))
    unknown = [word for word in wanted if word not in SCOPES]
    if unknown:
        raise UsageRefused(f"--scopes: {', '.join(unknown)} is none of {', '.join(SCOPES)}")
    typer.echo(mint(DataDir.at(data_dir), Claims(tenant, subject, wanted, duration_s(expires_in))))
