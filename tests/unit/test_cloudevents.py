"""Protects the attributes of events: times without a place in UTC, traces that travel on."""

from dataclasses import replace

import pytest

from schemas.cloudevents import CloudEvent, MalformedEvent, UnknownEvent, decode, encode
from tests import life_of_a_run as life

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_what_was_encoded_decodes_to_the_same_with_its_trace() -> None:
    for fact in life.whole_life():
        event = replace(life.told(fact), traceparent=TRACE)
        headers, value = encode(event)
        assert decode(headers, value) == event


def test_an_unknown_event_keeps_its_trace_and_its_bytes() -> None:
    headers, _ = encode(replace(life.told(life.queued()), traceparent=TRACE))
    newer = [(name, b"runyard.run.queued.v2" if name == "ce_type" else text) for name, text in headers]
    event = decode(newer, b"{ ]")
    assert isinstance(event, UnknownEvent)
    assert (event.traceparent, event.value) == (TRACE, b"{ ]")


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "2026-03-13T16:10:00"])
def test_a_time_that_is_no_moment_in_utc_is_malformed(time: str) -> None:
    headers, value = encode(life.told(life.queued()))
    wrong = [(name, time.encode() if name == "ce_time" else text) for name, text in headers]
    with pytest.raises(MalformedEvent, match="ce_time"):
        decode(wrong, value)


@pytest.mark.parametrize("header", [b"\xff", None])
def test_headers_of_others_may_hold_anything(header: bytes | None) -> None:
    headers, value = encode(life.told(life.queued()))
    assert isinstance(decode([("x-other", header), *headers], value), CloudEvent)
