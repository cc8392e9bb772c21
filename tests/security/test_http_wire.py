"""Protects the server from what no HTTP client writes: two lengths, slow heads and bodies, endless heads, silence."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio
import structlog

from services.cli.embedded_postgres import EmbeddedPostgres
from tests.integration.api_scene import token
from tests.integration.conftest import Database
from tests.security.http_scene import (
    PROBLEM,
    Reply,
    Served,
    answers,
    api_settings,
    chunked,
    connected,
    head,
    migrated_database,
    say,
    served,
)

PATIENCE_S, BYTES_PER_S = 0.5, 2000
LIST, DATASETS = "/api/v1/models", "/api/v1/datasets"
JSON = "Content-Type: application/json"
NAMED = b'{"name": "wire"}'


@dataclass(frozen=True)
class Wire:
    """An api on a socket, and one token for it."""

    api: Served
    token: str
    dataset_id: str
    model_id: str

    def head(self, line: str, *headers: str) -> bytes:
        return head(line, *headers, token=self.token)

    async def say(self, *pieces: bytes) -> list[Reply]:
        return await say(self.api.address, *pieces)

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.api.address, headers=bearer(self.token)) as client:
            return await client.get(path)

    @property
    def content(self) -> str:
        return f"{DATASETS}/{self.dataset_id}/content"


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@asynccontextmanager
async def wired(database: Database, folder: Path, **settings: float) -> AsyncIterator[Wire]:
    async with served(api_settings(database, folder, **settings)) as api:
        right = token()
        async with httpx.AsyncClient(base_url=api.address, headers=bearer(right)) as client:
            dataset_id = (await client.post(DATASETS, json={"name": "d"})).json()["dataset_id"]
            model_id = (await client.post(LIST, json={"name": "m", "model_type": "custom"})).json()["model_id"]
            assert (await client.put(f"{DATASETS}/{dataset_id}/content?filename=a", content=b"kept")).status_code == 200
        yield Wire(api, right, dataset_id, model_id)


@pytest_asyncio.fixture(scope="module")
async def module_database(postgres_server: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with migrated_database(postgres_server) as database:
        yield database


@pytest_asyncio.fixture(scope="module")
async def wire(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Wire]:
    async with wired(module_database, Path(tmp_path_factory.mktemp("objects"))) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module")
async def impatient(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Wire]:
    settings = {"client_patience_s": PATIENCE_S, "slowest_body_bytes_per_s": BYTES_PER_S}
    async with wired(module_database, Path(tmp_path_factory.mktemp("objects")), **settings) as opened:
        yield opened


LENGTHS = ["-1", "+1", "1e1", "0x10", "1_0", "", "five", "5;", "5 5", "5, 6", "9" * 30, "٥"]


@pytest.mark.parametrize("length", LENGTHS)
async def test_a_length_that_is_no_number_is_a_400(length: str, wire: Wire) -> None:
    line = wire.head(f"POST {DATASETS}", JSON).replace(b"\r\n\r\n", f"\r\nContent-Length: {length}\r\n\r\n".encode())
    assert [reply.status for reply in await wire.say(line, NAMED)][:1] in ([400], [])
    assert "wire" not in (await wire.get(DATASETS)).text


TWO_LENGTHS = {
    "a length and chunks": [f"Content-Length: {len(NAMED)}", "Transfer-Encoding: chunked"],
    "chunks and a length": ["Transfer-Encoding: chunked", f"Content-Length: {len(NAMED)}"],
    "a length of zero and chunks": ["Content-Length: 0", "Transfer-Encoding: chunked"],
    "two lengths": ["Content-Length: 5", f"Content-Length: {len(NAMED)}"],
    "chunks twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "chunks in chunks": ["Transfer-Encoding: chunked, chunked"],
    "gzip in chunks": ["Transfer-Encoding: gzip, chunked"],
    "chunks in gzip": ["Transfer-Encoding: chunked, gzip"],
    "identity": ["Transfer-Encoding: identity"],
    "something like chunks": ["Transfer-Encoding: xchunked"],
    "chunks behind a tab": ["Transfer-Encoding:\t chunked\x0b"],
    "a space before the colon": ["Transfer-Encoding : chunked"],
    "a length behind a space": [f"Content-Length : {len(NAMED)}"],
    "a fold": ["X: y", " Transfer-Encoding: chunked", "Content-Length: 5", "Content-Length: 6"],
}


@pytest.mark.parametrize("name", TWO_LENGTHS)
async def test_a_body_that_could_end_at_two_places_is_a_400_and_the_connection_ends(name: str, wire: Wire) -> None:
    line = head(f"POST {DATASETS}", JSON, *TWO_LENGTHS[name], token=wire.token).replace(b"Connection: close\r\n", b"")
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    replies = await wire.say(line, chunked(NAMED) + smuggled)
    assert [reply.status for reply in replies] == [400], replies
    assert "wire" not in (await wire.get(DATASETS)).text


CHUNKS = {
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "a size that is no number": b"xyz\r\nabc\r\n0\r\n\r\n",
    "a negative size": b"-3\r\nabc\r\n0\r\n\r\n",
    "a size with a plus": b"+3\r\nabc\r\n0\r\n\r\n",
    "a size in C": b"0x3\r\nabc\r\n0\r\n\r\n",
    "a size of 30 digits": b"0" * 30 + b"3\r\nabc\r\n0\r\n\r\n",
    "more than the size": b"3\r\nabcdef\r\n0\r\n\r\n",
    "two bytes for the line break": b"3\r\nabcXX0\r\n\r\n",
    "a size without end": b"1" * 200_000,
}


@pytest.mark.parametrize("name", CHUNKS)
async def test_chunks_that_are_none_store_nothing(name: str, wire: Wire) -> None:
    line = wire.head(f"PUT {wire.content}?filename=odd.csv", "Transfer-Encoding: chunked")
    replies = await wire.say(line, CHUNKS[name])
    assert [reply.status for reply in replies] in ([400], []), replies
    assert (await wire.get(wire.content)).content == b"kept"


async def test_what_stands_behind_a_body_is_a_request_of_its_own_and_has_no_token(wire: Wire) -> None:
    line = wire.head(f"POST {DATASETS}", JSON, "Content-Length: 2").replace(b"Connection: close\r\n", b"")
    replies = await wire.say(line, b"{}", head(f"GET {LIST}"))
    assert [reply.status for reply in replies] == [422, 401]


@pytest.mark.parametrize("sent", [0, 1, 9])
async def test_a_body_that_breaks_off_stores_nothing_and_is_no_fault_of_ours(sent: int, wire: Wire) -> None:
    path = f"{wire.content}?filename=half.csv"
    with structlog.testing.capture_logs() as told:
        _, writer = await connected(wire.api.address)
        writer.write(wire.head(f"PUT {path}", "Content-Length: 10") + b"x" * sent)
        await writer.drain()
        writer.close()
        await wire.api.let_go()
        assert (await wire.get(wire.content)).content == b"kept"
    assert [entry["event"] for entry in told if entry["log_level"] == "error"] == []
    assert "client_gone" in [entry["event"] for entry in told]


LINES = {
    "another host's address": f"GET http://evil.test{LIST} HTTP/1.1",
    "CONNECT": "CONNECT evil.test:443 HTTP/1.1",
    "a star": "OPTIONS * HTTP/1.1",
    "TRACE": f"TRACE {LIST} HTTP/1.1",
    "a made-up method": f"STEAL {LIST} HTTP/1.1",
    "a method in small letters": f"get {LIST} HTTP/1.1",
    "a slash at the end": f"GET {LIST}/ HTTP/1.1",
    "two slashes": f"GET /{LIST} HTTP/1.1",
    "a path upwards": "GET /api/v1/../../../../etc/passwd HTTP/1.1",
    "a path upwards, encoded": "GET /api/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1",
    "an encoded NUL": "GET /api/v1/models/mdl%00 HTTP/1.1",
    "encoded bytes that are no UTF-8": "GET /api/v1/models/%ff%fe HTTP/1.1",
    "a backslash": "GET /api\\v1\\models HTTP/1.1",
    "a parameter in the path": f"GET {LIST};jsessionid=1 HTTP/1.1",
    "an override": f"GET {LIST}/x?_method=DELETE HTTP/1.1",
    "SQL for an id": "GET /api/v1/models/'%20OR%20'1'='1 HTTP/1.1",
    "no path": "GET  HTTP/1.1",
    "no version": f"GET {LIST}",
    "HTTP/0.9": "GET /",
    "HTTP/2": "PRI * HTTP/2.0",
    "a TLS greeting": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "nothing": "",
    "a NUL": f"GET {LIST}\0 HTTP/1.1",
    "a line break": f"GET {LIST} HTTP/1.1\r\n\r\nX",
    "letters that are not English": "GET /ä HTTP/1.1",
}


@pytest.mark.parametrize("name", LINES)
async def test_an_odd_request_line_gets_no_object_and_breaks_nothing(name: str, wire: Wire) -> None:
    rest = f"\r\nHost: evil.test\r\nConnection: close\r\nAuthorization: Bearer {wire.token}\r\n\r\n"
    replies = await wire.say((LINES[name] + rest).encode("latin-1"))
    assert all(400 <= reply.status < 500 for reply in replies), replies
    assert b"evil.test" not in b"".join(reply.headers.get("location", "").encode() for reply in replies)
    assert (await wire.get(LIST)).status_code == 200


async def test_no_redirect_follows_the_host_header(wire: Wire) -> None:
    line = head(f"GET {LIST}/", token=wire.token).replace(b"api.test", b"evil.test")
    (reply,) = await wire.say(line)
    assert (reply.status, "location" in reply.headers) == (404, False)


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "TLS/1.0"])
async def test_an_upgrade_is_not_taken_up(upgrade: str, wire: Wire) -> None:
    headers = [f"Upgrade: {upgrade}", "Connection: Upgrade, close", "Sec-WebSocket-Key: x", "HTTP2-Settings: x"]
    (reply,) = await wire.say(head(f"GET {LIST}", *headers, token=wire.token))
    assert reply.status == 200


HEADS = {
    "10,000 headers": [f"X-{number}: y" for number in range(10_000)],
    "a header of a megabyte": ["X: " + "y" * 1_000_000],
    "a name of a megabyte": ["X" * 1_000_000 + ": y"],
    "a thousand cookies": ["Cookie: " + "; ".join(f"c{number}=v" for number in range(1_000))],
    "a header's name of bytes": ["X\xff\xfe: y"],
    "a header without a colon": ["X"],
    "a header without a name": [": y"],
    "a header with a NUL": ["X: a\0b"],
}


@pytest.mark.parametrize("name", HEADS)
async def test_an_odd_head_is_answered_or_refused_and_breaks_nothing(name: str, wire: Wire) -> None:
    replies = await wire.say(wire.head(f"GET {LIST}", *HEADS[name]))
    assert [reply.status for reply in replies] in ([200], [400], []), replies
    assert (await wire.get(LIST)).status_code == 200


@pytest.mark.parametrize("size", [60_000, 1_000_000])
async def test_an_address_of_any_length_is_answered_or_refused(size: int, wire: Wire) -> None:
    for path in (f"{LIST}?cursor={'x' * size}", f"{LIST}/{'x' * size}", f"{LIST}?{'limit=1&' * (size // 8)}"):
        replies = await wire.say(wire.head(f"GET {path}"))
        assert [reply.status for reply in replies] in ([200], [400], [404], [422], []), path[:50]


async def test_a_stranger_is_not_asked_for_a_body_and_a_caller_is(wire: Wire) -> None:
    expecting = [JSON, f"Content-Length: {len(NAMED)}", "Expect: 100-continue"]
    stranger = await wire.say(head(f"POST {DATASETS}", *expecting))
    assert [reply.status for reply in stranger] == [401]
    caller = await wire.say(wire.head(f"POST {DATASETS}", *expecting), NAMED)
    assert [reply.status for reply in caller] == [100, 201]


async def trickle(writer: asyncio.StreamWriter, piece: bytes, every_s: float, times: int) -> None:
    """Write slowly, until the server has had enough."""
    try:
        for _ in range(times):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(every_s)
    except ConnectionError:
        return


async def dripped(wire: Wire, first: bytes, piece: bytes, every_s: float, times: int) -> tuple[list[Reply], float]:
    """Write a beginning, then slowly more; what was answered, and how long it took until the connection ended."""
    reader, writer = await connected(wire.api.address)
    loop = asyncio.get_running_loop()
    began = loop.time()
    writer.write(first)
    dripping = asyncio.create_task(trickle(writer, piece, every_s, times))
    replies = await answers(reader, writer)
    took_s = loop.time() - began
    await dripping
    return replies, took_s


BODIES = {
    "json": (f"POST {DATASETS}", JSON, b'{"name": "'),
    "asset": ("POST /api/v1/models/{model_id}/assets", "Content-Type: multipart/form-data; boundary=b", b"--b\r\n"),
    "dataset": (DATASETS.join(["PUT ", "/{dataset_id}/content?filename=slow.csv"]), "X: y", b"a,b\n"),
}


@pytest.mark.parametrize("framing", ["Content-Length: 50000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_that_trickles_in_is_a_408_and_the_connection_ends(
    kind: str, framing: str, impatient: Wire
) -> None:
    line, header, beginning = BODIES[kind]
    filled = line.format(model_id=impatient.model_id, dataset_id=impatient.dataset_id)
    first = impatient.head(filled, header, framing).replace(b"Connection: close\r\n", b"")
    piece = b"1\r\nx\r\n" if "chunked" in framing else b"x"
    first += b"%x\r\n%s\r\n" % (len(beginning), beginning) if "chunked" in framing else beginning
    (reply,), took_s = await dripped(impatient, first, piece, 0.02, 500)
    assert (reply.status, reply.slug, reply.headers["content-type"]) == (408, "too-slow", PROBLEM)
    assert PATIENCE_S <= took_s < 10 * PATIENCE_S
    assert (await impatient.get(impatient.content)).content == b"kept"
    assert "uploads" not in {item["name"] for item in (await impatient.get(DATASETS)).json()["items"]}


@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_that_does_not_come_at_all_is_a_408(kind: str, impatient: Wire) -> None:
    line, header, beginning = BODIES[kind]
    filled = line.format(model_id=impatient.model_id, dataset_id=impatient.dataset_id)
    (reply,) = await impatient.say(impatient.head(filled, header, "Content-Length: 50000") + beginning)
    assert (reply.status, reply.slug) == (408, "too-slow")


async def test_a_slow_upload_that_moves_is_taken_however_long_it_lasts(impatient: Wire) -> None:
    pieces, piece = 80, b"y" * 200  # 200 bytes every 20 ms are 10,000 a second, for three times our patience
    path = f"PUT {impatient.content}?filename=slow.csv"
    first = impatient.head(path, f"Content-Length: {pieces * len(piece)}")
    (reply,), took_s = await dripped(impatient, first, piece, 0.02, pieces)
    assert (reply.status, took_s > 2 * PATIENCE_S) == (200, True), (reply, took_s)
    assert (await impatient.get(impatient.content)).content == piece * pieces
    again = impatient.head(f"PUT {impatient.content}?filename=a", "Content-Length: 4")
    assert [reply.status for reply in await impatient.say(again, b"kept")] == [200]


async def test_the_rest_of_a_body_that_is_too_large_is_not_waited_for(impatient: Wire) -> None:
    first = impatient.head(f"POST {DATASETS}", JSON, "Content-Length: 9000000") + b" " * (1 << 20)
    (reply,), took_s = await dripped(impatient, first, b" ", 0.02, 500)
    assert (reply.status, reply.slug) == (413, "too-large")
    assert took_s < 10 * PATIENCE_S


async def test_the_rest_of_a_strangers_body_is_not_waited_for(impatient: Wire) -> None:
    first = head(f"POST {DATASETS}", JSON, "Content-Length: 9000000").replace(b"Connection: close\r\n", b"")
    (reply,), took_s = await dripped(impatient, first, b" ", 0.02, 500)
    assert reply.status == 401
    assert took_s < 10 * PATIENCE_S


@pytest.mark.parametrize(
    "beginning", [b"", b"G", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: "]
)
async def test_a_head_that_trickles_in_or_does_not_come_is_cut(beginning: bytes, impatient: Wire) -> None:
    replies, took_s = await dripped(impatient, beginning, b"y" if beginning else b"", 0.02, 500)
    assert [reply.status for reply in replies] in ([], [400])
    assert took_s < 10 * PATIENCE_S


async def test_a_second_head_has_no_more_time_than_the_first(impatient: Wire) -> None:
    first = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nX: "
    replies, took_s = await dripped(impatient, first, b"y", 0.02, 500)
    assert [reply.status for reply in replies] == [200]
    assert took_s < 10 * PATIENCE_S


async def test_a_client_that_does_not_read_is_cut(impatient: Wire) -> None:
    size = 40_000_000  # more than the buffers of both ends take in
    async with httpx.AsyncClient(base_url=impatient.api.address, headers=bearer(impatient.token)) as client:
        path = f"{impatient.content}?filename=a"
        assert (await client.put(path, content=b"z" * size)).status_code == 200
    parts = urlsplit(impatient.api.address)
    with socket.create_connection((parts.hostname, parts.port)) as unread:
        unread.sendall(impatient.head(f"GET {impatient.content}"))
        await impatient.api.let_go()
    again = impatient.head(f"PUT {path}", "Content-Length: 4")
    assert [reply.status for reply in await impatient.say(again, b"kept")] == [200]


async def test_a_hundred_slow_clients_keep_nobody_out(impatient: Wire) -> None:
    lines = impatient.head(f"POST {DATASETS}", JSON, "Content-Length: 50000") + b"{"
    slow = [await connected(impatient.api.address) for _ in range(100)]
    for _, writer in slow:
        writer.write(lines)
    assert (await impatient.get(LIST)).status_code == 200
    replies = await asyncio.gather(*(answers(reader, writer) for reader, writer in slow))
    assert [reply.status for of_one in replies for reply in of_one] == [408] * 100
    await impatient.api.let_go()
