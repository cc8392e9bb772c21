"""Names that clients choose: entry points, assets, datasets, variables and their values; before a run, and inside."""

from collections.abc import Callable
from pathlib import Path

from schemas.ids import is_name
from schemas.parts import Compute, PinnedAsset, PinnedObject
from schemas.reason import Reason
from services.api.admission import ModelFacts, Refusal, TrainingRequest, admit
from services.api.bodies import ModelBody, TrainBody, safe_filename
from services.runner.errors import EngineRefused
from services.runner.folder import Contents, Orders, Owner, RunFolder, environment, prepare
from tests.security.case import FINE, Attack, Check, Family, Probe, named, value
from tests.security.stage import Stage

CLIMBING = (
    *("../train.py", "../../etc/passwd", "/etc/passwd", "./train.py", "a/../../b.py", "..", ".", "", "code/train.py"),
    *(
        "..\\train.py",
        "C:\\train.py",
        "train.py\0.txt",
        "train.py\n",
        "\ntrain.py",
        "-c",
        "-m",
        "--version",
        " train.py",
    ),
    *("train.py ", "..%2ftrain.py/..", "\x1b[2J.py", "a" * 252 + ".py/x", "\ud800.py", "tr\u2028ain.py", "‮yp.niart/"),
)
"""Names that no file may have. A few of them are plain names on this system, and are refused for others' sake."""


def refuses(name: str, function: Callable[[], object]) -> Check:
    """Something that must raise ValueError, as validation does, or return a refusal."""

    async def run(stage: Stage) -> str | None:
        try:
            answer = function()
        except (ValueError, EngineRefused):
            return None
        return None if isinstance(answer, Refusal) else f"accepted as {answer!r}"

    return Check(name=name, run=run)


def admitted(entry_point: str) -> object:
    """Ask the api's own decision about an entry point of a model that has one script."""
    asset = PinnedAsset(asset_id="ast-0", asset_type="script", filename="train.py", sha256="0" * 64, size_bytes=1)
    content = PinnedObject(filename="data.csv", sha256="0" * 64, size_bytes=1)
    facts = ModelFacts("mdl-0", "custom", None, "dts-0", content, (asset,))
    return admit(facts, TrainingRequest(entry_point, "python3.11", Compute(cpu_cores=1, memory_gb=1), 60, None, (), 10))


def trained(**fields: object) -> object:
    """Validate a body as the endpoint does."""
    return TrainBody.model_validate({"entry_point": "train.py", "runtime": "python3.11", **fields})


def laid_out(stage: Stage, name: str) -> None:
    """Lay a run's folder out with a file of that name, past every check of the api."""
    orders = Orders("run-x", 1, "train.py", "data.csv", {}, 60.0)
    source = stage.baits.folder / "planted" / "for-all"
    folder = RunFolder(Path(stage.runner.home) / "laid-out")
    prepare(folder, orders, Contents(code={name: source}, data={}), Owner(65_000, 65_000))


def never_laid_out(name: str) -> Check:
    """The runner's own last line: a name that leaves the folder is refused there, too."""

    async def run(stage: Stage) -> str | None:
        try:
            laid_out(stage, name)
        except (ValueError, OSError):
            return None
        return "it was laid out"

    return Check(name=f"laid out by the runner: {name!r}", run=run)


TRAVERSAL = Family(
    name="traversal",
    checks=(
        *(refuses(f"entry point {name[:40]!r}", lambda name=name: admitted(name)) for name in CLIMBING),
        *(refuses(f"asset named {name[:40]!r}", lambda name=name: safe_filename(name)) for name in CLIMBING),
        *(never_laid_out(name) for name in ("../x", "/etc/x", "a/b", "..", ".", "", "x\0y", "a" * 300)),
        refuses("an entry point of 300 characters", lambda: trained(entry_point="a" * 300)),
        refuses("an empty entry point", lambda: trained(entry_point="")),
        refuses("an entry point that is a list", lambda: trained(entry_point=["train.py"])),
        refuses("a runtime that is an image", lambda: trained(runtime="docker.io/evil:latest")),
        refuses("a runtime that climbs", lambda: trained(runtime="../python3.11")),
        refuses("a field that switches the network on", lambda: trained(network=True)),
        refuses("compute with a privileged field", lambda: trained(compute={"privileged": True})),
        refuses("compute with a device", lambda: trained(compute={"devices": ["/dev/sda"]})),
        refuses("a GPU as a text", lambda: trained(compute={"gpu": "all"})),
        refuses("33 cores", lambda: trained(compute={"cpu_cores": 33})),
        refuses("no memory", lambda: trained(compute={"memory_gb": 0})),
        refuses("129 GB", lambda: trained(compute={"memory_gb": 129})),
        refuses("a time limit of a second more than a day", lambda: trained(timeout_seconds=86_401)),
        refuses("a negative time limit", lambda: trained(timeout_seconds=-1)),
        refuses("a label with a newline", lambda: trained(run_label="a\nb")),
        refuses("a model with an escape code in its name", lambda: ModelBody(name="\x1b[2J", model_type="custom")),
        *(
            refuses(f"a run named {name!r}", lambda name=name: _name(name))
            for name in ("../x", "a/b", "", "-x", "x" * 200, "x\n", "x y", ".")
        ),
    ),
    attacks=(
        Attack(
            name="a sibling that shadows the standard library",
            script="""
            import random
            print("imported", random.__file__)
            """,
            assets={"random.py": "print('shadowed, in the script alone')\n"},
            prints=("shadowed, in the script alone", "imported /runyard/code/random.py"),
            fast=True,
        ),
        Attack(
            name="siblings that mean to be the shim's own imports",
            script="print('ran')",
            assets={
                f"{name}.py": "import os\nos.write(1, b'hijacked')\n" for name in ("json", "select", "codecs", "stat")
            }
            | {"sitecustomize.py": "import os\nos.write(1, b'hijacked')\n"},
            reasons=(*FINE, Reason.SCRIPT_ERROR),
            judge=lambda seen: ["the shim imported it"] * (getattr(seen.end, "exit_code", None) is None),
        ),
    ),
)


def _name(name: str) -> str:
    if not is_name(name):
        raise ValueError(name)
    return name


RESERVED = [
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "LD_AUDIT",
    "PYTHONSTARTUP",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONINSPECT",
    "PATH",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "RUNYARD_SEALING_KEY",
    "HOME",
    "TMPDIR",
    "DATASET_PATH",
    "MODEL_OUTPUT_PATH",
    "METRICS_PATH",
    "RUN_ID",
    "ATTEMPT",
    "CHECKPOINT_PATH",
    "FAILURE_PATH",
    "RESUME",
    "LANG",
]
MALFORMED = ("", "1A", "A-B", "A=B", "A B", "A\n", "A\0", "É", "A" * 129, "a.b", "$(id)", "A;B", "%00")
VALUES = {
    "NUL": "a\0b",
    "half a character": "\ud800",
    "64 KiB and a byte": "x" * (64 * 1024 + 1),
    "1 MB": "x" * (1 << 20),
}

VARIABLES = Family(
    name="variables",
    checks=(
        *(refuses(f"the name {n}", lambda n=n: trained(environment_vars={n: "x"})) for n in RESERVED),
        *(refuses(f"the name {n[:20]!r}", lambda n=n: trained(environment_vars={n: "x"})) for n in MALFORMED),
        *(
            refuses(f"a value of {what}", lambda text=text: trained(environment_vars={"A": text}))
            for what, text in VALUES.items()
        ),
        refuses("101 variables", lambda: trained(environment_vars={f"V{n}": "" for n in range(101)})),
        refuses("a value that is a number", lambda: trained(environment_vars={"A": 1})),
        refuses("variables that are a list", lambda: trained(environment_vars=["A=1"])),
        Check(name="what is promised wins over every variable", run=lambda stage: _promises_win()),
    ),
    attacks=(
        Attack(
            name="values with newlines, quotes and shell words arrive byte for byte",
            script="print(json.dumps(os.environ['NASTY']))",
            variables={"NASTY": "a\nb=c\r\t\"'`$(id)`;&|\\ü€\U0001f600"},
            judge=lambda seen: [] if seen.texts else ["nothing was printed"],
            prints=(r'"a\\nb=c\\r\\t\\"\'`\$\(id\)`;&\|\\\\\\u00fc\\u20ac\\ud83d\\ude00"|.*\*\*\*.*',),
            fast=True,
        ),
        Attack(
            name="variables that would hijack an interpreter or a loader, past the api",
            script="""
            print("script ran", os.getuid() != 0)
            """,
            variables={
                "LD_PRELOAD": "/runyard/out/evil.so",
                "LD_AUDIT": "/runyard/out/evil.so",
                "PYTHONSTARTUP": "/runyard/code/train.py",
                "PYTHONPATH": "/runyard/out",
                "BASH_ENV": "/runyard/code/train.py",
                "GCONV_PATH": "/runyard/out",
                "DOCKER_HOST": "tcp://172.17.0.1:2375",
            },
            prints=("script ran True",),
        ),
        Attack(
            name="a home of the interpreter that is not there, past the api",
            script="print('ran')",
            variables={"PYTHONHOME": "/runyard/out"},
            reasons=(*FINE, Reason.SCRIPT_ERROR),
        ),
        Attack(
            name="a value of 1 MB, past the api",
            script="print('ran')",
            variables={"LARGE": "x" * (1 << 20)},
            reasons=(Reason.SANDBOX_REFUSED,),
            message="could not be started",
        ),
        Attack(
            name="a search path without programs, past the api",
            script="print('ran')",
            variables={"PATH": "/runyard/out"},
            prints=("ran",),
        ),
    ),
    probes=(
        named("its variables are not those of PID 1", "open('/proc/1/environ').read()", frozenset({"EACCES", "EPERM"})),
        named(
            "nothing of the host's environment",
            "[n for n in os.environ if 'DOCKER' in n or n[:4] == 'RUNY']",
            value([]),
        ),
        Probe(
            name="a library that is preloaded gains nothing",
            code="""
            done = subprocess.run(["/usr/bin/env"], env={"LD_PRELOAD": "/nowhere.so"}, capture_output=True)
            return done.returncode in (0, 127)
            """,
            outcomes=value(True),
        ),
    ),
)


async def _promises_win() -> str | None:
    taken = dict.fromkeys(("DATASET_PATH", "MODEL_OUTPUT_PATH", "METRICS_PATH", "RUN_ID", "ATTEMPT"), "taken")
    orders = Orders("run-x", 1, "train.py", "data.csv", taken, 60.0)
    kept = [name for name in taken if environment(orders)[name] == "taken"]
    return f"{kept} were taken over" if kept else None
