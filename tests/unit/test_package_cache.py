"""Protects runs from half-made and from foreign sets of packages, and the disk from too many of them."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.runner import package_cache
from services.runner.package_cache import DEEPEST, NotKept, PackageCache, has_room, remove, seal, size_of
from tests.unit.unprivileged import unprivileged

ENOUGH = 1 << 20


@pytest.fixture
def cache(tmp_path: Path) -> PackageCache:
    cache = PackageCache(tmp_path / "ready", tmp_path / "runs", max_bytes=250)
    cache.clear_unfinished()
    return cache


def installed(tmp_path: Path, size_bytes: int = 100) -> Path:
    site = tmp_path / "making" / "site"
    (site / "six").mkdir(parents=True)
    (site / "six" / "__init__.py").write_bytes(b"x" * size_bytes)
    (site / "six" / "__init__.py").chmod(0o666)
    (site / "tool").write_bytes(b"")
    (site / "tool").chmod(0o4777)
    return site


def keep(cache: PackageCache, tmp_path: Path, key: str, used_at: int, size_bytes: int = 100) -> Path:
    cache.keep(key, installed(tmp_path, size_bytes), ENOUGH)
    path = cache.folder / key
    os.utime(path, (used_at, used_at))
    return path


def test_a_kept_set_is_whole_read_only_and_nobody_s_who_runs_scripts(cache: PackageCache, tmp_path: Path) -> None:
    site = installed(tmp_path)
    if os.geteuid() == 0:
        os.chown(site / "six" / "__init__.py", 64_000, 64_000)
    cache.keep("key", site, ENOUGH)
    found = cache.find("key")
    assert found == cache.folder / "key"
    assert (found / "site" / "six" / "__init__.py").read_bytes() == b"x" * 100
    modes = {path.name: path.stat().st_mode & 0o7777 for path in [found / "site", *(found / "site").rglob("*")]}
    assert modes == {"site": 0o555, "six": 0o555, "__init__.py": 0o444, "tool": 0o555}
    assert (found / "site" / "six" / "__init__.py").stat().st_uid == os.geteuid()
    assert not site.exists()


def test_what_is_not_there_or_half_made_is_not_found(cache: PackageCache) -> None:
    (cache.folder / "key.abc.part" / "site").mkdir(parents=True)
    assert cache.find("key") is None
    cache.clear_unfinished()
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "folder link", "fifo", "socket"])
def test_what_is_neither_file_nor_folder_is_not_kept(tmp_path: Path, kind: str) -> None:
    site, outside = installed(tmp_path), tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (outside / "secret").chmod(0o600)
    odd = site / "six" / "odd"
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "socket":
        os.mknod(odd, 0o140600)
    else:
        odd.symlink_to(outside if kind == "folder link" else outside / "secret")
    with pytest.raises(NotKept, match="odd"):
        seal(site, ENOUGH)
    assert (outside / "secret").stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_place_of_the_whole_set_is_not_kept(cache: PackageCache, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(installed(tmp_path), target_is_directory=True)
    for nothing in (tmp_path / "link", tmp_path / "nowhere"):
        with pytest.raises(NotKept, match="nothing"):
            cache.keep("key", nothing, ENOUGH)
    assert list(cache.folder.iterdir()) == []


def test_size_number_and_depth_are_limited_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = installed(tmp_path, size_bytes=5000)
    total = 3 * 4096 + 4096  # two blocks for the file, one for its folder, one for the empty file's inode
    assert seal(site, total) == total
    with pytest.raises(NotKept, match="take more"):
        seal(site, total - 1)
    monkeypatch.setattr(package_cache, "MOST_FILES", 3)
    seal(site, ENOUGH)
    monkeypatch.setattr(package_cache, "MOST_FILES", 2)
    with pytest.raises(NotKept, match="more than 2 files"):
        seal(site, ENOUGH)
    monkeypatch.undo()
    deep = tmp_path / "deep"
    deep.joinpath(*["d"] * DEEPEST).mkdir(parents=True)
    seal(deep, ENOUGH)
    remove(deep)
    deep.joinpath(*["d"] * (DEEPEST + 1)).mkdir(parents=True)
    with pytest.raises(NotKept, match="deep"):
        seal(deep, ENOUGH)


def test_small_files_count_as_what_they_take_on_the_disk(tmp_path: Path) -> None:
    """190,000 files of a byte counted as 0.2 MB towards the cache's size, and took 780 MB."""
    site = tmp_path / "site"
    site.mkdir()
    for number in range(100):
        (site / str(number)).write_bytes(b"x" * (number % 2))
    assert seal(site, ENOUGH) == size_of(site, ENOUGH) == 100 * 4096


def test_a_folder_s_size_counts_what_is_on_the_disk_and_not_what_links_point_to(tmp_path: Path) -> None:
    site = installed(tmp_path, size_bytes=1 << 16)
    plain = size_of(site, ENOUGH)
    assert plain >= 1 << 16
    (site / "link").symlink_to("/usr")
    with (site / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    assert size_of(site, ENOUGH) - plain < 1 << 14
    assert size_of(tmp_path / "nowhere", ENOUGH) == 0


def test_what_cannot_be_measured_counts_as_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep folder before large files, or more files than are ever kept, switched the limit on the disk off."""
    deep = tmp_path / "deep"
    deep.joinpath(*["d"] * DEEPEST).mkdir(parents=True)
    assert size_of(deep, ENOUGH) <= ENOUGH
    deep.joinpath(*["d"] * (DEEPEST + 1)).mkdir()
    assert size_of(deep, ENOUGH) > ENOUGH
    monkeypatch.setattr(package_cache, "MOST_FILES", 3)
    many = tmp_path / "many"
    many.mkdir()
    for number in range(3):
        (many / str(number)).touch()
    assert size_of(many, ENOUGH) <= ENOUGH
    (many / "3").touch()
    assert size_of(many, ENOUGH) > ENOUGH


@pytest.mark.parametrize("mode", [0, 0o300, 0o400], ids=["closed", "not to be listed", "not to be entered"])
@pytest.mark.parametrize("place", [".", "inside"])
def test_what_is_closed_to_a_runner_without_root_counts_as_too_much(tmp_path: Path, place: str, mode: int) -> None:
    """A build script that closed its folder was measured as nothing, whatever it wrote there."""
    with unprivileged(tmp_path):
        closed = Path("out") / place
        closed.mkdir(parents=True)
        (closed / "file").touch()
        closed.chmod(mode)
        taken = size_of(Path("out"), ENOUGH)
        closed.chmod(0o700)
    assert taken > ENOUGH


def disk(**known: int) -> SimpleNamespace:
    return SimpleNamespace(**{"f_bavail": 10, "f_frsize": 4096, "f_files": 1 << 20, "f_favail": 1 << 19} | known)


def test_a_disk_has_room_for_the_largest_install_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = package_cache.MOST_FILES
    for found, room in (
        (disk(), True),
        (disk(f_bavail=9), False),
        (disk(f_favail=most), True),
        (disk(f_favail=most - 1), False),
        (disk(f_files=0, f_favail=0), True),
    ):
        monkeypatch.setattr(os, "statvfs", lambda _, found=found: found)
        assert has_room(tmp_path, 10 * 4096) is room
    monkeypatch.undo()
    assert has_room(tmp_path, 1)
    assert not has_room(tmp_path, 1 << 60)


def test_what_was_used_longest_ago_goes_first_and_only_as_much_as_must(cache: PackageCache, tmp_path: Path) -> None:
    paths = [keep(cache, tmp_path, key, used_at) for key, used_at in (("old", 1), ("older", 0), ("new", 2))]
    size = package_cache._size(paths[0])
    cache.max_bytes = 3 * size
    assert cache.excess() == []
    cache.max_bytes = 3 * size - 1
    leaving = cache.excess()
    assert [path.name.partition(".")[0] for path in leaving] == ["older"]
    assert cache.find("older") is None
    for path in leaving:
        remove(path)
    assert sorted(path.name for path in cache.folder.iterdir()) == ["new", "old"]


def test_a_set_that_is_found_is_the_one_that_was_used_last(cache: PackageCache, tmp_path: Path) -> None:
    for key, used_at in (("first", 0), ("second", 1)):
        keep(cache, tmp_path, key, used_at)
    cache.find("first")
    cache.max_bytes = package_cache._size(cache.folder / "first")
    assert [path.name.partition(".")[0] for path in cache.excess()] == ["second"]


def test_a_set_that_is_held_or_mounted_stays_over_restarts(cache: PackageCache, tmp_path: Path) -> None:
    for key in ("held", "mounted"):
        keep(cache, tmp_path, key, 0)
    run = cache.runs_folder / "run-1-1"
    run.mkdir(parents=True)
    assert cache.used_by(run) is None
    cache.use(run, "mounted")
    assert cache.used_by(run) == cache.folder / "mounted"
    cache.max_bytes = 0
    with cache.hold("held"):
        assert cache.excess() == []
    again = PackageCache(cache.folder, cache.runs_folder, max_bytes=0)
    assert [path.name.partition(".")[0] for path in again.excess()] == ["held"]
    remove(run)
    assert [path.name.partition(".")[0] for path in again.excess()] == ["mounted"]
