"""Protects the choice of index: the operator's word, else that of the host's pip, else pip's own; and its hosts."""

from pathlib import Path

import pytest
from pip._internal.models.index import PyPI

from services.runner.package_index import Destination, ask_pip, destination, package_index, pip_setting

SAID = """global.cert='/etc/own.pem'
global.index-url='https://global.example/simple'
install.index-url='https://install.example/simple'
:env:.index-url='https://environment.example/simple'
:env:.find-links='/somewhere'
"""


def https(host: str, port: int = 443) -> Destination:
    return Destination("https", host, port)


def test_what_the_operator_sets_wins_over_the_host_s_pip() -> None:
    own = Path("/own.pem")
    found = package_index("https://one.example/simple", "two.example three.example:8443 http://four.example", own, SAID)
    assert found.url == "https://one.example/simple"
    assert found.ca_file == own
    assert found.destinations == {
        https("one.example"),
        https("two.example"),
        https("three.example", 8443),
        Destination("http", "four.example", 80),
    }


def test_of_pip_s_configuration_the_environment_wins_over_the_section_and_that_over_all() -> None:
    lines = SAID.splitlines()
    assert pip_setting(SAID, "index-url") == "https://environment.example/simple"
    assert pip_setting("\n".join(lines[:3]), "index-url") == "https://install.example/simple"
    assert pip_setting("\n".join(lines[:2]), "index-url") == "https://global.example/simple"
    assert pip_setting(lines[0], "index-url") is None
    found = package_index(None, "", None, SAID)
    assert (found.url, found.ca_file) == ("https://environment.example/simple", Path("/etc/own.pem"))
    assert found.destinations == {https("environment.example")}


def test_without_any_configuration_it_is_pip_s_own_index_with_its_files_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    found = package_index(None, "", None, "")
    assert (found.url, found.ca_file) == (PyPI.simple_url, None)
    assert found.destinations == {https(PyPI.netloc), https(PyPI.file_storage_domain)}


def test_a_password_in_the_url_is_used_and_not_shown() -> None:
    found = package_index("https://someone:secret@one.example:8443/simple", "", None, "")
    assert found.destinations == {https("one.example", 8443)}
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "wrong",
    [
        "ftp://me:secret@one.example",
        "https://",
        "file:///secret",
        "https://one.example:port/",
        "https://me:secret",
        "https://me:secret@[",
    ],
)
def test_what_is_no_index_is_a_wrong_setting_and_not_shown(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"^(?!.*secret)"):
        package_index(wrong, "", None, "")
    with pytest.raises(ValueError, match=r"^(?!.*secret)"):
        package_index("https://one.example/", wrong, None, "")


def test_hosts_are_compared_in_small_letters() -> None:
    assert destination("https://ONE.example/Simple") == https("one.example")


def test_the_host_s_pip_is_asked_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://asked.example/simple")
    assert package_index(None, "", None, ask_pip()).url == "https://asked.example/simple"
