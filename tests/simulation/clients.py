"""The clients: they submit, repeat after unknown outcomes, cancel, and write down what they were told."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.parts import Compute
from tests.simulation.database import Unavailable
from tests.simulation.registry import OutcomeUnknown, Refused, Registry, Submission, request_for
from tests.simulation.watching import Watch
from tests.simulation.world import Process, Steps, World

TRIES = 40


class NoAnswer(Exception):
    """The connection broke, or nobody listens."""


@dataclass(slots=True)
class Call:
    """A request that an api process is working on."""

    answer: str | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Client:
    """One client with its own random plan."""

    world: World
    apis: Sequence[Registry]
    models: Sequence[str]
    watch: Watch
    name: str
    submissions: int
    done: bool = False
    mine: list[str] = field(default_factory=list)

    def run(self) -> Steps[None]:
        """Submit now and then; sometimes change one's mind."""
        random = self.world.random
        for number in range(self.submissions):
            yield random.random() * random.choice((0.1, 5.0, self.world.faults.storm_s / self.submissions))
            wanted = self._wanted(number)
            run_id = yield from self._submit(wanted)
            if run_id is not None and random.random() < 0.2:
                yield random.choice((0.0, 2.0, 10.0)) * random.random()
                yield from self._cancel(run_id)
        self.done = True

    def _wanted(self, number: int) -> Submission:
        random = self.world.random
        compute = Compute(cpu_cores=random.choice((1, 1, 2, 3)), memory_gb=1)
        key = f"{self.name}-{number}" if random.random() < 0.6 else None
        model_id = self.models[0] if random.random() < 0.2 else random.choice(self.models)
        return Submission(model_id, request_for(compute, random.choice((5, 20, 60))), key)

    def _submit(self, wanted: Submission) -> Steps[str | None]:
        """Submit until there is an answer; without a key a repetition may be refused by what came of the first."""
        for _ in range(TRIES):
            api = self.world.random.choice(self.apis)
            try:
                run_id = yield from self._call(api.process, api.submit(wanted))
            except Refused:
                yield 3.0 * self.world.random.random()
            except (NoAnswer, OutcomeUnknown, Unavailable):
                yield 1.0
            else:
                self.watch.on_accepted(run_id, wanted.model_id, wanted.key)
                return run_id
        return None

    def _cancel(self, run_id: str) -> Steps[None]:
        for _ in range(TRIES):
            api = self.world.random.choice(self.apis)
            try:
                yield from self._call(api.process, self._cancelling(api, run_id))
            except (NoAnswer, Unavailable):
                yield 1.0
            else:
                return

    def _cancelling(self, api: Registry, run_id: str) -> Steps[str]:
        yield from api.cancel(run_id)
        return run_id

    def _call(self, process: Process, work: Steps[str]) -> Steps[str]:
        """Let an api process do the work; if it dies meanwhile nobody knows what became of it."""
        if not process.up:
            raise NoAnswer
        call, life = Call(), process.life
        process.spawn("request", self._serve(call, work))
        while call.answer is None and call.error is None:
            if not process.up or process.life != life:
                raise NoAnswer
            yield 0.1
        if call.error is not None:
            raise call.error
        assert call.answer is not None
        return call.answer

    def _serve(self, call: Call, work: Steps[str]) -> Steps[None]:
        try:
            call.answer = yield from work
        except (Refused, OutcomeUnknown, Unavailable) as error:
            call.error = error
