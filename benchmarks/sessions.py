"""Whole masked sessions over HTTP, from the round's opening to its model (`python -m benchmarks sessions`).

Clients of the SDK that train in no time, all in one process; the server in another, on SQLite.
"""

import asyncio
import contextlib
import functools
import itertools
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import anyio
import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.measurements import Row, row
from benchmarks.server import OPERATOR_TOKEN, Server, fresh_server
from client_sdk.client import AggregatorClient, Seams
from client_sdk.operator import Operator
from client_sdk.participant import participate
from client_sdk.session.progress import Progress, SessionAdvanced, SessionJoined, TrainingFinished
from client_sdk.session.work import TrainedDelta, TrainingTask
from fl_protocol.masked_vectors import ring_of
from fl_protocol.rounds import Round
from fl_protocol.runs import RunSpec
from fl_protocol.sessions import SessionState
from fl_protocol.tasks import EnrolledClient

Values = NDArray[np.float32]

PHASES: Final = (SessionState.SHARES, SessionState.INPUT, SessionState.CONSISTENCY, SessionState.UNMASK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A session that is measured: `num_vanish` clients are gone after their shares, `num_slow` dawdle at each phase."""

    num_clients: int
    num_parameters: int
    num_vanish: int = 0
    num_slow: int = 0
    repetitions: int = 3
    phase_seconds: float = 60.0

    @property
    def name(self) -> str:
        size = self.num_parameters
        shown = f"{size // 10**6}M" if size >= 10**6 else f"{size // 1000}k"
        return f"{self.num_clients} clients, {shown} parameters"

    @property
    def spec(self) -> RunSpec:
        stay, count = self.num_clients - self.num_vanish, self.num_clients
        masked = {"kind": "pairwise", "phase_seconds": self.phase_seconds, "min_bytes_per_second": 1e9}
        return RunSpec.model_validate(
            {
                "name": "sessions",
                "num_rounds": 1,
                "round": {"quorum": stay, "cohort_size": count},
                "secure_aggregation": masked,
            }
        )


SMALL: Final = 1000
SLOWEST_SECONDS: Final = 2.0
SCENES: Final = (
    Scene(num_clients=10, num_parameters=1_000_000),
    Scene(num_clients=100, num_parameters=110_000, num_vanish=10, repetitions=1, phase_seconds=15.0),
)


class Vanished(BaseException):
    """A client is gone."""


@dataclass(slots=True)
class Session:
    """What was seen of one session: when each client had done what, bytes on the wire, seconds of the processor."""

    begun: float = 0.0
    round: Round | None = None
    done: dict[str, list[float]] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    server_seconds: float = 0.0
    client_seconds: float = 0.0

    def note(self, what: str) -> None:
        self.done.setdefault(what, []).append(time.monotonic() - self.begun)

    def last(self, what: str) -> float:
        return max(self.done[what])

    @property
    def seconds(self) -> float:
        ended = None if self.round is None else self.round.completed_at
        if self.round is None or ended is None:
            raise RuntimeError("the round was not completed")
        return (ended - self.round.opened_at).total_seconds()


class Wire(httpx.AsyncBaseTransport):
    """A client's connection, which counts the bytes of bodies; a slow client's waits before each of its messages."""

    def __init__(self, *, is_slow: bool) -> None:
        self._inner = httpx.AsyncHTTPTransport(verify=False)
        self._is_slow = is_slow
        self.sent = 0
        self.received = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if "/sessions/" in request.url.path or request.url.path.endswith("/seat"):
            if request.method == "PUT":
                if self._is_slow:
                    await asyncio.sleep(random.uniform(0, SLOWEST_SECONDS))
                self.sent += int(request.headers.get("content-length", 0))
            answer = await self._inner.handle_async_request(request)
            self.received += int(answer.headers.get("content-length", 0))
            return answer
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def measure() -> list[Row]:
    """Measures every scene on a server of its own."""
    return [one for scene in SCENES for one in measured(scene)]


def measured(scene: Scene) -> Iterator[Row]:
    """Measures one scene: how long and where, what it took of the processors and of the server's memory, bytes sent."""
    with fresh_server("sqlite") as server, tempfile.TemporaryDirectory(prefix="fedquorum-bench-") as folder:
        # A session of hardly any parameters, so that what every session needs is not counted as this one's.
        small = replace(scene, num_parameters=SMALL, num_vanish=0, num_slow=0, repetitions=1)
        asyncio.run(_sessions(small, server, Path(folder, "small")))
        base = server.peak_mebibytes()
        sessions = asyncio.run(_sessions(scene, server, Path(folder, "measured")))
        peak = server.peak_mebibytes()
    kind = scene.name
    kind += f", {scene.num_vanish} vanish" if scene.num_vanish else ""
    kind += f", {scene.num_slow} slow by up to {SLOWEST_SECONDS:g} s" if scene.num_slow else ""
    whole = [one.seconds for one in sessions]
    yield row(f"{kind}: whole round", "s", whole)
    yield from _phases(kind, sessions)
    yield row(f"{kind}: server's processor", "s", [one.server_seconds for one in sessions])
    each = [one.client_seconds / scene.num_clients for one in sessions]
    yield row(f"{kind}: one client's processor", "s", each)
    accumulator = ring_of(scene.spec).dtype.itemsize * scene.num_parameters / 2**20
    yield row(
        f"{kind}: server's peak memory beyond {base:.0f} MiB",
        "MiB",
        [peak - base],
        of=accumulator,
        ratio_of="accumulator",
    )
    yield row(
        f"{kind}: sent by a client",
        "bytes a parameter",
        [max(one.sent) / scene.num_parameters for one in sessions],
        of=4,
        ratio_of="4 bytes",
    )


def _phases(kind: str, sessions: Sequence[Session]) -> Iterator[Row]:
    """Gives from when the last client had done one thing to when the last one had done the next."""
    steps = ["trained", "seated", *PHASES]
    for before, after in itertools.pairwise(steps):
        yield row(f"{kind}: {after}", "s", [one.last(after) - one.last(before) for one in sessions])
    ends = [one.seconds - one.last(PHASES[-1]) for one in sessions]
    yield row(f"{kind}: sum and model", "s", ends)


async def _sessions(scene: Scene, server: Server, folder: Path) -> list[Session]:
    values = np.random.default_rng(0).normal(scale=1e-3, size=scene.num_parameters).astype(np.float32)
    async with AggregatorClient(server.url, token=OPERATOR_TOKEN) as client:
        operator = Operator(client)
        enrolled = [await operator.enrol(f"client-{number}") for number in range(scene.num_clients)]
        return [
            await _session(scene, server, operator, enrolled=enrolled, values=values, folder=folder)
            for _ in range(scene.repetitions)
        ]


async def _session(
    scene: Scene,
    server: Server,
    operator: Operator,
    *,
    enrolled: Sequence[EnrolledClient],
    values: Values,
    folder: Path,
) -> Session:
    session = Session()
    run = await operator.create_run(scene.spec, {"weight": np.zeros_like(values)})
    server_before, own_before = server.processor_seconds(), time.process_time()
    session.begun = time.monotonic()
    await operator.client.start_run(run.run_id)
    async with anyio.create_task_group() as clients:
        for number, one in enumerate(enrolled):
            call = functools.partial(_take_part, scene, session, url=server.url, run_id=run.run_id, number=number)
            clients.start_soon(functools.partial(call, one, values=values, folder=folder / str(number)))
    session.round = (await operator.rounds(run.run_id))[0]
    session.server_seconds = server.processor_seconds() - server_before
    session.client_seconds = time.process_time() - own_before
    return session


async def _take_part(
    scene: Scene,
    session: Session,
    enrolled: EnrolledClient,
    *,
    url: str,
    run_id: str,
    number: int,
    values: Values,
    folder: Path,
) -> None:
    wire = Wire(is_slow=number >= scene.num_clients - scene.num_slow)

    def train(_task: TrainingTask) -> TrainedDelta:
        return TrainedDelta(tensors={"weight": values}, num_examples=100)

    def tell(event: Progress) -> None:
        match event:
            case TrainingFinished():
                session.note("trained")
            case SessionJoined():
                session.note("seated")
            case SessionAdvanced(phase=phase):
                session.note(phase)
                if number < scene.num_vanish and phase is SessionState.SHARES:
                    raise Vanished

    with contextlib.suppress(Vanished):
        async with AggregatorClient(url, token=enrolled.token, seams=Seams(transport=wire)) as client:
            await participate(client, run_id, train, state_dir=folder, client_id=enrolled.client_id, on_event=tell)
        session.sent.append(wire.sent)
        session.received.append(wire.received)
