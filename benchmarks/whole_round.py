"""One whole round of four clients that train in no time (`python -m benchmarks whole_round`).

From the opening of a round to the publication of its model, which opens the next one: claims, pulls, checks, uploads,
the exact sum and publication, with the server in one process and the clients in another. Clients in plain HTTP send
bytes that were prepared before and look at nothing that they pull; those of the SDK run `participate`: they store and
check each model, decode it, and encode and hash each update.
"""

import asyncio
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks import disk
from benchmarks.measurements import Row, row
from benchmarks.server import OPERATOR_TOKEN, STORES, Server, fresh_server
from client_sdk.client import AggregatorClient
from client_sdk.operator import Operator
from client_sdk.participant import participate
from client_sdk.session.work import TrainedDelta, Trainer, TrainingTask
from client_sdk.transfer import body_of_tensors
from fl_protocol.runs import RunSpec
from fl_protocol.specs.rounds import RoundSpec

NUM_CLIENTS = 4
NUM_ROUNDS = {1_000_000: 9, 10_000_000: 6}

Values = NDArray[np.float32]


def measure() -> list[Row]:
    """Measures both sizes on each store."""
    return [
        measured
        for store in STORES
        for num_parameters, num_rounds in NUM_ROUNDS.items()
        for measured in _measure(store, num_parameters=num_parameters, num_rounds=num_rounds)
    ]


def _measure(store: str, *, num_parameters: int, num_rounds: int) -> list[Row]:
    values = np.random.default_rng(0).normal(scale=0.01, size=num_parameters).astype(np.float32)
    plain = _median_seconds(lambda: _hash_and_store(values), repetitions=5)
    database, blob_store = STORES[store]
    size = f"{store}, {num_parameters // 10**6}M parameters"
    what = f"hash and fsync of {NUM_CLIENTS} updates and a model ({plain:.3g} s)"
    rows = []
    with fresh_server(database, blob_store=blob_store) as server:
        for clients, take_part in CLIENTS.items():
            warm(values, num_rounds=num_rounds)
            seconds = asyncio.run(round_seconds(server, values, num_rounds=num_rounds, take_part=take_part))
            rows.append(row(f"{size}: whole round, {clients}", "s", seconds, of=plain, ratio_of=what))
        peak = server.peak_mebibytes()
    rows.append(row(f"{size}: peak memory", "MiB", [peak], of=values.nbytes / 2**20, ratio_of="one model"))
    return rows


def warm(values: Values, *, num_rounds: int) -> None:
    """Has the disk's blocks written that so many rounds will fill, and half as many beside."""
    disk.warm(values.nbytes * (NUM_CLIENTS + 1) * num_rounds * 3 // 2)


async def round_seconds(server: Server, values: Values, *, num_rounds: int, take_part: "TakePart") -> list[float]:
    """Gives how long each round took but the first, which warms up."""
    async with AggregatorClient(server.url, token=OPERATOR_TOKEN) as client:
        operator = Operator(client)
        spec = RunSpec(name="whole-round", num_rounds=num_rounds, round=RoundSpec(quorum=NUM_CLIENTS))
        run = await operator.create_run(spec, {"weight": np.zeros_like(values)})
        clients = [await operator.enrol(f"client-{number}") for number in range(NUM_CLIENTS)]
        taking_part = asyncio.create_task(
            take_part(server.url, run.run_id, values=values, tokens=[one.token for one in clients])
        )
        await client.start_run(run.run_id)
        await taking_part
        rounds = await operator.rounds(run.run_id)
    return [(one.completed_at - one.opened_at).total_seconds() for one in rounds[1:] if one.completed_at is not None]


class TakePart(Protocol):
    """Takes part in a run with each token until it is over."""

    async def __call__(self, url: str, run_id: str, *, values: Values, tokens: Sequence[str]) -> None: ...


async def plain_clients(url: str, run_id: str, *, values: Values, tokens: Sequence[str]) -> None:
    """Takes part in plain HTTP from a process of its own: `benchmarks.plain_participants`."""
    update = body_of_tensors({"weight": values}, {"num_examples": "1"})
    with tempfile.NamedTemporaryFile(prefix="fedquorum-bench-") as file:
        file.writelines(update.pieces())
        file.flush()
        arguments = ["-m", "benchmarks.plain_participants", url, run_id, file.name, *tokens]
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
        if await process.wait():
            raise RuntimeError("the clients in plain HTTP failed")


async def sdk_clients(url: str, run_id: str, *, values: Values, tokens: Sequence[str]) -> None:
    """Takes part with the SDK's `participate` in this process."""
    await asyncio.gather(
        *(
            _participate(url, token=token, run_id=run_id, trainer=_instant_trainer(values, number))
            for number, token in enumerate(tokens)
        )
    )


def _instant_trainer(values: Values, number: int) -> Trainer:
    delta = np.roll(values, number)

    def train(_task: TrainingTask) -> TrainedDelta:
        return TrainedDelta(tensors={"weight": delta}, num_examples=number + 1, metrics={"loss": 1.0})

    return train


async def _participate(url: str, *, token: str, run_id: str, trainer: Trainer) -> None:
    async with AggregatorClient(url, token=token) as client:
        await participate(client, run_id, trainer)


CLIENTS: Final[dict[str, TakePart]] = {"clients in plain HTTP": plain_clients, "the SDK's clients": sdk_clients}
"""Who takes part, by what the rows say: the server's time mostly, and that of a round as most will have it."""


def _hash_and_store(values: Values) -> None:
    data = values.tobytes()
    with tempfile.TemporaryDirectory(prefix="fedquorum-bench-") as folder:
        for number in range(NUM_CLIENTS + 1):
            hashlib.sha256(data).digest()
            with Path(folder, str(number)).open("wb", buffering=0) as file:
                file.write(data)
                os.fsync(file.fileno())


def _median_seconds(work: Callable[[], None], *, repetitions: int) -> float:
    seconds = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))
