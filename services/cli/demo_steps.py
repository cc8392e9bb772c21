"""The steps of the demo, each an ordinary client's: REST by the same client as every command, events by plain Kafka.

Owns what is shown of each step, and which result is right. Imports nothing that trains: models run in sandboxes only.
"""

import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from services.cli.api_client import Api, Json
from services.cli.demo_events import show_events
from services.cli.display import line_text, status_text
from services.cli.errors import CliError
from services.cli.follow import ENDS, follow_run, path_of
from services.cli.service_process import CHECKOUT, Say
from services.cli.sparkline import metrics_table
from services.cli.system import RunningSystem
from services.cli.uploads import Files, ready_model

EXAMPLE = CHECKOUT / "examples" / "wine"
RUNTIME = "python3.11"
COMPUTE = {"cpu_cores": 2, "memory_gb": 2}
SCORE = "held_out_accuracy"
LEAST_SCORE = 0.9
ARTIFACT_NAME = "wine.joblib"
END_TIMEOUT_S = 30.0
VISIBLE_TIMEOUT_S = 30.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Story:
    """What every step needs."""

    api: Api
    system: RunningSystem
    console: Console

    def title(self, words: str) -> None:
        """Begin a chapter."""
        self.console.print(Rule(words, align="left"))

    def tell(self, words: str) -> None:
        """Print a line as it is."""
        self.console.print(f"  {words}", markup=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Trained:
    """What training has produced."""

    run: Json
    version: Json
    score: float


class RunTeller:
    """Prints a run's output as it comes and keeps its metrics; a `Watcher`."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self.series: dict[str, list[float]] = {}

    def on_run(self, run: Json) -> None:
        """Say nothing: the events tell the state."""

    def on_line(self, line: Json) -> None:
        """Print a line of output."""
        self._story.console.print(Text("            │ ", "dim").append_text(line_text(line)), soft_wrap=True)

    def on_point(self, point: Json) -> None:
        """Keep a metric's value."""
        self.series.setdefault(point["name"], []).append(point["value"])


async def ensure_image(say: Say) -> None:
    """Make sure of the runtime's image, in a process of its own, since making one takes minutes and may be interrupted.

    Raises:
        CliError: it cannot be made here; the text says why.
    """
    command = (sys.executable, "-m", "services.runner.sandbox_images", "build", RUNTIME)
    pipe = asyncio.subprocess.PIPE
    merged = asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec(*command, cwd=CHECKOUT, stdout=pipe, stderr=merged)
    last = ""
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        async for line in process.stdout:
            last = line.decode(errors="replace").strip()
            if last.startswith(("python", "Debian")):
                say(last)
        if await process.wait():
            raise CliError(f"the runtime's image cannot be made: {last}\nDoes `docker info` answer?")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def upload_everything(story: Story) -> Json:
    """Create a dataset and a model, and upload their bytes; returns the model."""
    api, data, script = story.api, EXAMPLE / "wine.csv", EXAMPLE / "train.py"
    if not data.is_file():
        raise CliError(f"{data} is missing: the demo needs a checkout with its examples")
    dataset = await api.post("/datasets", {"name": "wine"})
    story.tell(f"POST /api/v1/datasets                    {dataset['dataset_id']}")
    content = await api.upload_dataset(dataset["dataset_id"], data)
    story.tell(f"PUT  …/content                           {content['filename']}, {content['size_bytes']:,} bytes")
    body = {"name": "wine", "model_type": "custom", "dataset_id": dataset["dataset_id"]}
    model = await api.post("/models", body)
    story.tell(f"POST /api/v1/models                      {model['model_id']}, {model['status']}")
    asset = await api.upload_asset(model["model_id"], script, "script")
    story.tell(f"POST …/assets                            {asset['filename']}, {asset['size_bytes']:,} bytes")
    return model


async def train_model(story: Story, model: Json) -> Trained:
    """Start a run and show it, event by event and line by line, to its end; returns what it made.

    Raises:
        CliError: it did not succeed.
    """
    wanted = {"environment_vars": {"TREES": "120"}, "run_label": "demo", "timeout_seconds": 600}
    teller, run = RunTeller(story), await _start(story, model, "train.py", wanted)
    story.tell(f"POST …/custom/train                      {run['run_id']}, {run['status']}")
    async with asyncio.TaskGroup() as group:
        group.create_task(show_events(story.system.kafka_bootstrap_servers, run["run_id"], story.console))
        following = group.create_task(follow_run(story.api, run, teller))
    ended = await _succeeded(following.result())
    usage = ended["usage"] or {}
    peak_mb = (usage.get("peak_memory_bytes") or 0) / (1 << 20)
    story.tell(f"took {usage.get('wall_seconds')} s, {usage.get('cpu_seconds')} CPU seconds, at most {peak_mb:.0f} MB")
    story.console.print(metrics_table(teller.series))
    return Trained(ended, await _version_of(story.api, ended), _score(teller))


async def score_artifact(story: Story, trained: Trained) -> None:
    """Download the version's artifact and score it in a run of its own; it must score as it did in training.

    Raises:
        CliError: it does not load, or scores otherwise.
    """
    api, version = story.api, trained.version
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder, ARTIFACT_NAME)
        place = f"/versions/{version['version']}/artifact"
        sha256 = await api.download(f"/models/{trained.run['model_id']}{place}", artifact)
        story.tell(f"GET  …{place:<35} {artifact.stat().st_size:,} bytes, sha256 {sha256[:16]}…")
        if sha256 != version["sha256"]:
            raise CliError(f"the artifact's digest is {sha256}, and not {version['sha256']}")
        files = Files(EXAMPLE / "score.py", EXAMPLE / "wine.csv", (artifact,))
        scoring = await ready_model(api, "wine scoring", files)
    teller, run = RunTeller(story), await _start(story, scoring, "score.py", {"run_label": "demo: score"})
    ended = await _succeeded(await follow_run(api, run, teller))
    story.console.print(Text("  ").append_text(status_text(ended)))
    score = _score(teller)
    if score != trained.score or score < LEAST_SCORE:
        raise CliError(f"the artifact scored {score}; training said {trained.score}, and {LEAST_SCORE} is the least")
    story.tell(f"version {version['version']} scores {score:.4f} on the held-out wines, as it did in training")


async def show_audit(story: Story, trained: Trained) -> None:
    """Print the run's audit entries; exactly one says that it was started.

    Raises:
        CliError: there is none, or more than one.
    """
    action, run_id = "model.custom_training_started", trained.run["run_id"]
    started: list[Json] = []
    async with asyncio.timeout(VISIBLE_TIMEOUT_S):
        while not started:
            entries = (await story.api.get("/audit-log", run_id=run_id))["items"]
            started = [entry for entry in entries if entry["action"] == action]
            await asyncio.sleep(0 if started else POLL_S)
    for entry in reversed(entries):
        actor = entry["actor"] or "the system"
        story.tell(f"#{entry['index']}  {entry['occurred_at']}  {entry['action']:<32}  by {actor}")
    story.tell(f"hash {started[0]['hash'][:32]}… over the entry and the hash before it")
    if len(started) != 1:
        raise CliError(f"{len(started)} audit entries say that {run_id} was started")


async def leave_nothing_running(api: Api) -> None:
    """Cancel whatever is not ended, of this demo or of an interrupted one before it, and wait until it has ended."""
    async with asyncio.timeout(END_TIMEOUT_S):
        async for model in api.pages("/models", limit=200):
            last = model.get("last_run")
            if last and last["status"] not in ENDS:
                run = await api.get(f"/models/{model['model_id']}/runs/{last['run_id']}")
                await api.post(f"{path_of(run)}/cancel")
                while run["status"] not in ENDS:
                    await asyncio.sleep(POLL_S)
                    run = await api.get(path_of(run))


async def _start(story: Story, model: Json, entry_point: str, more: Json) -> Json:
    body = {"entry_point": entry_point, "runtime": RUNTIME, "compute": COMPUTE, **more}
    return await story.api.post(f"/models/{model['model_id']}/custom/train", body)


async def _succeeded(run: Json) -> Json:
    if run["status"] != "succeeded":
        why = run["message"] or run["reason"]
        raise CliError(f"{run['run_id']} ended {run['status']}: {why} (exit code {run['exit_code']})")
    return run


async def _version_of(api: Api, run: Json) -> Json:
    async for version in api.pages(f"/models/{run['model_id']}/versions"):
        if version["run_id"] == run["run_id"]:
            return version
    raise CliError(f"{run['run_id']} made no version: {run['reason']}")


def _score(teller: RunTeller) -> float:
    if not teller.series.get(SCORE):
        raise CliError(f"the script reported no {SCORE}")
    return teller.series[SCORE][-1]
