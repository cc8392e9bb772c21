"""Protects the door: which tokens are believed, by which key and algorithm, and what is refused whoever signed it."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from services.api.tokens import (
    KEYS_FRESH_S,
    REFETCH_PAUSE_S,
    Caller,
    KeysUnavailable,
    PublishedKeys,
    SharedSecret,
    TokenRefused,
    TokenVerifier,
)

SECRET = "a secret of at least thirty-two bytes"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_FOREIGN = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
BY_SECRET = TokenVerifier(SharedSecret(SECRET), "runyard", "runyard")


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    told: dict[str, Any] = {
        "iss": "runyard",
        "aud": "runyard",
        "sub": "ada",
        "tenant": "acme",
        "scope": "models:read training:run",
        "iat": now,
        "exp": now + 600,
    }
    return {name: value for name, value in (told | changes).items() if value is not None}


def signed(secret: str = SECRET, **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret, algorithm="HS256")


async def refusal(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(TokenRefused) as caught:
        await verifier.verify(token)
    return str(caught.value)


async def test_a_good_token_tells_tenant_actor_and_scopes() -> None:
    caller = await BY_SECRET.verify(signed())
    assert caller == Caller("acme", "ada", frozenset({"models:read", "training:run"}))


async def test_a_token_without_scope_may_do_nothing() -> None:
    assert (await BY_SECRET.verify(signed(scope=None))).scopes == frozenset()


async def test_an_audience_among_several_is_enough() -> None:
    assert (await BY_SECRET.verify(signed(aud=["other", "runyard"]))).actor == "ada"


async def test_an_expired_token_is_refused_and_says_so() -> None:
    assert "expired" in await refusal(BY_SECRET, signed(exp=int(time.time()) - 1))


async def test_leeway_forgives_a_slow_clock_and_no_more() -> None:
    patient = TokenVerifier(SharedSecret(SECRET), "runyard", "runyard", leeway_s=60)
    assert await patient.verify(signed(exp=int(time.time()) - 30))
    await refusal(patient, signed(exp=int(time.time()) - 90))


@pytest.mark.parametrize("claim", ["exp", "iat", "sub", "aud", "iss", "tenant"])
async def test_every_claim_is_required(claim: str) -> None:
    missing: dict[str, Any] = {claim: None}
    await refusal(BY_SECRET, signed(**missing))


@pytest.mark.parametrize(
    "changes",
    [
        *({"aud": "other"}, {"aud": ["other"]}, {"aud": "runyard2"}, {"iss": "other"}, {"iss": ""}, {"tenant": 7}),
        *({"tenant": ""}, {"tenant": "x" * 257}, {"tenant": "a\nb"}, {"sub": ""}, {"sub": "a\0b"}, {"sub": "x" * 257}),
        *({"scope": ["models:read"]}, {"scope": 1}, {"nbf": 2**40}, {"iat": 2**40}, {"exp": "soon"}),
    ],
    ids=str,
)
async def test_claims_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    await refusal(BY_SECRET, signed(**changes))


async def test_a_foreign_secret_is_refused() -> None:
    await refusal(BY_SECRET, signed("another secret of thirty-two bytes.."))


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
async def test_another_algorithm_with_the_right_secret_is_refused(algorithm: str) -> None:
    await refusal(BY_SECRET, jwt.encode(claims(), SECRET * 2, algorithm=algorithm))


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


@pytest.mark.parametrize("name", ["none", "None", "NONE", ""])
async def test_an_unsigned_token_is_refused(name: str) -> None:
    head, body = (encoded(json.dumps(part).encode()) for part in ({"alg": name, "typ": "JWT"}, claims()))
    await refusal(BY_SECRET, f"{head}.{body}.")


async def test_a_changed_body_is_refused() -> None:
    head, _, signature = signed().split(".")
    await refusal(BY_SECRET, f"{head}.{encoded(json.dumps(claims(tenant='rival')).encode())}.{signature}")


@pytest.mark.parametrize("token", ["x", "..", "a.b.c", "a.b.c.d", "é.é.é", encoded(b"[]") + ".e30.e30", "\ud800"])
async def test_garbage_is_no_token(token: str) -> None:
    await refusal(BY_SECRET, token)


async def test_a_token_of_more_than_8192_characters_is_not_even_read() -> None:
    assert "too long" in await refusal(BY_SECRET, signed(more="x" * 8192))


@dataclass
class Issuer:
    """A JWKS endpoint: what it publishes, how often it was asked, and what the time is."""

    keys: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    asked: int = 0
    now: float = 1000.0

    def answer(self, _: httpx.Request) -> httpx.Response:
        self.asked += 1
        return httpx.Response(self.status, json={"keys": self.keys})


def published(key: Any, name: str, **members: str) -> dict[str, Any]:
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig", **members}


@pytest.fixture
def issuer() -> Issuer:
    return Issuer([published(RSA_KEY, "r1", alg="RS256"), published(EC_KEY, "e1", alg="ES256")])


@pytest.fixture
async def verifier(issuer: Issuer) -> AsyncIterator[TokenVerifier]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(issuer.answer)) as client:
        keys = PublishedKeys("https://issuer.test/jwks.json", client, lambda: issuer.now)
        yield TokenVerifier(keys, "runyard", "runyard")


def issued(key: Any, name: str | None, algorithm: str, **changes: Any) -> str:
    headers = {} if name is None else {"kid": name}
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


async def test_rs256_and_es256_are_believed_by_published_keys(verifier: TokenVerifier, issuer: Issuer) -> None:
    assert (await verifier.verify(issued(RSA_KEY, "r1", "RS256"))).actor == "ada"
    assert (await verifier.verify(issued(EC_KEY, "e1", "ES256"))).actor == "ada"
    assert issuer.asked == 1


async def test_published_keys_check_claims_as_the_secret_does(verifier: TokenVerifier) -> None:
    assert "expired" in await refusal(verifier, issued(RSA_KEY, "r1", "RS256", exp=int(time.time()) - 1))
    await refusal(verifier, issued(RSA_KEY, "r1", "RS256", aud="other"))
    await refusal(verifier, issued(EC_KEY, "e1", "ES256", iss="other"))
    await refusal(verifier, issued(EC_KEY, "e1", "ES256", tenant=None))


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
async def test_a_published_key_serves_its_own_algorithm_alone(verifier: TokenVerifier, algorithm: str) -> None:
    await refusal(verifier, issued(RSA_KEY, "r1", algorithm))


async def test_a_key_under_anothers_name_is_refused(verifier: TokenVerifier) -> None:
    await refusal(verifier, issued(RSA_FOREIGN, "r1", "RS256"))
    await refusal(verifier, issued(RSA_KEY, "e1", "RS256"))
    await refusal(verifier, issued(EC_KEY, "r1", "ES256"))


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
async def test_hs256_with_the_public_key_as_its_secret_is_refused(verifier: TokenVerifier, encoding: Encoding) -> None:
    public = RSA_KEY.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    head = encoded(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "r1"}).encode())
    text = f"{head}.{encoded(json.dumps(claims()).encode())}"
    forged = f"{text}.{encoded(hmac.digest(public, text.encode(), hashlib.sha256))}"
    await refusal(verifier, forged)


async def test_a_shared_secret_is_no_key_of_a_jwks_issuer(verifier: TokenVerifier) -> None:
    await refusal(verifier, jwt.encode(claims(), SECRET, algorithm="HS256", headers={"kid": "r1"}))


async def test_a_published_symmetric_key_is_not_used(verifier: TokenVerifier, issuer: Issuer) -> None:
    issuer.keys.append({"kty": "oct", "kid": "s1", "alg": "HS256", "k": encoded(SECRET.encode())})
    await refusal(verifier, jwt.encode(claims(), SECRET, algorithm="HS256", headers={"kid": "s1"}))
    assert await verifier.verify(issued(RSA_KEY, "r1", "RS256"))


async def test_a_key_for_encryption_is_not_used(verifier: TokenVerifier, issuer: Issuer) -> None:
    issuer.keys[:] = [published(RSA_KEY, "r1", use="enc", alg="RS256"), published(EC_KEY, "e1", alg="ES256")]
    await refusal(verifier, issued(RSA_KEY, "r1", "RS256"))


@pytest.mark.parametrize("name", [None, "", "unknown", "R1"])
async def test_a_token_that_names_no_published_key_is_refused(verifier: TokenVerifier, name: str | None) -> None:
    await refusal(verifier, issued(RSA_KEY, name, "RS256"))


async def test_after_a_rotation_the_new_key_is_fetched_and_the_old_one_is_gone(
    verifier: TokenVerifier, issuer: Issuer
) -> None:
    assert await verifier.verify(issued(RSA_KEY, "r1", "RS256"))
    issuer.keys[:] = [published(RSA_FOREIGN, "r2", alg="RS256")]
    issuer.now += REFETCH_PAUSE_S
    assert await verifier.verify(issued(RSA_FOREIGN, "r2", "RS256"))
    await refusal(verifier, issued(RSA_KEY, "r1", "RS256"))
    assert issuer.asked == 2


async def test_a_withdrawn_key_is_refused_once_the_keys_are_old(verifier: TokenVerifier, issuer: Issuer) -> None:
    assert await verifier.verify(issued(RSA_KEY, "r1", "RS256"))
    issuer.keys[:] = [published(EC_KEY, "e1", alg="ES256")]
    issuer.now += KEYS_FRESH_S + 1
    await refusal(verifier, issued(RSA_KEY, "r1", "RS256"))


async def test_invented_key_ids_cause_one_fetch_in_ten_seconds(verifier: TokenVerifier, issuer: Issuer) -> None:
    for number in range(20):
        await refusal(verifier, issued(RSA_KEY, f"invented-{number}", "RS256"))
    assert issuer.asked == 1
    issuer.now += REFETCH_PAUSE_S
    await refusal(verifier, issued(RSA_KEY, "invented", "RS256"))
    assert issuer.asked == 2


async def test_an_issuer_that_is_down_leaves_known_keys_in_use(verifier: TokenVerifier, issuer: Issuer) -> None:
    token = issued(RSA_KEY, "r1", "RS256")
    assert await verifier.verify(token)
    issuer.status = 500
    issuer.now += KEYS_FRESH_S + 1
    assert await verifier.verify(token)
    assert issuer.asked == 2


async def test_without_any_key_no_token_can_be_judged(verifier: TokenVerifier, issuer: Issuer) -> None:
    issuer.status = 503
    with pytest.raises(KeysUnavailable):
        await verifier.verify(issued(RSA_KEY, "r1", "RS256"))
    issuer.status = 200
    issuer.now += REFETCH_PAUSE_S
    assert await verifier.verify(issued(RSA_KEY, "r1", "RS256"))


@pytest.mark.parametrize("answer", [b"no JSON", b"[]", b"{}", b'{"keys": 1}', b'{"keys": [1]}', b'{"keys": []}'])
async def test_an_issuer_that_publishes_nonsense_is_as_good_as_down(answer: bytes) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=answer))
    async with httpx.AsyncClient(transport=transport) as client:
        verifier = TokenVerifier(PublishedKeys("https://issuer.test/jwks.json", client), "runyard", "runyard")
        with pytest.raises((KeysUnavailable, TokenRefused)):
            await verifier.verify(issued(RSA_KEY, "r1", "RS256"))
