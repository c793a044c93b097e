"""A whole federation on one machine: the real server in a process of its own, and as many clients as are asked for.

What runs is what a deployment runs, every byte goes over HTTP; only when clients ask is decided here, so that a
repetition with the same seeds gives the same models.
"""

import contextlib
import importlib.util
import secrets
import ssl
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import httpx
import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal

from client_sdk.client import AggregatorClient
from client_sdk.client.connection import Seams
from client_sdk.config import Limits
from client_sdk.controls import ControlStore
from client_sdk.errors import RunFailedError, UsageError
from client_sdk.local_server import running_server
from client_sdk.masked_round import Membership
from client_sdk.operator import Operator
from client_sdk.performer import Performer
from client_sdk.personal import PersonalTensors
from client_sdk.privacy.history import PrivacyHistory
from client_sdk.residuals import ResidualStore
from client_sdk.session import machine
from client_sdk.session.progress import Progress
from client_sdk.session.work import Evaluator, Trainer, TrainingResult, TrainingTask
from client_sdk.simulated_helpers import SimulatedHelpers
from fl_protocol.arrays import Tensor
from fl_protocol.rounds import Round, RoundState
from fl_protocol.runs import FINISHED_RUN_STATES, Run, RunSpec, RunState
from fl_protocol.tasks import EnrolledClient, EvaluationReport, TaskKind

MAX_CLIENTS: Final = 10_000

PAUSE_SECONDS: Final = 0.2
"""How long nobody asks after everybody was told that there is nothing to do."""

MAX_IDLE_CONNECTIONS: Final = 100

_LIMITS: Final = Limits(wait_seconds=0)

Measure = Callable[[Mapping[str, Tensor]], Mapping[str, float]]
"""Measures a global model, usually on held-out data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRound:
    """A completed round: the server's own account of it, and what `measure` said of its model."""

    round: Round
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What came of a simulated run: the completed rounds, and the last model with its digest."""

    run: Run
    rounds: tuple[SimulatedRound, ...]
    model: Mapping[str, Tensor]
    digest: str


def simulate(
    spec: RunSpec,
    initial_model: Mapping[str, Tensor] | bytes,
    trainers: Callable[[int], Trainer],
    *,
    num_clients: int,
    evaluators: Callable[[int], Evaluator] | None = None,
    attributes: Sequence[Mapping[str, str]] | None = None,
    measure: Measure | None = None,
    on_round: Callable[[SimulatedRound], None] | None = None,
    on_event: Callable[[Progress], None] | None = None,
    concurrency: int = 2,
    seed: int = 0,
) -> Simulation:
    """Runs a run to its end with `num_clients` clients against a real server, and waits; works in a notebook too.

    `trainers` (and `evaluators`) make client number i's trainer when it has a task, in a worker thread, and it is
    dropped after the task: what must outlive it belongs to the caller. At most `concurrency` clients work at once.
    Clients ask in an order drawn from `seed` for each pass and send in that order, so that with trainers that are
    functions of their task and `open` selection the same seed gives the same digest. A masked run's does not: its
    updates are rounded at random, and its clients send together, as a session needs all of them at once. The helpers of
    a run in helper mode work here too, with keys made for the simulation in place of the spec's. `measure` is
    called with each new model and `on_round` after each round, both in the calling thread; `on_event` with what clients
    tell, in another. `attributes` holds one mapping for each client. Raises a trainer's own error, RunFailedError
    with the server's reason, UsageError, or another FedQuorumError.
    """
    _check(num_clients, attributes=attributes, concurrency=concurrency)
    with tempfile.TemporaryDirectory(prefix="fedquorum-simulation-") as folder, start_blocking_portal() as portal:
        federation = _Federation(
            folder=Path(folder),
            portal=portal,
            trainers=trainers,
            evaluators=evaluators,
            concurrency=concurrency,
            order=np.random.default_rng(seed),
            on_event=on_event or _ignore,
        )
        with federation:
            portal.call(federation.enrol, num_clients, attributes)
            portal.call(federation.start, spec, initial_model)
            federation.start_helpers()
            measured: dict[int, Mapping[str, float]] = {}
            while (done := portal.call(federation.next_round)) is not None:
                model = {} if measure is None else portal.call(federation.model, done.result_version)
                measured[done.number] = {} if measure is None else dict(measure(model))
                if on_round is not None:
                    on_round(SimulatedRound(round=done, measured=measured[done.number]))
            return portal.call(federation.result, measured)


def _ignore(event: Progress) -> None:
    """Tells nobody."""


def _shared_transport() -> httpx.AsyncHTTPTransport:
    # One pool of connections for all clients, however many: each has a token of its own, none a socket of its own.
    # Members of a session wait for each other, so none may wait for another's connection.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=MAX_IDLE_CONNECTIONS)
    return httpx.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), limits=limits)


def _check(num_clients: int, *, attributes: Sequence[Mapping[str, str]] | None, concurrency: int) -> None:
    for name in ("fastapi", "uvicorn", "sqlalchemy"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"a simulation needs {name} (the extra [server]): pip install 'fedquorum[server]'")
    if not 1 <= num_clients <= MAX_CLIENTS:
        raise UsageError(f"num_clients {num_clients} must be 1 to {MAX_CLIENTS}")
    if concurrency < 1:
        raise UsageError(f"concurrency {concurrency} must be at least 1")
    if attributes is not None and len(attributes) != num_clients:
        raise UsageError(f"attributes has {len(attributes)} entries for {num_clients} clients; one for each is needed")


@dataclass(slots=True, kw_only=True)
class _Federation:
    """The server and its clients; every coroutine of it runs in the portal's event loop."""

    folder: Path
    portal: BlockingPortal
    trainers: Callable[[int], Trainer]
    evaluators: Callable[[int], Evaluator] | None
    concurrency: int
    order: np.random.Generator
    on_event: Callable[[Progress], None]
    operator: Operator = field(init=False)
    helpers: SimulatedHelpers = field(init=False)
    run: Run = field(init=False)
    address: str = ""
    performers: list[Performer] = field(default_factory=list)
    enrolled: list[EnrolledClient] = field(default_factory=list)
    num_completed: int = 0
    opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    transport: httpx.AsyncHTTPTransport = field(default_factory=_shared_transport)
    pulling: anyio.Lock = field(default_factory=anyio.Lock)

    def __enter__(self) -> Self:
        token = secrets.token_urlsafe(32)
        server = self.portal.wrap_async_context_manager(running_server(self.folder, token))
        self.address = self.opened.enter_context(server)
        self.operator = Operator(self._client(token))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self.opened:
            self.portal.call(self.operator.client.aclose)

    async def enrol(self, num_clients: int, attributes: Sequence[Mapping[str, str]] | None) -> None:
        """Enrols the clients under the names client-0, client-1, ..."""
        for index in range(num_clients):
            enrolled = await self.operator.enrol(
                f"client-{index}", attributes=None if attributes is None else attributes[index]
            )
            self.enrolled.append(enrolled)

    async def start(self, spec: RunSpec, initial_model: Mapping[str, Tensor] | bytes) -> None:
        self.helpers = SimulatedHelpers.of(spec, self.folder)
        spec = self.helpers.spec
        self.run = await self.operator.start_run(spec, initial_model)
        self.performers = [self._performer(index, enrolled) for index, enrolled in enumerate(self.enrolled)]

    def start_helpers(self) -> None:
        """Lets the helpers of a run in helper mode wait for its rounds."""
        clients = {enrolled.client_id: self._state_dir(index) for index, enrolled in enumerate(self.enrolled)}
        self.helpers.start(self.portal, self.operator.client, self._client, clients=clients)
        self.opened.callback(self.helpers.stop)

    async def next_round(self) -> Round | None:
        """Lets clients work until one more round has completed; None when the run is over."""
        while True:
            self.helpers.check()
            run = await self.operator.client.get_run(self.run.run_id)
            following = self.num_completed + 1
            found = await self.operator.client.get_round(run.run_id, min(following, run.current_round))
            if found.number == following and found.state is RoundState.COMPLETED:
                self.num_completed += 1
                return found
            if run.state in FINISHED_RUN_STATES:
                _check_completed(run)
                return None
            if found.state is RoundState.AGGREGATING:
                version = found.base_version
                await self.operator.client.wait_for_model(run.run_id, self.folder, after=version, wait_seconds=1)
            elif not await self._everyone_asks():
                await anyio.sleep(PAUSE_SECONDS)

    async def model(self, version: int | None) -> dict[str, Tensor]:
        return await self.operator.result(self.run.run_id, self.folder, version=version)

    async def result(self, measured: Mapping[int, Mapping[str, float]]) -> Simulation:
        rounds = await self.operator.rounds(self.run.run_id)
        final = await self.operator.download(self.run.run_id, self.folder)
        return Simulation(
            run=await self.operator.client.get_run(self.run.run_id),
            rounds=tuple(
                SimulatedRound(round=done, measured=measured.get(done.number, {}))
                for done in rounds
                if done.state is RoundState.COMPLETED
            ),
            model=await self.model(final.version),
            digest=final.digest,
        )

    async def _everyone_asks(self) -> bool:
        """Lets every client ask once, in a drawn order, until a whole cohort has tasks, and work; False if none had."""
        pulls: list[tuple[Performer, machine.Pull]] = []
        num_training = 0
        for index in self.order.permutation(len(self.performers)):
            performer = self.performers[index]
            action = await performer.perform(machine.Claim())
            if isinstance(action, machine.Review):
                action = await performer.perform(action)
            if isinstance(action, machine.GiveUp):
                await performer.perform(action)
            elif isinstance(action, machine.Pull):
                pulls.append((performer, action))
                num_training += action.task.kind is TaskKind.TRAIN
            if isinstance(action, machine.Finish) or num_training == self.run.spec.round.cohort_size:
                break
        try:
            await self._work(pulls)
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        return bool(pulls)

    async def _work(self, pulls: Sequence[tuple[Performer, machine.Pull]]) -> None:
        slots, before = anyio.Semaphore(self.concurrency), anyio.Event()
        before.set()
        async with anyio.create_task_group() as workers:
            for performer, pull in pulls:
                await slots.acquire()
                after = anyio.Event()
                workers.start_soon(_Turn(performer, self.pulling, before, after, slots).take, pull)
                before = after

    def _client(self, token: str) -> AggregatorClient:
        return AggregatorClient(self.address, token=token, limits=_LIMITS, seams=Seams(transport=self.transport))

    def _state_dir(self, index: int) -> Path:
        return self.folder / "states" / str(index)

    def _performer(self, index: int, enrolled: EnrolledClient) -> Performer:
        evaluators = self.evaluators
        session = machine.ParticipantSession(
            self.run.run_id,
            can_evaluate=evaluators is not None,
            has_folder=True,
            structure=None,
            max_model_bytes=_LIMITS.max_model_bytes,
        )

        def train(task: TrainingTask) -> TrainingResult:
            return self.trainers(index)(task)

        def evaluate(task: TrainingTask) -> EvaluationReport:
            if evaluators is None:
                raise UsageError("the simulation was given no evaluators")
            return evaluators(index)(task)

        state_dir = self._state_dir(index)
        return Performer(
            client=self._client(enrolled.token),
            run_id=self.run.run_id,
            session=session,
            trainer=train,
            evaluator=None if evaluators is None else evaluate,
            folder=self.folder,
            controls=ControlStore(state_dir, self.run.run_id),
            personal=PersonalTensors(self.run.run_id, None),
            residuals=ResidualStore(self.run.run_id, None),
            history=PrivacyHistory(self.run.run_id, None),
            membership=Membership(state_dir=state_dir, client_id=enrolled.client_id),
            tell=self.on_event,
        )


@dataclass(frozen=True, slots=True)
class _Turn:
    """One task's work; it holds its slot until its answer is sent, so that no more answers wait than slots are.

    Only a masked update waits without one: for all the others of its session.
    """

    performer: Performer
    pulling: anyio.Lock
    before: anyio.Event
    after: anyio.Event
    slots: anyio.Semaphore

    async def take(self, pull: machine.Pull) -> None:
        # The clients share one copy of the model: the first one downloads it.
        async with self.pulling:
            work = await self.performer.perform(pull)
            if isinstance(work, machine.PullControls):
                work = await self.performer.perform(work)
        answer = await self.performer.perform(work)
        if isinstance(answer, machine.Aggregate):
            self.after.set()
            self.slots.release()
            following = await self.performer.perform(answer)
            if isinstance(following, machine.GiveUp):
                await self.performer.perform(following)
            return
        await self.before.wait()
        await self.performer.perform(answer)
        self.after.set()
        self.slots.release()


def _check_completed(run: Run) -> None:
    if run.state is not RunState.COMPLETED:
        raise RunFailedError(f"run {run.name} is {run.state}: {run.reason or 'no reason was given'}")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
