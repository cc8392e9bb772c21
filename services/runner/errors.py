"""What may go wrong between the runner and the host that it is set up on.

    RunnerError
    ├── EngineUnavailable   the engine did not answer, or failed by itself: ask again later
    ├── EngineRefused       the engine said no, and will say it again: `reason` is what it said
    └── SettingRefused      a setting cannot be used

It holds types only: no decision about what follows from them is taken here.
"""


class RunnerError(Exception):
    """Anything that the runner itself raises."""


class EngineUnavailable(RunnerError):
    """The engine could not be reached, did not answer in time or broke down; the outcome of the call is unknown."""


class EngineRefused(RunnerError):
    """The engine refused for good; asking again would change nothing."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SettingRefused(RunnerError):
    """A setting (`RUNYARD_…`) cannot be used; no value of one is shown, since some are secret."""
