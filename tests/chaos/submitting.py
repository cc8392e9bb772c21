"""Clients of the REST API that go on through faults and write down what they were told: the checker believes only that.

A client repeats a request under its Idempotency-Key until the answer is definite. Owns the scripts that are submitted
and the clients' ledger (JSON lines); never looks anywhere but at the API's answers.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import httpx

from tests.chaos.evidence import Told

WRITE = 'import os, pathlib\npathlib.Path(os.environ["MODEL_OUTPUT_PATH"]).write_text(os.environ["RUN_ID"])\n'
NAP = "import time\ntime.sleep({seconds})\n"
METRICS = """
import json, os
with open(os.environ["METRICS_PATH"], "a") as metrics:
    for step in range(20):
        print("step", step, flush=True)
        print(json.dumps({"name": "loss", "value": 1 / (step + 1), "step": step}), file=metrics, flush=True)
"""
TATTLES = """
import json, sys
key = os.environ["API_KEY"]
print("my key is", key, flush=True)
print("oh", key, file=sys.stderr, flush=True)
with open(os.environ["METRICS_PATH"], "a") as metrics:
    print(json.dumps({"name": f"loss of {key}", "value": 1}), file=metrics, flush=True)
with open(os.environ["FAILURE_PATH"], "w") as failure:
    print("could not log in with", key, file=failure)
"""
GOES_ON = """
import os, pathlib, time
state = pathlib.Path(os.environ["CHECKPOINT_PATH"]) / "state"
if os.environ["RESUME"] == "0":
    state.with_suffix(".new").write_text("half of the way")
    state.with_suffix(".new").replace(state)
    time.sleep(600)
assert state.read_text() == "half of the way"
"""
SCRIPTS: dict[str, str] = {
    "model": NAP.format(seconds=0.3) + WRITE,
    "talks": METRICS + NAP.format(seconds=0.5) + WRITE,
    "no_artifact": 'print("nothing to keep")\n',
    "secret": 'import os\nassert len(os.environ["API_KEY"]) > 20\n' + TATTLES + NAP.format(seconds=1) + WRITE,
    "fails": NAP.format(seconds=0.2) + 'raise SystemExit("on purpose")\n',
    "times_out": NAP.format(seconds=600),
    "long": METRICS + NAP.format(seconds=15) + WRITE,
    "cancelled": NAP.format(seconds=30) + WRITE,
    "goes_on": GOES_ON + WRITE,
}
WEIGHTS = {"model": 8, "talks": 4, "no_artifact": 3, "secret": 3, "fails": 3, "times_out": 2, "long": 2, "cancelled": 2}
TIMEOUTS_S = {"times_out": 6, "cancelled": 60}
DEFAULT_TIMEOUT_S = 60
GRACE_S = 2
REQUEST_TIMEOUT_S = 10.0
RETRY_S = 0.2
OK, REPEATABLE = range(200, 300), (429, 500, 502, 503, 504)


class Book:
    """The clients' ledger: a file of JSON lines, and the same in memory."""

    def __init__(self, path: Path) -> None:
        self.lines: list[Told] = []
        self._path = path

    def write(self, told: Told) -> None:
        """Write down an answer."""
        self.lines.append(told)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(told)) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Book":
        """Read what an earlier process wrote."""
        book = cls(path)
        book.lines = [Told(**json.loads(line)) for line in path.read_text().splitlines()]
        return book

    def accepted(self) -> list[Told]:
        """List what was accepted, each run once."""
        return list({told.run_id: told for told in self.lines if told.outcome == "accepted"}.values())


@dataclass(frozen=True, slots=True)
class Order:
    """A submission: which script, under which key, with which variables."""

    number: int
    key: str
    script: str
    variables: Mapping[str, str]
    cancel_after_s: float | None = None
    cpu_cores: int = 1
    requirements: str = ""

    @property
    def timeout_s(self) -> int:
        """The run's time limit."""
        return TIMEOUTS_S.get(self.script, DEFAULT_TIMEOUT_S)


def orders(random: Random, count: int, canary: str) -> list[Order]:
    """Draw what is submitted: each kind of script by its weight, the first ones all different.

    Args:
        random: the seed's.
        count: how many.
        canary: the secret that the variables of `secret` hold.
    """
    kinds = list(WEIGHTS)
    drawn = (kinds + random.choices(kinds, list(WEIGHTS.values()), k=count))[:count]
    return [
        Order(
            number=number,
            key=f"{random.getrandbits(64):016x}",
            script=script,
            variables={"API_KEY": canary} if script == "secret" else {},
            cancel_after_s=random.uniform(0, 6) if script == "cancelled" else None,
        )
        for number, script in enumerate(drawn)
    ]


class Submitter:
    """One client; several tasks may use it side by side."""

    def __init__(self, url: str, token: Callable[[], str], book: Book) -> None:
        self._token = token
        self._http = httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S)
        self._dataset_id: str | None = None
        self._dataset_lock = asyncio.Lock()
        self._models: dict[str, str] = {}
        self._until = float("inf")
        self.book = book

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()

    def give_up_at(self, monotonic: float) -> None:
        """Stop repeating requests at a time of the monotonic clock; what is open then stays unknown."""
        self._until = monotonic

    async def prepare(self, order: Order) -> str:
        """Make a model with the order's script, unless it is there; returns its id."""
        if order.key not in self._models:
            self._models[order.key] = await self._model(order)
        return self._models[order.key]

    async def submit(self, order: Order) -> Told:
        """Submit a run of the order's model and write down the answer; cancel it if so ordered."""
        told = await self._train(order, await self.prepare(order))
        if told.outcome == "accepted" and order.cancel_after_s is not None:
            await asyncio.sleep(order.cancel_after_s)
            await self.cancel(order, told)
        return told

    async def get(self, path: str) -> httpx.Response:
        """Ask for something once."""
        return await self._http.get(path, headers=self._headers())

    async def _model(self, order: Order) -> str:
        body = {"name": f"chaos {order.number}", "model_type": "custom", "dataset_id": await self._dataset()}
        made = await self._persistently("/api/v1/models", _beside("model", order), json=body)
        model_id = str(made.json()["model_id"])
        script = f"# {order.key}\n{SCRIPTS[order.script]}"  # of its own, so that it is in no cache
        files = {"file": ("train.py", script.encode())}
        path = f"/api/v1/models/{model_id}/assets"
        await self._persistently(path, _beside("asset", order), files=files, data={"asset_type": "script"})
        if order.requirements:
            files = {"file": ("requirements.txt", order.requirements.encode())}
            data = {"asset_type": "requirements"}
            await self._persistently(path, _beside("requirements", order), files=files, data=data)
        return model_id

    async def _dataset(self) -> str:
        async with self._dataset_lock:
            if self._dataset_id is None:
                made = await self._persistently("/api/v1/datasets", _beside("the-dataset"), json={"name": "numbers"})
                dataset_id = str(made.json()["dataset_id"])
                while not await self._put(f"/api/v1/datasets/{dataset_id}/content?filename=numbers.csv"):  # noqa: ASYNC110
                    await asyncio.sleep(RETRY_S)
                self._dataset_id = dataset_id
            return self._dataset_id

    async def _put(self, path: str) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            answer = await self._http.put(path, content=b"a,b\n1,2\n", headers=self._headers())
            return answer.is_success
        return False

    async def _train(self, order: Order, model_id: str) -> Told:
        body = {
            "entry_point": "train.py",
            "runtime": "python3.11",
            "compute": {"cpu_cores": order.cpu_cores, "memory_gb": 1},
            "timeout_seconds": order.timeout_s,
            "grace_period_seconds": GRACE_S,
            "environment_vars": dict(order.variables),
        }
        asked = Told(0.0, "unknown", order.key, order.script, model_id=model_id)
        answer = await self._persistently(f"/api/v1/models/{model_id}/custom/train", asked, json=body)
        return self._note(order, model_id, answer)

    async def cancel(self, order: Order, told: Told) -> None:
        """Ask for a run to be stopped, and write down that it was asked."""
        path = f"/api/v1/models/{told.model_id}/runs/{told.run_id}/cancel"
        asked = _beside("cancel", order)
        self.book.write(Told(time.time(), "cancelling", asked.key, run_id=told.run_id))
        await self._persistently(path, asked, json={})

    async def _persistently(self, path: str, asked: Told, **request: Any) -> httpx.Response:
        """Post under one key until the answer is definite; `asked` is what is written down of each that is not.

        Raises:
            TimeoutError: it was still unknown when the client had to give up.
        """
        headers = self._headers() | {"Idempotency-Key": asked.key}
        while time.monotonic() < self._until:
            try:
                answer = await self._http.post(path, headers=headers, **request)
            except httpx.HTTPError as error:
                self._note_unknown(asked, None, type(error).__name__)
            else:
                if answer.status_code not in REPEATABLE:
                    return answer
                self._note_unknown(asked, answer, answer.text[:200])
            await asyncio.sleep(RETRY_S)
        raise TimeoutError(f"{path} was not answered")

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token()}"}

    def _note(self, order: Order, model_id: str, answer: httpx.Response) -> Told:
        body = answer.json()
        told = Told(
            at=time.time(),
            outcome="accepted" if answer.status_code == httpx.codes.ACCEPTED else "refused",
            key=order.key,
            script=order.script,
            status=answer.status_code,
            run_id=body.get("run_id"),
            model_id=model_id,
            timeout_s=order.timeout_s,
            problem=None if answer.is_success else answer.text[:200],
        )
        self.book.write(told)
        return told

    def _note_unknown(self, asked: Told, answer: httpx.Response | None, problem: str) -> None:
        status = answer.status_code if answer is not None else None
        self.book.write(replace(asked, at=time.time(), status=status, problem=problem))


def _beside(what: str, order: Order | None = None) -> Told:
    """What is written down of a request that makes no run while its outcome is not known."""
    return Told(0.0, "unanswered", f"{order.key}-{what}" if order else what, order.script if order else "")
