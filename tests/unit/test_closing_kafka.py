"""Protects the end of a service: closing a client of aiokafka takes no cancellation away from whoever closes it."""

import asyncio
import contextlib

import pytest

from services.backbone.kafka import heeding_cancellation


async def closing() -> None:
    """Wait for a task of one's own, as aiokafka's clients do while they close."""
    own = asyncio.create_task(asyncio.sleep(60))
    own.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await own


async def test_a_client_closes() -> None:
    await heeding_cancellation(closing())


async def test_a_cancellation_while_a_client_closes_is_raised_once_it_is_closed() -> None:
    task = asyncio.create_task(heeding_cancellation(closing()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_that_is_cancelled_already_closes_its_client_and_ends_for_that_reason() -> None:
    closed = False

    async def work() -> None:
        nonlocal closed
        try:
            await asyncio.sleep(60)
        finally:
            await heeding_cancellation(closing())
            closed = True

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert closed


async def test_a_time_limit_on_closing_is_one() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await heeding_cancellation(closing())
