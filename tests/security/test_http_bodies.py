"""Protects what reads bodies: JSON that can be read in two ways, compressed bombs, and every oddity of multipart."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from services.cli.embedded_postgres import EmbeddedPostgres
from tests.integration.api_scene import token
from tests.security.http_scene import PROBLEM, api_settings, migrated_database, served

MAX_JSON_BYTES, MAX_ASSET_BYTES = 100_000, 200_000
JSON = {"Content-Type": "application/json"}


@pytest_asyncio.fixture(scope="module")
async def http(
    postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx.AsyncClient]:
    folder = Path(tmp_path_factory.mktemp("objects"))
    limits = {"max_json_bytes": MAX_JSON_BYTES, "max_asset_bytes": MAX_ASSET_BYTES}
    async with (
        migrated_database(postgres_server) as database,
        served(api_settings(database, folder, **limits)) as api,
        httpx.AsyncClient(base_url=api.address, headers={"Authorization": f"Bearer {token()}"}) as client,
    ):
        yield client


@pytest_asyncio.fixture(scope="module")
async def model_id(http: httpx.AsyncClient) -> str:
    created = await http.post("/api/v1/models", json={"name": "m", "model_type": "custom"})
    identity: str = created.json()["model_id"]
    return identity


def slug(response: httpx.Response) -> str:
    """Which problem an answer is; fails when it is none."""
    assert response.headers["content-type"] == PROBLEM, response.text
    problem = response.json()
    assert problem["status"] == response.status_code < 500
    return str(problem["type"].rpartition("/")[2])


async def names(http: httpx.AsyncClient) -> list[str]:
    found = (await http.get("/api/v1/datasets?limit=200")).json()["items"]
    return [item["name"] for item in found]


NOT_JSON: dict[str, bytes] = {
    "10,000 lists deep": b"[" * 10_000 + b"]" * 10_000,
    "10,000 objects deep": b'{"name":' * 10_000 + b"1" + b"}" * 10_000,
    "10,000 deep in a field": b'{"name": "x", "more": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "a name twice": b'{"name": "one", "name": "two"}',
    "a name twice by an escape": b'{"name": "one", "\\u006eame": "two"}',
    "a name twice further in": b'{"name": "x", "more": {"a": 1, "a": 2}}',
    "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": Infinity}',
    "-Infinity": b'{"name": "x", "more": [-Infinity]}',
    "bytes that are no UTF-8": b'{"name": "\xff\xfe"}',
    "half a character": b'{"name": "\xed\xa0\x80"}',
    "an overlong slash": b'{"name": "\xc0\xaf"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"name": "x"}'.encode("utf-16-le"),
    "UTF-32": '{"name": "x"}'.encode("utf-32"),
    "a number of 5,000 digits": b'{"name": ' + b"9" * 5000 + b"}",
    "a comma too many": b'{"name": "x",}',
    "a comment": b'{"name": "x" /* y */}',
    "single quotes": b"{'name': 'x'}",
    "a name without quotes": b'{name: "x"}',
    "a line break in a text": b'{"name": "x\ny"}',
    "a NUL behind it": b'{"name": "x"}\0',
    "two documents": b'{"name": "x"}{"name": "y"}',
    "a document and a half": b'{"name": "x"} {',
    "hexadecimal": b'{"name": 0x10}',
    "a plus": b'{"name": +1}',
    "a leading zero": b'{"name": 01}',
    "spaces alone": b"   ",
    "XML": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><name>&e;</name>',
    "a form": b"name=x",
}
WRONG: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a number": b"7",
    "a text": b'"name"',
    "a list": b'[{"name": "x"}]',
    "1e999": b'{"name": 1e999}',
    "an integer beyond 64 bits": b'{"name": 18446744073709551616}',
    "an escaped NUL": b'{"name": "a\\u0000b"}',
    "an escaped half character": b'{"name": "\\ud800"}',
    "an escaped half character as a name": b'{"name": "x", "\\udfff": 1}',
    "a prototype": b'{"name": "x", "__proto__": {"admin": true}}',
    "another's fields": b'{"name": "x", "tenant_id": "rival", "dataset_id": "dts-1", "sha256": "00"}',
    "a long name of a field": b'{"' + b"n" * 90_000 + b'": 1}',
    "10,000 fields": json.dumps({f"f{number}": 1 for number in range(8_000)}).encode(),
    "a right-to-left mark and a line separator": '{"name": "a\u2028b"}'.encode(),
}


@pytest.mark.parametrize("name", NOT_JSON)
async def test_what_is_no_json_or_can_be_read_in_two_ways_is_a_400(name: str, http: httpx.AsyncClient) -> None:
    response = await http.post("/api/v1/datasets", content=NOT_JSON[name], headers=JSON)
    assert (response.status_code, slug(response)) == (400, "malformed-json"), response.text


@pytest.mark.parametrize("name", WRONG)
async def test_json_that_is_no_dataset_is_a_422(name: str, http: httpx.AsyncClient) -> None:
    response = await http.post("/api/v1/datasets", content=WRONG[name], headers=JSON)
    assert (response.status_code, slug(response)) == (422, "validation-failed")
    assert len(response.json()["errors"]) <= 200
    assert len(response.content) < 100_000


async def test_nothing_of_what_was_refused_is_there(http: httpx.AsyncClient) -> None:
    for body in (*NOT_JSON.values(), *WRONG.values()):
        await http.post("/api/v1/datasets", content=body, headers=JSON)
    assert set(await names(http)) & {"one", "two", "x", "y"} == set()


@pytest.mark.parametrize(
    "body", [b'\xef\xbb\xbf{"name": "marked"}', b' \t\r\n{"name": "marked"}\n', b'{"n\\u0061me":"marked"}']
)
async def test_a_mark_spaces_and_escapes_are_json(body: bytes, http: httpx.AsyncClient) -> None:
    assert (await http.post("/api/v1/datasets", content=body, headers=JSON)).status_code == 201


@pytest.mark.parametrize(
    "media_type",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml"),
        *("application/jsonx", "text/json", "json", "", "*/*", "application/*", "application/json2; charset=utf-8"),
    ],
)
async def test_json_under_another_media_type_is_a_415(media_type: str, http: httpx.AsyncClient) -> None:
    headers = {"Content-Type": media_type}
    response = await http.post("/api/v1/datasets", content=b'{"name": "typed"}', headers=headers)
    assert (response.status_code, slug(response)) == (415, "unsupported-media-type")
    assert "typed" not in await names(http)


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", "utf-7", "nonsense", "\x7f"])
async def test_json_is_utf_8_whatever_its_charset_says(charset: str, http: httpx.AsyncClient) -> None:
    headers = {"Content-Type": f"application/json; charset={charset}"}
    response = await http.post("/api/v1/datasets", content='{"name": "Größe"}'.encode(), headers=headers)
    assert (response.status_code, response.json()["name"]) == (201, "Größe")


BOMB = gzip.compress(b'{"name": "' + b"x" * 30_000_000 + b'"}')
ENCODINGS = {
    "gzip": BOMB,
    "x-gzip": BOMB,
    "deflate": zlib.compress(b"x" * 1000),
    "br": b"\x0b",
    "zstd": b"(\xb5/\xfd",
    "gzip, gzip": gzip.compress(BOMB),
    "identity, gzip": BOMB,
    "GZIP": BOMB,
    "nonsense": b"{}",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_compressed_body_is_a_415_and_is_not_unpacked(
    encoding: str, http: httpx.AsyncClient, model_id: str
) -> None:
    assert len(BOMB) < MAX_JSON_BYTES
    created = await http.post("/api/v1/datasets", json={"name": "for bombs"})
    places = [
        ("POST", "/api/v1/datasets", "application/json"),
        ("PUT", f"/api/v1/datasets/{created.json()['dataset_id']}/content?filename=a.csv", "application/octet-stream"),
        ("POST", f"/api/v1/models/{model_id}/assets", "multipart/form-data; boundary=b"),
    ]
    for method, path, media_type in places:
        headers = {"Content-Encoding": encoding, "Content-Type": media_type}
        response = await http.request(method, path, content=ENCODINGS[encoding], headers=headers)
        assert (response.status_code, slug(response)) == (415, "unsupported-media-type")
        assert response.headers["accept-encoding"] == "identity"


async def test_an_identity_encoding_is_none(http: httpx.AsyncClient) -> None:
    headers = JSON | {"Content-Encoding": "identity"}
    assert (await http.post("/api/v1/datasets", content=b'{"name": "plain"}', headers=headers)).status_code == 201


def part(disposition: str | bytes, content: bytes = b"print()", *headers: bytes) -> bytes:
    """One part of a form whose boundary is `b`."""
    said = disposition if isinstance(disposition, bytes) else disposition.encode("utf-8", "surrogatepass")
    lines = [b"--b", b"Content-Disposition: form-data; " + said, *headers, b"", content, b""]
    return b"\r\n".join(lines)


END = b"--b--\r\n"
FILE, KIND = part('name="file"; filename="train.py"'), part('name="asset_type"', b"script")
FORM = "multipart/form-data; boundary=b"
ODD_FORMS: dict[str, tuple[bytes, str]] = {
    "1,000 files": (part('name="file"; filename="a"') * 1000 + KIND + END, FORM),
    "1,000 fields": (FILE + part('name="x"', b"") * 1000 + KIND + END, FORM),
    "1,000 kinds": (FILE + KIND * 1000 + END, FORM),
    "100,000 boundaries": (b"--b\r\n" * 30_000 + END, FORM),
    "no boundary said": (FILE + KIND + END, "multipart/form-data"),
    "an empty boundary": (FILE + KIND + END, "multipart/form-data; boundary="),
    "another boundary": (FILE + KIND + END, "multipart/form-data; boundary=c"),
    "a boundary of 300 characters": (FILE + KIND + END, "multipart/form-data; boundary=" + "b" * 300),
    "a boundary of a line break": (FILE + KIND + END, 'multipart/form-data; boundary="\\r\\n"'),
    "no end": (FILE + KIND, FORM),
    "no parts": (END, FORM),
    "nothing": (b"", FORM),
    "only a preamble": (b"hello", FORM),
    "no blank line": (b'--b\r\nContent-Disposition: form-data; name="file"\r\n--b--\r\n', FORM),
    "bare line feeds": ((FILE + KIND + END).replace(b"\r\n", b"\n"), FORM),
    "no disposition": (b"--b\r\nContent-Type: text/plain\r\n\r\nprint()\r\n" + KIND + END, FORM),
    "no name": (part('filename="train.py"') + KIND + END, FORM),
    "a field's name of 100 kB": (part(f'name="{"n" * 100_000}"; filename="a"') + KIND + END, FORM),
    "a header of 10 kB": (part('name="file"; filename="a"', b"x", b"X: " + b"x" * 10_000) + KIND + END, FORM),
    "100 headers": (part('name="file"; filename="a"', b"x", *[b"X: y"] * 100) + KIND + END, FORM),
    "a kind of 10 kB": (FILE + part('name="asset_type"', b"s" * 10_000) + END, FORM),
    "a kind with a file name": (FILE + part('name="asset_type"; filename="x"', b"script") + END, FORM),
    "a file without a file name": (part('name="file"') + KIND + END, FORM),
    "two files": (FILE + FILE.replace(b"train", b"other") + KIND + END, FORM),
    "an unknown field": (FILE + KIND + part('name="tenant"', b"rival") + END, FORM),
    "an unknown kind": (FILE + part('name="asset_type"', b"binary") + END, FORM),
    "a nested form": (part('name="file"', FILE, b"Content-Type: multipart/mixed; boundary=b") + KIND, FORM),
    "JSON": (b'{"asset_type": "script", "file": "print()"}', "application/json"),
    "a urlencoded form": (b"asset_type=script&file=print()", "application/x-www-form-urlencoded"),
    "another multipart": (FILE + KIND + END, "multipart/mixed; boundary=b"),
}


@pytest.mark.parametrize("name", ODD_FORMS)
async def test_an_odd_form_is_refused_and_leaves_nothing(name: str, http: httpx.AsyncClient, model_id: str) -> None:
    body, media_type = ODD_FORMS[name]
    path = f"/api/v1/models/{model_id}/assets"
    response = await http.post(path, content=body, headers={"Content-Type": media_type})
    assert response.status_code in (400, 413, 415, 422), response.text
    assert slug(response) in ("bad-request", "too-large", "unsupported-media-type", "validation-failed")
    assert len(response.content) < 10_000
    assert (await http.get(path)).json()["items"] == []


FILENAMES: list[str | bytes] = [
    *("../train.py", "..\\\\train.py", "a/../../b", "/etc/passwd", "..", ".", "-rf", " a", "a ", ""),
    *("a\0.py", "a\x1b[2J.py", "a\x7f.py", "\u2028.py", "..%2f..%2fetc", "x" * 256),
    *(b"\xff\x00.py", b"a\x85.py"),
]


@pytest.mark.parametrize("filename", FILENAMES, ids=repr)
async def test_a_file_name_that_leads_somewhere_is_refused(
    filename: str | bytes, http: httpx.AsyncClient, model_id: str
) -> None:
    said = filename if isinstance(filename, bytes) else filename.encode()
    body = part(b'name="file"; filename="' + said + b'"') + KIND + END
    response = await http.post(f"/api/v1/models/{model_id}/assets", content=body, headers={"Content-Type": FORM})
    assert response.status_code in (400, 422), response.text
    assert slug(response) in ("bad-request", "validation-failed")
    assert (await http.get(f"/api/v1/models/{model_id}/assets")).json()["items"] == []


CHARSETS = ["utf-7", "idna", "punycode", "zip", "rot13", "unicode_escape", "undefined", "mbcs", "base64", "x" * 1000]


@pytest.mark.parametrize("charset", CHARSETS)
async def test_no_charset_of_a_form_runs_a_codec_that_breaks(
    charset: str, http: httpx.AsyncClient, model_id: str
) -> None:
    body = part(b'name="file"; filename="..+AC8\\x2f\xff.py"') + KIND + END
    headers = {"Content-Type": f"{FORM}; charset={charset}"}
    response = await http.post(f"/api/v1/models/{model_id}/assets", content=body, headers=headers)
    assert response.status_code in (400, 415, 422), response.text
    assert slug(response) in ("bad-request", "unsupported-media-type", "validation-failed")


async def test_what_looks_like_a_boundary_inside_a_file_stays_in_it(http: httpx.AsyncClient) -> None:
    created = await http.post("/api/v1/models", json={"name": "m", "model_type": "custom"})
    content = b"--b\r\n--\r\n\r\n-b\r\n--a\r\n\r\r\n-- b--\r\n--"
    body = part('name="file"; filename="a.bin"', content, b"Content-Transfer-Encoding: base64") + KIND + END
    path = f"/api/v1/models/{created.json()['model_id']}/assets"
    response = await http.post(path, content=body, headers={"Content-Type": FORM})
    assert (response.status_code, response.json()["size_bytes"]) == (201, len(content))
