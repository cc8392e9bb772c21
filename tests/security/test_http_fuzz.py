"""Protects the OpenAPI document and the api from one another: generated requests, a fast part of the suite's 20,000."""

import asyncio
import sys

import pytest

CASES = 2_000


@pytest.mark.timeout(900)  # half a minute where nothing else runs
async def test_no_generated_request_gets_an_answer_that_the_document_does_not_have() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.security.http_fuzz", "--cases", str(CASES), "--seed", "1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
