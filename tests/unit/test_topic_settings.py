"""Protects how long records can be read: what Kafka still has, its readers still remember."""

from datetime import timedelta

import pytest

from schemas.topics import DISPATCH, TOPICS, Topic
from services.backbone.kafka import _new_topic
from services.runner.sweep import JOURNAL_KEPT

KAFKA_LOOKS_EVERY = timedelta(minutes=5)
"""`log.retention.check.interval.ms`, as it is by default."""


def readable_for(topic: Topic) -> timedelta:
    settings = _new_topic(topic, 1).topic_configs
    kept_ms = int(settings["retention.ms"]) + int(settings["segment.ms"])
    return timedelta(milliseconds=kept_ms) + KAFKA_LOOKS_EVERY


def test_a_dispatched_run_is_gone_before_its_runner_forgets_that_it_had_it() -> None:
    assert readable_for(DISPATCH) < JOURNAL_KEPT


@pytest.mark.parametrize("topic", [topic for topic in TOPICS if topic.retention], ids=lambda topic: topic.name)
def test_a_record_stays_half_a_day_longer_than_its_retention_at_most(topic: Topic) -> None:
    assert topic.retention is not None
    assert readable_for(topic) == topic.retention + timedelta(hours=12, minutes=5)
