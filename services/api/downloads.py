"""Streaming stored bytes to a client, with their length and digest announced before the first of them."""

import base64
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import quote

from fastapi.responses import StreamingResponse

from schemas.parts import PinnedObject
from services.backbone.objects import Objects, content_key


async def stream_object(objects: Objects, content: PinnedObject) -> StreamingResponse:
    """Stream an object; a missing one fails before anything is sent.

    Headers: RFC 9530 (Repr-Digest), RFC 6266 and RFC 8187 (Content-Disposition).
    """
    chunks = objects.stream(content_key(content.sha256))
    first = b""
    with suppress(StopAsyncIteration):
        first = await anext(chunks)
    digest = base64.b64encode(bytes.fromhex(content.sha256)).decode()
    headers = {
        "Content-Length": str(content.size_bytes),
        "ETag": f'"{content.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(content.filename, safe='')}",
    }
    return StreamingResponse(_from(first, chunks), headers=headers, media_type="application/octet-stream")


async def _from(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
