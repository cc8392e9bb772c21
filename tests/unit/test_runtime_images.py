"""What the runtime images are named after, which archive and which interpreter they are made from."""

import sys
from pathlib import Path

import pytest

from services.runner.sandbox_images import RECIPES, RUNTIMES, image_tag
from services.runner.sandbox_interpreter import find_interpreter
from services.runner.sandbox_rootfs import Mirror, choose_mirror, locked, parse_deb822, parse_one_line, work_folder

DEB822 = """\
Types: deb deb-src
# URIs: http://commented.test/debian
URIs: http://first.test/debian
 http://second.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
Enabled: no
URIs: http://disabled.test/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://sources.test/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://inline.test/debian
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""


def test_tag_names_the_runtime_and_changes_with_every_part_of_the_recipe() -> None:
    tag = image_tag("python3.11", [b"a", b"bc"])
    assert tag.startswith("runyard/runtime:python3.11-")
    assert tag == image_tag("python3.11", [b"a", b"bc"])
    assert len({tag, image_tag("python3.11", [b"ab", b"c"]), image_tag("python3.11", [b"a", b"bd"])}) == 3


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_pins_its_three_packages_with_hashes(runtime: str) -> None:
    lines = (RECIPES / f"requirements-{runtime}.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert all("==" in line and line.endswith("\\") for line in pinned)
    assert {"numpy", "pandas", "scikit-learn"} <= {line.partition("==")[0] for line in pinned}
    assert "http" not in "".join(lines)


def test_deb822_stanzas_give_every_address_and_leave_out_disabled_and_source_archives() -> None:
    mirrors = parse_deb822(DEB822)
    assert [m.url for m in mirrors] == [
        "http://first.test/debian",
        "http://second.test/debian",
        "http://inline.test/debian",
    ]
    assert mirrors[0].suites == ("bookworm", "bookworm-updates")
    assert mirrors[0].components == ("main", "contrib")
    assert [m.keyring for m in mirrors] == ["/usr/share/keyrings/archive.gpg"] * 2 + [None]


def test_one_line_sources_are_read_with_and_without_options() -> None:
    text = """\
# deb http://commented.test/debian bookworm main
deb-src http://sources.test/debian bookworm main
deb http://plain.test/debian bookworm main contrib # the nearest
deb [arch=amd64 signed-by=/etc/key.gpg trusted=yes]  https://site.test/debian  bookworm-security  main
"""
    assert parse_one_line(text) == [
        Mirror("http://plain.test/debian", ("bookworm",), ("main", "contrib")),
        Mirror("https://site.test/debian", ("bookworm-security",), ("main",), "/etc/key.gpg", trusted=True),
    ]


def test_the_mirror_is_the_distributions_own_and_not_its_updates_or_somebodys_extras() -> None:
    extras = Mirror("http://extras.test", ("nodistro",), ("main",))
    updates = Mirror("http://updates.test", ("bookworm-updates",), ("main",))
    contrib = Mirror("http://contrib.test", ("bookworm",), ("contrib",))
    main = Mirror("http://main.test", ("bookworm",), ("main",))
    assert choose_mirror([extras, updates, contrib, main], "bookworm") is main
    assert choose_mirror([extras, updates, contrib], "bookworm") is None


def test_an_interpreter_that_a_version_manager_only_claims_to_have_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shim, real = (tmp_path / "versions" / f"{version}.{patch}" / "bin" / f"python{version}" for patch in (99, 1))
    for path in (shim, real):
        path.parent.mkdir(parents=True)
    shim.write_text("#!/bin/sh\necho command not found >&2\nexit 127\n")
    shim.chmod(0o755)
    real.symlink_to(sys.executable)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    found = find_interpreter(version)
    assert found is not None
    assert found.version == version
    assert shim.resolve() != found.executable
    assert (found.stdlib / "os.py").exists()


def test_no_interpreter_is_found_for_a_version_that_does_not_exist() -> None:
    assert find_interpreter("3.99") is None


def test_a_work_folder_starts_empty_after_a_killed_build_and_goes_away(tmp_path: Path) -> None:
    left = tmp_path / "python3.11-abc.build"
    (left / "root").mkdir(parents=True)
    with locked(tmp_path / "a.lock"), work_folder(left) as folder:
        assert list(folder.iterdir()) == []
        (folder / "half").touch()
    assert not left.exists()
