"""Which scene passes which crash points: the table that has to name every point of every service. Data.

Points of one line are armed together, so that one run, or one service, dies at several of them one after the other; a
runner's are few enough per line that its lease does not run out meanwhile.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos import crash_scenes as scenes
from tests.chaos.crash_places import Place

Scene = Callable[[scenes.Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scene, and the points that it passes."""

    name: str
    scene: Scene
    places: tuple[Place, ...]
    alone: bool = False


def _at(service: str, points: str) -> tuple[Place, ...]:
    return tuple(Place(service, point) for point in points.split())


_RELAY = (
    "after_relay_lock after_outbox_read before_acknowledgement after_outbox_publish after_outbox_marked"
    " after_first_topic_sent"
)
_OFFSET = "before_offset_commit after_offset_commit"
_LETTER = "before_dead_letter_publish after_dead_letter_publish"
_DECISIONS = _at("scheduler", "before_decisions_commit after_decisions_commit")

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "uploaded",
        scenes.plain,
        _at("api", "before_content_rename after_content_rename before_dataset_commit after_dataset_commit"),
    ),
    Scenario(
        "accepted",
        scenes.plain,
        _at("api", "after_variables_sealed before_acceptance_commit after_acceptance_commit")
        + _at("api", "before_answer_commit after_answer_commit"),
    ),
    Scenario("told by the api", scenes.plain, _at("api", _RELAY)),
    Scenario("folded by the api", scenes.plain, _at("api", f"before_fold_commit after_fold_commit {_OFFSET}")),
    Scenario("made a version", scenes.plain, _at("api", "before_version_commit before_variables_deletion")),
    Scenario("forgot its variables", scenes.plain, _at("api", "after_variables_deletion after_variables_marked")),
    Scenario("told by the scheduler", scenes.plain, _at("scheduler", f"{_RELAY} after_announcement_publish")),
    Scenario(
        "decided",
        scenes.plain,
        _at("scheduler", f"before_queue_commit after_queue_commit {_OFFSET}") + _DECISIONS,
    ),
    Scenario(
        "stored",
        scenes.plain,
        _at("auditor", "before_events_commit after_events_commit before_audit_entries")
        + _at("auditor", f"before_output_commit after_output_commit {_OFFSET}"),
    ),
    Scenario("taken", scenes.plain, _at("runner", f"before_attempt_journaled after_attempt_journaled {_OFFSET}")),
    Scenario("fetched", scenes.plain, _at("runner", "before_cache_rename after_cache_rename")),
    Scenario(  # alone: an install takes longer than others' kills of its runner are apart
        "installed", scenes.packaged, _at("runner", "before_packages_kept after_packages_kept"), alone=True
    ),
    Scenario(
        "created",
        scenes.plain,
        _at("runner", "before_container_create after_container_create before_container_start"),
    ),
    Scenario("started", scenes.plain, _at("runner", "after_container_start before_start_journaled")),
    Scenario("told that it started", scenes.plain, _at("runner", "after_start_journaled before_events_publish")),
    Scenario(
        "told by the runner",
        scenes.plain,
        _at("runner", "before_acknowledgement after_events_publish after_events_marked"),
    ),
    Scenario("talked", scenes.plain, _at("runner", "after_output_promised after_output_publish")),
    Scenario("was over", scenes.plain, _at("runner", "after_container_over after_artifact_collected")),
    Scenario(
        "uploaded its artifact",
        scenes.plain,
        _at("runner", "after_artifact_upload after_secrets_removed before_end_journaled"),
    ),
    Scenario("ended", scenes.plain, _at("runner", "after_end_journaled after_container_swept after_folder_swept")),
    Scenario("cleaned up", scenes.plain, _at("runner", "before_container_removal after_container_removal")),
    Scenario(
        "given room to write, and taken it away again",
        scenes.plain,
        _at("runner", "after_out_attached before_mounts_detached after_mounts_detached"),
    ),
    Scenario(
        "all gone", scenes.plain, _at("runner", "after_folder_removal after_beat_counted after_heartbeat_publish")
    ),
    Scenario("cancelled", scenes.cancelled, _at("runner", "before_cause_journaled after_cause_journaled")),
    Scenario("signalled", scenes.cancelled, _at("runner", "before_terminate after_terminate")),
    Scenario("cancelled unseen", scenes.cancelled_before_it_starts, _DECISIONS),
    Scenario("timed out", scenes.timed_out, _at("runner", "after_limit_journaled")),
    Scenario("stuck", scenes.stuck, _at("runner", "before_backstop_kill after_backstop_kill")),
    Scenario("container lost", scenes.container_lost, _DECISIONS + _at("runner", "after_end_journaled")),
    Scenario("kept", scenes.went_on, _at("runner", "before_checkpoint_upload after_checkpoint_upload")),
    Scenario(
        "went on",
        scenes.went_on,
        _at("runner", "after_checkpoint_restored")
        + _at("api", "before_checkpoints_deletion after_checkpoints_deletion"),
    ),
    Scenario("repeated", scenes.repeated, _at("runner", "after_end_put_back")),
    Scenario("revoked unseen", scenes.revoked_unseen, _at("runner", "after_refusal_journaled")),
    Scenario(
        "poisoned",
        scenes.poisoned,
        (
            *_at("api", _LETTER),
            *_at("scheduler", _LETTER),
            *_at("runner", _LETTER),
            *_at("auditor", f"{_LETTER} before_acknowledgement"),
        ),
    ),
    Scenario(
        "restarted",
        scenes.restarted,
        _at("api", "after_cluster_joined")
        + _at("scheduler", "after_cluster_joined after_leader_lock after_epoch_begun")
        + _at("runner", "after_cluster_adopted after_dispatch_caught_up")
        + _at("auditor", "after_cluster_joined"),
    ),
    Scenario(
        "runner lost",
        scenes.runner_lost,
        _at("runner", "before_cause_journaled after_cause_journaled"),
        alone=True,
    ),
)


def covered() -> set[Place]:
    """Tell every point that some scenario passes."""
    return {place for scenario in SCENARIOS for place in scenario.places}
