"""Who calls: bearer tokens (JWT) checked against a shared secret or the keys of a JWKS URL.

Algorithms are pinned by how the service is configured, never by the token: HS256 with a secret, RS256 and ES256 with
published keys, never both families. Owns the check; never decides what a caller may do with a resource.
"""

import asyncio
import base64
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import jwt
import structlog

from services.api.strict_json import read_strictly

MAX_TOKEN_CHARACTERS = 8192
MAX_CLAIM_CHARACTERS = 256
KEYS_FRESH_S = 300.0
"""How long published keys are used before they are fetched again."""
REFETCH_PAUSE_S = 10.0
"""An unknown key id, which anyone can invent, causes at most one fetch in this time."""
FETCH_TIMEOUT_S = 5.0

COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""RFC 7515, 3.1: three parts in base64url without padding."""
SCOPE = re.compile(r"[\x20-\x7e]*")
"""RFC 6749, 3.3: words of visible ASCII with spaces between."""
TYPES = ("jwt", "at+jwt", "application/at+jwt")
"""What `typ` may say if it is there; another kind of token of the same issuer is none for us (RFC 8725, 3.11)."""
LATEST_TIME = 253_402_300_799
"""The last second of the year 9999."""

REQUIRED_CLAIMS = ["exp", "iat", "sub", "aud", "iss"]
TIMES = ("exp", "iat", "nbf")
FAMILY_OF_ALGORITHM = {"RS256": "RSA", "ES256": "EC"}

log = structlog.get_logger()


class TokenRefused(Exception):
    """The token is not valid; the text says why, in words that help its owner and nobody else."""


class KeysUnavailable(Exception):
    """The issuer's keys could not be fetched and none are at hand: no token can be judged."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a valid token speaks for."""

    tenant_id: str
    actor: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key, and the algorithms that it may be used with."""

    key: Any
    algorithms: list[str]


class Keys(Protocol):
    """Where the key for a token comes from."""

    async def key_for(self, header: dict[str, Any]) -> VerificationKey:
        """Find the key for a token's header; raises TokenRefused or KeysUnavailable."""


@dataclass(frozen=True, slots=True)
class SharedSecret:
    """One secret for HS256, for development."""

    secret: str

    async def key_for(self, header: dict[str, Any]) -> VerificationKey:
        """Return the secret, whatever the header says."""
        return VerificationKey(self.secret, ["HS256"])


class PublishedKeys:
    """The keys behind a JWKS URL; fetched without blocking, again when they are old or a key id is unknown."""

    def __init__(self, url: str, client: httpx.AsyncClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._client = client
        self._clock = clock
        self._keys: dict[str, VerificationKey] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetching = asyncio.Lock()

    async def key_for(self, header: dict[str, Any]) -> VerificationKey:
        """Find the key that the token names by `kid`."""
        name = header.get("kid")
        if not isinstance(name, str):
            raise TokenRefused("the token names no key (kid)")
        if name not in self._keys or self._stale():
            await self._refresh(name)
        if name in self._keys:
            return self._keys[name]
        if self._fetched_at is None:
            raise KeysUnavailable("the issuer's keys cannot be fetched")
        raise TokenRefused("the token names a key that its issuer does not publish")

    def _stale(self) -> bool:
        return self._fetched_at is None or self._clock() - self._fetched_at > KEYS_FRESH_S

    async def _refresh(self, name: str) -> None:
        async with self._fetching:
            if name in self._keys and not self._stale():
                return  # another request was faster
            if self._tried_at is not None and self._clock() - self._tried_at < REFETCH_PAUSE_S:
                return
            self._tried_at = self._clock()
            try:
                response = await self._client.get(self._url, timeout=FETCH_TIMEOUT_S)
                self._keys = _usable_keys(response.raise_for_status().json())
                self._fetched_at = self._clock()
            except (httpx.HTTPError, ValueError, jwt.PyJWTError) as error:  # keys that are at hand stay in use
                log.warning("keys_not_fetched", url=self._url, error=repr(error))


def _usable_keys(document: Any) -> dict[str, VerificationKey]:
    if not isinstance(document, dict):
        raise ValueError("a JWKS is an object (RFC 7517, 5)")
    keys: dict[str, VerificationKey] = {}
    for key in jwt.PyJWKSet.from_dict(document).keys:
        algorithms = [name for name, family in FAMILY_OF_ALGORITHM.items() if family == key.key_type]
        if key.key_id and key.public_key_use in (None, "sig") and key.algorithm_name in algorithms:
            keys[key.key_id] = VerificationKey(key.key, [key.algorithm_name])
    return keys


@dataclass(frozen=True, slots=True)
class TokenVerifier:
    """Checks tokens of one issuer for one audience."""

    keys: Keys
    issuer: str
    audience: str
    leeway_s: int = 0

    async def verify(self, token: str) -> Caller:
        """Check a token and tell who calls.

        Raises:
            TokenRefused: the token is not valid.
            KeysUnavailable: it cannot be judged right now.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise TokenRefused("the token is too long")
        if not COMPACT.fullmatch(token):
            raise TokenRefused("the token is not of three parts in base64url")
        try:
            _require_clarity(token)
            found = await self.keys.key_for(jwt.get_unverified_header(token))
            claims = jwt.decode(
                token,
                found.key,
                algorithms=found.algorithms,
                issuer=self.issuer,
                audience=self.audience,
                leeway=self.leeway_s,
                options={"require": REQUIRED_CLAIMS},
            )
        except jwt.ExpiredSignatureError as error:
            raise TokenRefused("the token has expired") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise TokenRefused("the token is not valid for this service") from error
        return caller_of(claims)


def _require_clarity(token: str) -> None:
    """Refuse what two readers could understand differently, before a key is even looked for.

    Raises:
        ValueError: header or claims are no strict JSON, or the token is of another type.
    """
    header, claims = (read_strictly(base64.urlsafe_b64decode(part + "===")) for part in token.split(".")[:2])
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise ValueError("header and claims are objects")
    if "typ" in header and str(header["typ"]).lower() not in TYPES:
        raise ValueError("another type of token")


def caller_of(claims: dict[str, Any]) -> Caller:
    """Read the caller from checked claims.

    Raises:
        TokenRefused: `tenant` or `sub` is missing or unusable, or a time is none.
    """
    for name in TIMES:
        if name in claims and not _is_time(claims[name]):
            raise TokenRefused(f"the token's claim {name} must be a number of seconds")
    tenant, subject, scope = claims.get("tenant"), claims.get("sub"), claims.get("scope", "")
    for name, value in (("tenant", tenant), ("sub", subject)):
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_CLAIM_CHARACTERS or not value.isprintable():
            raise TokenRefused(f"the token's claim {name} must be a printable text")
    if not isinstance(scope, str) or not SCOPE.fullmatch(scope):
        raise TokenRefused("the token's claim scope must be a text of words with spaces between")
    return Caller(str(tenant), str(subject), frozenset(scope.split()))


def _is_time(value: object) -> bool:
    """Whether a claim is a NumericDate (RFC 7519, 2): a JSON number, which no text, boolean or infinity is."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LATEST_TIME
