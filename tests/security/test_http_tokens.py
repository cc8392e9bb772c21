"""Protects the door: every forged token of the table is a 401 whatever key is believed, and tells nothing."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.cli.embedded_postgres import EmbeddedPostgres
from tests.integration.api_scene import EVERY_SCOPE, SECRET
from tests.integration.conftest import Database
from tests.security.http_forgeries import FOREIGN_RSA, FORGED, Door, jwk_of
from tests.security.http_scene import (
    OPERATIONS,
    PROBLEM,
    Operation,
    api_settings,
    head,
    listening,
    migrated_database,
    say,
    served,
    without,
)

RIGHT_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RIGHT_EC = ec.generate_private_key(ec.SECP256R1())
RIGHT: dict[str, Any] = {"HS256": SECRET, "RS256": RIGHT_RSA, "ES256": RIGHT_EC}
LIST = "/api/v1/models"


@dataclass
class Issuer:
    """Publishes the right keys at one address and the forger's at another, and knows what was asked for."""

    asked: set[str] = field(default_factory=set)

    async def answer(self, request: Request) -> Response:
        self.asked.add(request.url.path)
        key = FOREIGN_RSA if request.url.path == "/forger.json" else RIGHT[request.path_params["name"]]
        return JSONResponse({"keys": [jwk_of(key)]})

    def server(self) -> uvicorn.Server:
        routes = [Route("/forger.json", self.answer), Route("/{name}.json", self.answer)]
        return uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off"))


@pytest_asyncio.fixture(scope="module")
async def module_database(postgres_server: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with migrated_database(postgres_server) as database:
        yield database


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest_asyncio.fixture(scope="module", params=["HS256", "RS256", "ES256"])
async def door(
    request: pytest.FixtureRequest, module_database: Database, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    algorithm, folder = request.param, Path(tmp_path_factory.mktemp("objects"))
    async with listening(issuer.server()) as published:
        by_url = {"jwt_secret": None, "jwt_jwks_url": f"{published}/{algorithm}.json"}
        settings = api_settings(module_database, folder, **({} if algorithm == "HS256" else by_url))
        async with served(settings) as api:
            key = RIGHT[algorithm]
            public = (RIGHT_RSA if algorithm == "HS256" else key).public_key()
            yield Door(api.address, algorithm, key, public, f"{published}/forger.json")


@pytest_asyncio.fixture(scope="module")
async def http(door: Door) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=door.address) as client:
        yield client


def bearer(token: str | bytes) -> dict[str, bytes]:
    return {
        "Authorization": b"Bearer " + (token if isinstance(token, bytes) else token.encode("utf-8", "surrogatepass"))
    }


def refused(response: httpx.Response) -> bool:
    """Whether an answer is the 401 that it should be, to the letter."""
    problem = response.json()
    return (
        response.status_code == problem["status"] == 401
        and response.headers["content-type"] == PROBLEM
        and response.headers["www-authenticate"].startswith('Bearer realm="runyard"')
        and problem["type"].endswith("/unauthenticated")
        and set(problem) == {"type", "title", "status", "detail", "instance"}
    )


def test_the_table_has_the_sixty_forgeries_that_were_asked_for_and_more() -> None:
    assert len(FORGED) > 150


async def test_a_right_token_passes(door: Door, http: httpx.AsyncClient) -> None:
    assert (await http.get(LIST, headers=bearer(door.signed()))).status_code == 200


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_token_is_refused(name: str, door: Door, http: httpx.AsyncClient) -> None:
    response = await http.get(LIST, headers=bearer(FORGED[name](door)))
    assert refused(response), response.text


async def test_no_forged_token_made_the_api_fetch_what_it_named(
    door: Door, http: httpx.AsyncClient, issuer: Issuer
) -> None:
    for name in ("its own key behind jku", "its own key behind x5u", "kid 'http://127.0.0.1:1/jwks.json'"):
        assert refused(await http.get(LIST, headers=bearer(FORGED[name](door))))
    assert "/forger.json" not in issuer.asked


ACCEPTED: dict[str, dict[str, Any]] = {
    "the audience among others": {"aud": ["other", "runyard"]},
    "a fraction of a second": {"exp": 9_999_999_999.5},
    "valid since the beginning": {"nbf": 0},
    "no scope at all": {"scope": ...},
    "a name that is not English": {"sub": "Zoë", "tenant": "Größe GmbH"},
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_a_token_that_only_looks_odd_passes(name: str, door: Door, http: httpx.AsyncClient) -> None:
    response = await http.get(LIST, headers=bearer(door.signed(claims=door.claims(**ACCEPTED[name]))))
    assert response.status_code == (403 if name == "no scope at all" else 200), response.text


@pytest.mark.parametrize("typ", [..., "JWT", "jwt", "at+jwt", "application/at+jwt"])
async def test_the_types_that_an_access_token_may_have_pass(typ: Any, door: Door, http: httpx.AsyncClient) -> None:
    token = door.signed(header=door.header(typ=typ))
    assert (await http.get(LIST, headers=bearer(token))).status_code == 200


Headers = Callable[[str], list[tuple[str, str]]]
ELSEWHERE: dict[str, Headers] = {
    "no header": lambda _: [],
    "an empty header": lambda _: [("Authorization", "")],
    "the scheme alone": lambda _: [("Authorization", "Bearer")],
    "no scheme": lambda token: [("Authorization", token)],
    "Basic": lambda token: [("Authorization", f"Basic {token}")],
    "Token": lambda token: [("Authorization", f"Token {token}")],
    "DPoP": lambda token: [("Authorization", f"DPoP {token}")],
    "Bearer with a colon": lambda token: [("Authorization", f"Bearer: {token}")],
    "Bearer as a parameter": lambda token: [("Authorization", f"Bearer token={token}")],
    "BearerBearer": lambda token: [("Authorization", f"Bearer Bearer {token}")],
    "a tab for the space": lambda token: [("Authorization", f"Bearer\t{token}")],
    "two in one header": lambda token: [("Authorization", f"Bearer {token}, Bearer {token}")],
    "a word behind it": lambda token: [("Authorization", f"Bearer {token} more")],
    "two headers": lambda token: [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")],
    "two headers, one forged": lambda token: [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer a.b.c")],
    "two headers, one Basic": lambda token: [("Authorization", "Basic eDp5"), ("authorization", f"Bearer {token}")],
    "Proxy-Authorization": lambda token: [("Proxy-Authorization", f"Bearer {token}")],
    "X-Authorization": lambda token: [("X-Authorization", f"Bearer {token}")],
    "a cookie": lambda token: [("Cookie", f"access_token={token}; Authorization=Bearer {token}")],
}


@pytest.mark.parametrize("name", ELSEWHERE)
async def test_a_right_token_in_the_wrong_place_is_none(name: str, door: Door, http: httpx.AsyncClient) -> None:
    response = await http.get(LIST, headers=ELSEWHERE[name](door.signed()))
    assert refused(response), response.text


@pytest.mark.parametrize("parameter", ["access_token", "token", "authorization", "Authorization"])
async def test_a_right_token_in_the_query_is_none(parameter: str, door: Door, http: httpx.AsyncClient) -> None:
    value = f"Bearer {door.signed()}" if parameter.lower() == "authorization" else door.signed()
    assert refused(await http.get(LIST, params={parameter: value}))


async def test_a_right_token_in_a_form_is_none(door: Door, http: httpx.AsyncClient) -> None:
    assert refused(await http.post(LIST, data={"access_token": door.signed()}))


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR", "Bearer  "])
async def test_the_scheme_may_be_written_in_any_case(scheme: str, door: Door, http: httpx.AsyncClient) -> None:
    assert (await http.get(LIST, headers={"Authorization": f"{scheme} {door.signed()}"})).status_code == 200


@pytest.mark.parametrize("mark", [b"\0", b"\r\n y", b"\n y", b"\x7f"])
async def test_a_token_with_bytes_that_no_header_has_passes_nowhere(mark: bytes, door: Door) -> None:
    line = head(f"GET {LIST}", token="TOKEN").replace(b"TOKEN", door.signed().encode() + mark)
    replies = await say(door.address, line)
    assert [reply.status for reply in replies] in ([400], [401])


async def test_a_token_of_100_kilobytes_passes_nowhere(door: Door) -> None:
    replies = await say(door.address, head(f"GET {LIST}", token=door.signed() + "A" * 100_000))
    assert [reply.status for reply in replies] in ([400], [401])


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
async def test_every_endpoint_refuses_who_brings_no_token(
    operation: Operation, door: Door, http: httpx.AsyncClient
) -> None:
    path = operation.path.format_map(PLACES)
    assert refused(await http.request(operation.method, path))
    assert refused(await http.request(operation.method, path, headers=bearer(FORGED["alg 'none', no signature"](door))))


PLACES = {"dataset_id": "dts-1", "model_id": "mdl-1", "asset_id": "ast-1", "run_id": "run-1", "version": "1"}
OTHER_SCOPES: dict[str, Callable[[str], str]] = {
    "without it": lambda scope: without(EVERY_SCOPE.split(), scope),
    "its first half": lambda scope: scope.partition(":")[0],
    "in capitals": lambda scope: scope.upper(),
    "with a letter more": lambda scope: scope + "s",
    "with commas between": lambda _: EVERY_SCOPE.replace(" ", ","),
    "a star": lambda _: "* *:* models:* admin",
    "none": lambda _: "",
    "only spaces": lambda _: "   ",
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
async def test_every_endpoint_wants_its_own_scope(operation: Operation, door: Door, http: httpx.AsyncClient) -> None:
    path = operation.path.format_map(PLACES)
    for name, scope_of in OTHER_SCOPES.items():
        token = door.signed(claims=door.claims(scope=scope_of(operation.scope)))
        response = await http.request(operation.method, path, headers=bearer(token))
        assert (response.status_code, response.json()["required_scope"]) == (403, operation.scope), name
        assert response.headers["content-type"] == PROBLEM
        challenge = f'Bearer realm="runyard", error="insufficient_scope", scope="{operation.scope}"'
        assert response.headers["www-authenticate"] == challenge


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
async def test_its_own_scope_is_enough_for_every_endpoint(
    operation: Operation, door: Door, http: httpx.AsyncClient
) -> None:
    token = door.signed(claims=door.claims(scope=operation.scope))
    response = await http.request(operation.method, operation.path.format_map(PLACES), headers=bearer(token))
    assert response.status_code not in (401, 403)
    assert response.status_code < 500
