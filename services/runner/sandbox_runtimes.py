"""The runtime images in the runner's own words: which there are, and which image a runtime is.

A thin door before `sandbox_images`, so that nobody else has to know what Docker raises. Calls block: for threads.
"""

from typing import cast, get_args

import requests.exceptions
from docker.errors import DockerException

from schemas.parts import Runtime
from services.runner import sandbox_images
from services.runner.errors import EngineUnavailable
from services.runner.sandbox_rootfs import CannotBuildError, Say


def runtimes() -> tuple[Runtime, ...]:
    """List the runtimes that this host has or can make.

    Raises:
        EngineUnavailable: the engine did not answer.
    """
    try:
        found = sandbox_images.available()
    except (DockerException, requests.exceptions.RequestException) as error:
        raise EngineUnavailable(str(error)) from error
    return tuple(cast(Runtime, name) for name in found if name in get_args(Runtime))


def image_of(runtime: Runtime, say: Say = lambda line: None) -> str:
    """Return the id of a runtime's image, making the image first if need be: that takes a minute or so.

    Raises:
        EngineUnavailable: it cannot be made here and now, which is not the script's fault.
    """
    try:
        with sandbox_images.workshop(say) as shop:
            return sandbox_images.ensure(runtime, shop)
    except (CannotBuildError, DockerException, requests.exceptions.RequestException, OSError) as error:
        raise EngineUnavailable(str(error)) from error
