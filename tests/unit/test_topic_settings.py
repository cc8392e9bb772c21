"""Protects what a cluster must be like: how long records can be read, its topics' partitions, who makes them."""

from datetime import timedelta

import pytest

from schemas.topics import DISPATCH, TOPICS, Topic
from services.backbone.kafka import AUTO_CREATION, _new_topic, why_auto_creating, why_unfit
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


def test_a_topic_with_other_partitions_is_unfit_and_the_text_says_what_to_do() -> None:
    problem = str(why_unfit({"runyard.dispatch": 1, "runyard.runs": 6, "of.others": 1}, TOPICS))
    assert problem.startswith("runyard.dispatch has 1 partitions and not 12: ")
    assert "runyard replay --open-runs" in problem


def test_topics_that_are_missing_or_just_being_made_are_fit() -> None:
    assert why_unfit({"runyard.runs": 6, "runyard.dispatch": 0}, TOPICS) is None


def test_a_broker_that_makes_topics_by_itself_is_named() -> None:
    brokers = [(0, None, 4, str(number), [(AUTO_CREATION, value)]) for number, value in ((1, "false"), (2, "true"))]
    assert str(why_auto_creating(brokers)).startswith("auto.create.topics.enable is true at broker 2: ")
    assert why_auto_creating(brokers[:1]) is None


def test_an_account_that_may_not_ask_for_a_brokers_settings_may_work_with_it() -> None:
    assert why_auto_creating([(31, "Cluster authorization failed.", 4, "1", [])]) is None
