"""Forged tokens by name: what each gets wrong, made for a door whose right key the forger has or has not.

`FORGED` maps a name to what makes the token; those of `CLAIMED` and `SHAPED` bear the right key's signature, so that
nothing but what they say speaks against them.
"""

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.integration.api_scene import EVERY_SCOPE
from tests.security.http_scene import encoded

FOREIGN_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
FOREIGN_EC = ec.generate_private_key(ec.SECP256R1())
FOREIGN_SECRET = "a secret of the forger's, long enough for HS256"
FOREIGN: dict[str, Any] = {"HS256": FOREIGN_SECRET, "RS256": FOREIGN_RSA, "ES256": FOREIGN_EC}
KEY_ID = "key-1"
HOUR_S = 3600


@dataclass(frozen=True)
class Door:
    """An api that believes one key; what of it is public, and where the forger's own keys can be fetched."""

    address: str
    algorithm: str
    key: Any
    public: Any
    forger_url: str

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims that the door believes, unless `changes` say otherwise; `...` leaves one out."""
        now = int(time.time())
        told = {"iss": "runyard", "aud": "runyard", "sub": "ada", "tenant": "acme", "scope": EVERY_SCOPE}
        every = told | {"iat": now, "exp": now + HOUR_S} | changes
        return {name: value for name, value in every.items() if value is not ...}

    def header(self, **changes: Any) -> dict[str, Any]:
        """A header that the door believes, unless `changes` say otherwise; `...` leaves a member out."""
        every = {"alg": self.algorithm, "typ": "JWT", "kid": KEY_ID} | changes
        return {name: value for name, value in every.items() if value is not ...}

    def signed(self, header: Any = None, claims: Any = None, key: Any = None, algorithm: str | None = None) -> str:
        """Sign anything with any key; by default what is right with the right one."""
        parts = (self.header() if header is None else header, self.claims() if claims is None else claims)
        text = ".".join(encoded(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in parts)
        signer = jwt.get_algorithm_by_name(algorithm or self.algorithm)
        prepared = signer.prepare_key(self.key if key is None else key)
        return f"{text}.{encoded(signer.sign(text.encode(), prepared))}"

    def hmac(self, secret: bytes) -> str:
        """Sign with a secret that the key's owner would never have called one."""
        header = self.header(alg="HS256")
        text = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(self.claims()).encode())}"
        return f"{text}.{encoded(jwt.get_algorithm_by_name('HS256').sign(text.encode(), secret))}"

    def foreign(self, **header: Any) -> str:
        """Sign with the forger's key of the right kind."""
        return self.signed(header=self.header(**header), key=FOREIGN[self.algorithm])

    def forger_jwk(self) -> dict[str, Any]:
        """The forger's public key as a JWK."""
        return jwk_of(FOREIGN_EC if self.algorithm == "ES256" else FOREIGN_RSA)


def jwk_of(key: Any) -> dict[str, Any]:
    """Write the public half of a key as a JWK."""
    kind, name = (RSAAlgorithm, "RS256") if isinstance(key, rsa.RSAPrivateKey) else (ECAlgorithm, "ES256")
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": KEY_ID, "use": "sig", "alg": name}


Forger = Callable[[Door], str | bytes]


def _unsigned(name: str) -> Forger:
    return lambda door: ".".join(door.signed(header=door.header(alg=name)).split(".")[:2]) + "."


def _renamed(name: Any) -> Forger:
    return lambda door: door.signed(header=door.header(alg=name))


def _spliced(part: int, other: Callable[[Door], str]) -> Forger:
    """Take one part of another token."""

    def forge(door: Door) -> str:
        parts = door.signed().split(".")
        parts[part] = other(door).split(".")[part]
        return ".".join(parts)

    return forge


def _resigned(change: Callable[[bytes], bytes]) -> Forger:
    """Change the signature's bytes."""

    def forge(door: Door) -> str:
        text, _, signature = door.signed().rpartition(".")
        return f"{text}.{encoded(change(base64.urlsafe_b64decode(signature + '==')))}"

    return forge


def _der(signature: bytes) -> bytes:
    half = len(signature) // 2
    return encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))


def _public(encoding: Encoding) -> Forger:
    return lambda door: door.hmac(door.public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo))


UNSIGNED: Mapping[str, Forger] = {
    **{f"alg {name!r}, no signature": _unsigned(name) for name in ("none", "None", "NONE", "nOnE", "none ", "")},
    **{f"alg {name!r}, rightly signed": _renamed(name) for name in ("none", "NONE", "", "HS256\0", "rs256", "hs256")},
    **{f"alg is {value!r}": _renamed(value) for value in (None, 0, True, ["HS256", "RS256"], {"a": 1}, ...)},
}
WRONGLY_SIGNED: Mapping[str, Forger] = {
    "HS256 by the public key, PEM": _public(Encoding.PEM),
    "HS256 by the public key, DER": _public(Encoding.DER),
    "HS256 by the JWKS text": lambda door: (
        door.hmac(json.dumps({"keys": [jwk_of(door.key)]}).encode())
        if door.algorithm != "HS256"
        else door.hmac(b'{"keys": []}')
    ),
    "HS256 by nothing": lambda door: door.hmac(b""),
    "HS256 by a NUL": lambda door: door.hmac(b"\0"),
    "HS256 by the key's id": lambda door: door.hmac(KEY_ID.encode()),
    "HS256 by a word": lambda door: door.hmac(b"secret"),
    "HS256 by a foreign secret": lambda door: door.hmac(FOREIGN_SECRET.encode()),
    "RS256 by a foreign key": lambda door: door.signed(door.header(alg="RS256"), None, FOREIGN_RSA, "RS256"),
    "PS256 by a foreign key": lambda door: door.signed(door.header(alg="PS256"), None, FOREIGN_RSA, "PS256"),
    "ES256 by a foreign key": lambda door: door.signed(door.header(alg="ES256"), None, FOREIGN_EC, "ES256"),
    "the right kind by a foreign key": lambda door: door.foreign(),
    "384 for 256": lambda door: door.signed(header=door.header(alg=door.algorithm.replace("256", "384"))),
    "512 for 256": lambda door: door.signed(header=door.header(alg=door.algorithm.replace("256", "512"))),
    "claims of another token": _spliced(1, lambda door: door.signed(claims=door.claims(tenant="rival"))),
    "header of another token": _spliced(0, lambda door: door.signed(header=door.header(more=1))),
    "signature of another token": _spliced(2, lambda door: door.signed(claims=door.claims(sub="eve"))),
    "signature of zeros": _resigned(lambda signature: bytes(len(signature))),  # CVE-2022-21449
    "signature of ones": _resigned(lambda signature: b"\xff" * len(signature)),
    "signature cut by a byte": _resigned(lambda signature: signature[:-1]),
    "signature with a byte more": _resigned(lambda signature: signature + b"\0"),
    "signature with a bit changed": _resigned(lambda signature: bytes([signature[0] ^ 1]) + signature[1:]),
    "signature in DER": _resigned(_der),
}
KEY_HINTS: Mapping[str, Forger] = {
    "its own key in jwk": lambda door: door.foreign(jwk=door.forger_jwk()),
    "its own key behind jku": lambda door: door.foreign(jku=door.forger_url),
    "its own key behind x5u": lambda door: door.foreign(x5u=door.forger_url),
    "its own key in x5c": lambda door: door.foreign(x5c=[base64.b64encode(b"certificate").decode()]),
    **{
        f"kid {kid[:40]!r}": lambda door, kid=kid: door.foreign(kid=kid)  # type: ignore[misc]
        for kid in (
            *("../../../../dev/null", "/dev/null", "file:///etc/passwd", "' OR '1'='1", "key-1' UNION SELECT 'k", "*"),
            *("http://127.0.0.1:1/jwks.json", "key-1\0", "KEY-1", " key-1", "$(id)", "k" * 5000, "", "\ud83d\ude00"),
        )
    },
    **{f"kid is {kid!r}": lambda door, kid=kid: door.foreign(kid=kid) for kid in (0, None, ["key-1"], {"a": 1})},  # type: ignore[misc]
    "kid /dev/null, HS256 by nothing": lambda door: door.signed(
        door.header(alg="HS256", kid="/dev/null"), None, FOREIGN_SECRET, "HS256"
    ),
}
EXTENDED: Mapping[str, Forger] = {
    f"header says {said}": lambda door, said=said: door.signed(header=door.header(**said))  # type: ignore[misc]
    for said in (
        *({"crit": ["x"]}, {"crit": []}, {"crit": "exp"}, {"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": False}),
        *({"b64": False}, {"typ": "JWE"}, {"typ": "logout+jwt"}, {"typ": 7}, {"typ": ["JWT"]}),
    )
}


def _claims(**changes: Any) -> Forger:
    return lambda door: door.signed(claims=door.claims(**changes))


def _in(seconds: float) -> float:
    return int(time.time()) + seconds


NO_TEXT = ("", 7, True, None, ["runyard"], {"a": 1}, "a\0b", "a\nb", "\u200b", "x" * 257)
CLAIMED: Mapping[str, Forger] = {
    **{f"no {claim}": _claims(**{claim: ...}) for claim in ("exp", "iat", "sub", "aud", "iss", "tenant")},
    **{f"null as {claim}": _claims(**{claim: None}) for claim in ("exp", "iat", "nbf", "aud", "iss")},
    "expired an hour ago": lambda door: door.signed(claims=door.claims(exp=_in(-HOUR_S))),
    "expiring now": lambda door: door.signed(claims=door.claims(exp=_in(0))),
    "valid in an hour": lambda door: door.signed(claims=door.claims(nbf=_in(HOUR_S))),
    "issued in an hour": lambda door: door.signed(claims=door.claims(iat=_in(HOUR_S))),
    **{
        f"{claim} is {value!r}": _claims(**{claim: value})
        for claim in ("exp", "iat", "nbf")
        for value in ("9999999999", "soon", "", True, [9999999999], {"a": 1}, -1, "٩٩٩٩٩٩٩٩٩٩")
    },
    **{f"exp is {value}": _claims(exp=value) for value in (float("inf"), float("nan"), 1e300, 10**18)},
    **{
        f"iss is {value!r}": _claims(iss=value)
        for value in ("", "other", "Runyard", "runyard ", "runyard/", 7, ["runyard"])
    },
    **{
        f"aud is {value!r}": _claims(aud=value)
        for value in (
            "",
            "other",
            "runyard2",
            "Runyard",
            [],
            ["other"],
            ["runyard", 1],
            [["runyard"]],
            {"runyard": 1},
            7,
        )
    },
    **{f"sub is {str(value)[:20]!r}": _claims(sub=value) for value in NO_TEXT},
    **{f"tenant is {str(value)[:20]!r}": _claims(tenant=value) for value in NO_TEXT},
    **{
        f"scope is {value!r}": _claims(scope=value)
        for value in (
            ["models:read"],
            7,
            True,
            {"models:read": 1},
            "models:read\n",
            "models:read\u00a0a",
            "models:read\0",
        )
    },
}


def _text(change: Callable[[str], str | bytes]) -> Forger:
    return lambda door: change(door.signed())


def _raw(text: str, part: str = "claims") -> Forger:
    """Sign bytes that are almost JSON: MEMBERS stands for what would be right."""

    def forge(door: Door) -> str:
        right = door.claims() if part == "claims" else door.header()
        made = text.replace("MEMBERS", json.dumps(right)[1:-1]).encode()
        return door.signed(claims=made) if part == "claims" else door.signed(header=made)

    return forge


SHAPED: Mapping[str, Forger] = {
    **{
        f"the text {text!r}": lambda _, text=text: text
        for text in ("x", ".", "..", "...", "null", "e30.e30.e30", "a.b.c")
    },  # type: ignore[misc]
    "one part": _text(lambda token: token.split(".")[0]),
    "two parts": _text(lambda token: token.rpartition(".")[0]),
    "no signature": _text(lambda token: token.rpartition(".")[0] + "."),
    "four parts": _text(lambda token: token + ".e30"),
    "a dot before it": _text(lambda token: "." + token),
    "five parts, as JWE has": _text(lambda token: f"{token}.AAAA.AAAA"),
    "padding": _text(lambda token: token + "="),
    "more padding": _text(lambda token: token + "=="),
    "padding inside": _text(lambda token: token.replace(".", "=.", 1)),
    "a space inside": _text(lambda token: token.replace(".", ". ", 1)),
    "a tab behind it": _text(lambda token: token + "\tx"),
    "the alphabet of base64": _text(lambda token: token + "+/"),
    "dots as %2E": _text(lambda token: token.replace(".", "%2E")),
    "full-width dots": _text(lambda token: token.replace(".", "\uff0e")),
    "quotes": _text(lambda token: f'"{token}"'),
    "brackets": _text(lambda token: f"<{token}>"),
    "bytes that are no UTF-8": _text(lambda token: b"\xff\xfe" + token.encode()),
    "a no-break space behind it": _text(lambda token: token.encode() + b"\xa0"),
    "JSON serialisation": _text(
        lambda token: json.dumps(dict(zip(("protected", "payload", "signature"), token.split("."), strict=True)))
    ),
    "8193 characters": lambda door: door.signed(claims=door.claims(more="x" * 8192)),
    "50 kilobytes": lambda _: "e30." + "A" * 50_000 + ".e30",
    "header of 5,000 brackets": lambda door: door.signed(header=b"[" * 5000),
    "claims of 5,000 brackets": lambda door: door.signed(claims=b"[" * 5000),
    "header is a list": lambda door: door.signed(header=b"[]"),
    "header is no JSON": lambda door: door.signed(header=b"{alg:HS256}"),
    "claims are a list": lambda door: door.signed(claims=b"[]"),
    "claims are a token": lambda door: door.signed(door.header(cty="JWT"), door.signed().encode()),
    "claims are empty": lambda door: door.signed(claims=b""),
    "header in UTF-16": lambda door: door.signed(header=json.dumps(door.header()).encode("utf-16")),
    "claims in UTF-16": lambda door: door.signed(claims=json.dumps(door.claims()).encode("utf-16")),
    "alg twice": _raw('{"alg": "none", MEMBERS}', "header"),
    "kid twice": _raw('{MEMBERS, "kid": "key-1"}', "header"),
    "tenant twice": _raw('{"tenant": "rival", MEMBERS}'),
    "exp twice": _raw('{MEMBERS, "exp": 9999999999}'),
    "exp of 3,000 digits": _raw('{MEMBERS, "nbf": 0, "exp": ' + "9" * 3000 + "}"),
    "a number of 5,000 digits": _raw('{MEMBERS, "more": ' + "9" * 5000 + "}"),
    "a number of 1e400 for exp": lambda door: door.signed(
        claims=json.dumps(door.claims(exp="X")).replace('"X"', "1e400").encode()
    ),
    "NaN among the claims": _raw('{MEMBERS, "more": NaN}'),
    "a comment among the claims": _raw("{MEMBERS /* more */}"),
}
FORGED: dict[str, Forger] = {**UNSIGNED, **WRONGLY_SIGNED, **KEY_HINTS, **EXTENDED, **CLAIMED, **SHAPED}
