"""Protects hosts from strangers' build scripts on a runtime that the operator did not choose for strangers."""

from services.runner.settings import PackageSettings, install_runtime

WHEELS, BUILDS = PackageSettings(), PackageSettings(builds_allowed=True)


def test_pip_alone_runs_on_the_engine_s_own_runtime_and_strangers_builds_on_that_of_runs() -> None:
    assert install_runtime("runsc", WHEELS) is None
    assert install_runtime("runsc", BUILDS) == "runsc"
    assert install_runtime(None, BUILDS) is None


def test_what_is_set_for_installs_counts() -> None:
    for installs in (WHEELS, BUILDS):
        own = installs.model_copy(update={"oci_runtime": "runsc-with-sockets"})
        assert install_runtime("runsc", own) == "runsc-with-sockets"
