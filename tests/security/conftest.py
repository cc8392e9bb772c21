"""The image of a runtime, and each OCI runtime that the engine has."""

import pytest

from services.runner.sandbox_images import ensure
from tests.security.sandbox_scene import runtimes


@pytest.fixture(scope="session")
def image() -> str:
    """The id of an image to run probes on."""
    return ensure("python3.11")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let what asks for an OCI runtime run on each that is there."""
    if "runtime" in metafunc.fixturenames:
        metafunc.parametrize("runtime", runtimes(), scope="session")
