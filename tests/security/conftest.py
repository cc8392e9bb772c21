"""The image of a runtime, and each OCI runtime that the engine has."""

import pytest

from services.runner.sandbox_images import ensure
from tests.security.sandbox_scene import runtimes


@pytest.fixture(scope="session")
def image() -> str:
    """The id of an image to run probes on."""
    return ensure("python3.11")


@pytest.fixture(scope="session", params=runtimes())
def runtime(request: pytest.FixtureRequest) -> str:
    """An OCI runtime; what asks for it runs on each that is there."""
    return str(request.param)
