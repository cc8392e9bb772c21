"""The REST API from a client's side: one small client for all commands.

Owns how a request is sent, repeated and refused. A request that got no answer is sent again, POSTs with the same
Idempotency-Key, so that nothing is done twice. Never decides what to ask for.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from httpx_sse import EventSource, ServerSentEvent

from services.cli.errors import ApiRefused, ApiUnreachable, CliError, problem_text

Json = dict[str, Any]

TRIES = 4
PAUSE_S = 0.4
TIMEOUT = httpx.Timeout(60.0, connect=5.0)
STREAM_SILENCE_S = 60.0
"""A followed stream sends at least comments; a longer silence is a dead connection."""
CHUNK_BYTES = 1 << 20


class Api:
    """A client of one API with one token."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            base_url=f"{self.url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get(self, path: str, **parameters: Any) -> Json:
        """Read a resource; parameters that are None are left out."""
        return await self._request("GET", path, params=_given(parameters))

    async def pages(self, path: str, **parameters: Any) -> AsyncIterator[Json]:
        """Read a list to its end, item by item."""
        cursor = None
        while True:
            page = await self.get(path, cursor=cursor, **parameters)
            for item in page["items"]:
                yield item
            cursor = page["next_cursor"]
            if cursor is None or not page["items"]:
                return

    async def post(self, path: str, body: Json | None = None) -> Json:
        """Create or ask for something, once however often it has to be sent."""
        return await self._request("POST", path, json={} if body is None else body, headers=_once())

    async def upload_dataset(self, dataset_id: str, file: Path) -> Json:
        """Give a dataset a file's bytes."""
        path, parameters = f"/datasets/{dataset_id}/content", {"filename": file.name}
        return await self._request("PUT", path, params=parameters, content=file)

    async def upload_asset(self, model_id: str, file: Path, asset_type: str) -> Json:
        """Upload a file as an asset of a model."""
        files, fields = {"file": (file.name, file.read_bytes())}, {"asset_type": asset_type}
        return await self._request("POST", f"/models/{model_id}/assets", headers=_once(), files=files, data=fields)

    async def download(self, path: str, target: Path) -> str:
        """Download bytes into a file; returns their SHA-256."""
        digest = hashlib.sha256()
        try:
            async with self._client.stream("GET", path) as response:
                if response.is_error:
                    await response.aread()
                    raise _refused(response)
                with target.open("wb") as file:
                    async for chunk in response.aiter_bytes(CHUNK_BYTES):
                        digest.update(chunk)
                        await asyncio.to_thread(file.write, chunk)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        return digest.hexdigest()

    async def events(self, path: str, after: str | None, **parameters: Any) -> AsyncIterator[ServerSentEvent]:
        """Follow a stream of server-sent events from behind an event's id; ends when the server ends it.

        Raises:
            ApiUnreachable: the line broke, or is silent.
        """
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = httpx.Timeout(STREAM_SILENCE_S, connect=5.0)
        request = self._client.build_request("GET", path, params=_given(parameters), headers=headers, timeout=timeout)
        try:
            response = await self._client.send(request, stream=True)
            try:
                if response.is_error:
                    await response.aread()
                    raise _refused(response)
                async for event in EventSource(response).aiter_sse():
                    yield event
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    async def _request(self, method: str, path: str, *, content: Path | None = None, **options: Any) -> Json:
        for remaining in reversed(range(TRIES)):
            try:
                body = None if content is None else _chunks_of(content)
                response = await self._client.request(method, path, content=body, **options)
            except httpx.TransportError as error:
                if not remaining:
                    raise self._unreachable(error) from error
            else:
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or not remaining:
                    return _answer(response)
            await asyncio.sleep(PAUSE_S)
        raise AssertionError("the last try returns or raises")

    def _unreachable(self, error: httpx.TransportError) -> ApiUnreachable:
        if isinstance(error, httpx.ConnectError):
            return ApiUnreachable(
                f"nobody answers at {self.url}. Start a system with `runyard up` in another terminal, or say where one"
                " is with --url or RUNYARD_URL"
            )
        return ApiUnreachable(f"{self.url} did not answer: {type(error).__name__} {error}".rstrip())


def _answer(response: httpx.Response) -> Json:
    if response.is_error:
        raise _refused(response)
    answer: Json = response.json() if response.content else {}
    return answer


def _refused(response: httpx.Response) -> CliError:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"title": f"{response.url} answered {response.status_code} {response.reason_phrase}"}
    if response.status_code == httpx.codes.UNAUTHORIZED:
        hint = "Pass a token with --token or RUNYARD_TOKEN; `runyard token` prints one for the system of a data folder."
        problem = {**problem, "detail": f"{problem.get('detail', '')} {hint}".strip()}
    if response.is_server_error:
        return ApiUnreachable(problem_text(response.status_code, problem))
    return ApiRefused(response.status_code, problem)


def _given(parameters: Json) -> Json:
    return {name: value for name, value in parameters.items() if value is not None}


def _once() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid.uuid4())}


async def _chunks_of(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as stream:
        while chunk := await asyncio.to_thread(stream.read, CHUNK_BYTES):
            yield chunk
