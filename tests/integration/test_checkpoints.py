"""Protects checkpoints between attempts: the newest one that some runner made is found, and keeping harms nobody."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from schemas.ids import checkpoint_key
from schemas.parts import RunAttempt
from services.backbone.objects import Objects
from services.backbone.sealing import SealingKey
from services.runner.artifact import Limits
from services.runner.checkpoint import lay_out, take
from services.runner.checkpoint_store import CheckpointStore
from services.runner.folder import Owner
from services.runner.keeping import Keeper

RUN = "run-custom-20260313-f7e2a1"
KEY = SealingKey("k1", b"\x01" * 32)
OWNER = Owner(64321, 64321) if os.geteuid() == 0 else Owner(os.geteuid(), os.getegid())
OFTEN_S = 0.02


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(Objects(f"file://{tmp_path}/store"), {"k1": KEY}, tmp_path / "work", Limits(1_000_000))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return laid_out(tmp_path / "out")


def laid_out(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lay_out(folder, None, OWNER, Limits(0))
    return folder


def ref(attempt: int, run_id: str = RUN) -> RunAttempt:
    return RunAttempt(run_id=run_id, attempt=attempt)


def stored(tmp_path: Path, attempt: int) -> Path:
    return tmp_path / "store" / checkpoint_key(RUN, attempt)


async def kept(store: CheckpointStore, out: Path, attempt: int, state: bytes, run_id: str = RUN) -> None:
    """Keep a checkpoint of one file."""
    (out / "checkpoint/state").write_bytes(state)
    with store.private_file() as archive:
        take(out, archive, store.limits)
        await store.keep(ref(attempt, run_id), archive)


async def found(store: CheckpointStore, attempt: int) -> bytes | None:
    """What an attempt starts with."""
    async with store.before(ref(attempt)) as archive:
        if archive is None:
            return None
        folder = store.folder / f"laid-{attempt}-{os.urandom(4).hex()}"
        folder.mkdir()
        lay_out(folder, archive, OWNER, store.limits)
        return (folder / "checkpoint/state").read_bytes()


async def eventually(what: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)


async def test_an_attempt_starts_with_the_newest_checkpoint_of_those_before_it(
    store: CheckpointStore, out: Path
) -> None:
    assert await found(store, 2) is None
    await kept(store, out, 1, b"one")
    await kept(store, out, 1, b"one, later")
    await kept(store, out, 10, b"ten")
    await kept(store, out, 12, b"twelve")
    assert [await found(store, attempt) for attempt in (1, 2, 10, 11, 12)] == [
        None,
        b"one, later",
        b"one, later",
        b"ten",
        b"ten",
    ]


async def test_an_old_attempt_that_goes_on_changes_nothing_for_newer_ones(store: CheckpointStore, out: Path) -> None:
    await kept(store, out, 2, b"two")
    await kept(store, out, 1, b"one, but later")
    assert await found(store, 3) == b"two"


async def test_another_runs_checkpoint_is_none_of_ours(store: CheckpointStore, out: Path) -> None:
    await kept(store, out, 1, b"other", f"{RUN}0")
    assert await found(store, 2) is None


async def test_no_file_is_left_in_the_runners_folder(store: CheckpointStore, out: Path) -> None:
    await kept(store, out, 1, b"one")
    async with store.before(ref(2)) as archive:
        assert archive is not None
        assert list(store.folder.iterdir()) == []


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, 600)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("harm", [flip_a_bit, cut, empty, append])
async def test_a_damaged_checkpoint_is_left_out_and_the_one_before_it_taken(
    store: CheckpointStore, out: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    await kept(store, out, 1, b"one")
    await kept(store, out, 2, b"two")
    harm(stored(tmp_path, 2))
    assert await found(store, 3) == b"one"
    harm(stored(tmp_path, 1))
    with structlog.testing.capture_logs() as said:
        assert await found(store, 3) is None
    assert [(line["event"], line["of_attempt"]) for line in said] == [
        ("checkpoint_left_out", 2),
        ("checkpoint_left_out", 1),
    ]


async def test_what_no_runner_with_our_key_has_made_for_this_attempt_is_left_out(
    store: CheckpointStore, out: Path, tmp_path: Path
) -> None:
    stranger = replace(store, keys={"k1": SealingKey("k1", b"\x02" * 32)})
    await kept(stranger, out, 1, b"forged")
    assert await found(store, 2) is None
    await kept(store, out, 1, b"one", "run-of-another")
    (tmp_path / "store/checkpoints/run-of-another/1").rename(stored(tmp_path, 1))
    assert await found(store, 2) is None


async def test_a_key_of_before_still_opens(store: CheckpointStore, out: Path) -> None:
    await kept(store, out, 1, b"one")
    assert await found(replace(store, keys={"k2": SealingKey("k2", b"\x02" * 32), "k1": KEY}), 2) == b"one"


async def test_what_is_larger_than_a_runner_allows_is_left_out(store: CheckpointStore, out: Path) -> None:
    await kept(store, out, 1, b"x" * 1000)
    assert await found(replace(store, limits=Limits(1000)), 2) == b"x" * 1000
    assert await found(replace(store, limits=Limits(999)), 2) is None
    assert await found(replace(store, limits=Limits(100, max_files=0)), 2) is None


async def test_a_store_that_does_not_answer_is_asked_again(store: CheckpointStore, out: Path, tmp_path: Path) -> None:
    await kept(store, out, 1, b"one")
    (tmp_path / "store/checkpoints").rename(tmp_path / "away")
    (tmp_path / "store/checkpoints").touch()
    finding = asyncio.create_task(found(store, 2))
    with structlog.testing.capture_logs() as said:
        await eventually(lambda: said)
    (tmp_path / "store/checkpoints").unlink()
    (tmp_path / "away").rename(tmp_path / "store/checkpoints")
    assert await finding == b"one"
    assert said[0]["event"] == "waiting_for"


async def test_what_a_script_writes_is_kept_while_it_runs_and_the_newest_wins(
    store: CheckpointStore, out: Path, tmp_path: Path
) -> None:
    async with Keeper(ref(1), out, store, OFTEN_S).while_it_runs():
        for state in (b"one", b"two"):
            (out / "checkpoint/state").write_bytes(state)
            await eventually(
                lambda state=state: stored(tmp_path, 1).exists() and state in stored(tmp_path, 1).read_bytes()
            )
        (out / "checkpoint/state").unlink()
    assert await found(store, 2) == b"two"


async def test_after_its_end_nothing_is_kept_any_more(store: CheckpointStore, out: Path, tmp_path: Path) -> None:
    async with Keeper(ref(1), out, store, 3600).while_it_runs():
        (out / "checkpoint/state").write_bytes(b"one")
    assert not stored(tmp_path, 1).exists()


async def test_a_runner_that_stops_takes_a_last_one(store: CheckpointStore, out: Path) -> None:
    inside = asyncio.Event()

    async def run() -> None:
        async with Keeper(ref(1), out, store, 3600).while_it_runs():
            (out / "checkpoint/state").write_bytes(b"one")
            inside.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await inside.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()
    assert await found(store, 2) == b"one"


async def test_the_last_one_is_of_what_is_new_and_has_its_time(
    store: CheckpointStore, out: Path, tmp_path: Path
) -> None:
    keeper = Keeper(ref(1), out, store, 3600)
    await keeper.keep_last()
    assert not stored(tmp_path, 1).exists()
    (out / "checkpoint/state").write_bytes(b"one")
    with structlog.testing.capture_logs() as said:
        await keeper.keep_last(0)
    assert [line["event"] for line in said] == ["checkpoint_not_kept"]
    assert not stored(tmp_path, 1).exists()
    await keeper.keep_last()
    written = stored(tmp_path, 1).stat().st_mtime_ns
    await keeper.keep_last()
    assert stored(tmp_path, 1).stat().st_mtime_ns == written


async def test_what_is_refused_is_said_once_and_leaves_the_one_before(
    store: CheckpointStore, out: Path, tmp_path: Path
) -> None:
    keeper = Keeper(ref(1), out, store, OFTEN_S)
    (out / "checkpoint/state").write_bytes(b"one")
    await keeper.keep_last()
    with structlog.testing.capture_logs() as said:
        for number in range(3):
            (out / f"checkpoint/link-{number}").symlink_to("/etc")
            await keeper.keep_last()
    assert [(line["event"], line["why"], line["run_id"]) for line in said] == [
        ("checkpoint_refused", "is a symbolic link", RUN)
    ]
    assert await found(store, 2) == b"one"
    for number in range(3):
        (out / f"checkpoint/link-{number}").unlink()
    (out / "checkpoint/state").write_bytes(b"two")
    await keeper.keep_last()
    assert await found(store, 2) == b"two"


async def test_an_upload_that_fails_is_made_good_later_and_one_that_is_cut_off_leaves_nothing(
    store: CheckpointStore, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir(exist_ok=True)
    (tmp_path / "store/checkpoints").touch()
    with structlog.testing.capture_logs() as said:
        async with Keeper(ref(1), out, store, OFTEN_S).while_it_runs():
            (out / "checkpoint/state").write_bytes(b"one")
            await eventually(lambda: [line for line in said if line["event"] == "waiting_for"])
        (tmp_path / "store/checkpoints").unlink()
        async with Keeper(ref(1), out, store, OFTEN_S).while_it_runs():
            await eventually(lambda: stored(tmp_path, 1).exists())
    assert await found(store, 2) == b"one"
    assert [path.name for path in (tmp_path / "store/checkpoints").rglob("*") if path.is_file()] == ["1"]
    assert list((tmp_path / "work").glob("tmp*")) == []
