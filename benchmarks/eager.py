"""From the last update to the new model, 2 and 50 updates of 10M parameters (`python -m benchmarks eager`).

The server's own times: from the transaction that counts the last update to the one that publishes the model.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import TENSORS, Call, Load
from benchmarks.measurements import Row, row
from benchmarks.server import BLOB_STORES, OPERATOR_TOKEN, Server, fresh_server
from fl_protocol.arrays import encode
from fl_protocol.rounds import Round

NUM_ELEMENTS = 10_000_000
FEW, MANY = 2, 50
IN_FLIGHT = 4
NUM_ROUNDS = {FEW: 6, MANY: 3}
SECONDS_TO_WAIT = 60


def measure() -> list[Row]:
    """Measures both numbers of updates on SQLite, with chunks in the database and with files."""
    return [measured for blob_store in BLOB_STORES for measured in _measure(blob_store)]


def _measure(blob_store: str) -> list[Row]:
    seconds, peaks = {}, {}
    values = np.random.default_rng(0).normal(scale=0.01, size=NUM_ELEMENTS).astype(np.float32)
    for num_updates in (FEW, MANY):
        with fresh_server("sqlite", blob_store=blob_store) as server:
            seconds[num_updates] = asyncio.run(seconds_to_model(server, values, num_updates=num_updates))
            peaks[num_updates] = server.peak_mebibytes()
    few, lowest = float(np.median(seconds[FEW])), peaks[FEW]
    return [
        *(
            row(f"{blob_store}, {count} updates: last one to new model", "s", each, of=few, ratio_of=f"{FEW} updates")
            for count, each in seconds.items()
        ),
        *(
            row(f"{blob_store}, {count} updates: peak memory", "MiB", [peak], of=lowest, ratio_of=f"{FEW} updates")
            for count, peak in peaks.items()
        ),
    ]


async def seconds_to_model(server: Server, values: NDArray[np.float32], *, num_updates: int) -> list[float]:
    """Gives the time of each round but the first, which warms up."""
    async with Load(server.url, in_flight=IN_FLIGHT) as load:
        names = [{"name": f"client-{number}"} for number in range(num_updates)]
        answers = await load.send([_operator("POST", "/v1/clients", name) for name in names])
        tokens = [answer.json()["token"] for answer in answers]
        spec = {"name": "eager", "num_rounds": NUM_ROUNDS[num_updates] + 1, "round": {"quorum": num_updates}}
        run_id = (await load.one(_operator("POST", "/v1/runs", spec))).json()["run_id"]
        model = b"".join(encode({"weight": np.zeros_like(values)}, {}))
        path = f"/v1/runs/{run_id}/models/0"
        await load.one(Call(method="PUT", path=path, token=OPERATOR_TOKEN, body=model, media_type=TENSORS))
        await load.one(_operator("POST", f"/v1/runs/{run_id}/start", {}))
        for _ in range(NUM_ROUNDS[num_updates]):
            await _send_updates(load, await _claim(load, run_id, tokens), tokens, values=values)
        # A task of one more round is there as soon as the last model is.
        await _claim(load, run_id, tokens[:1])
        listed = (await load.one(_operator("GET", f"/v1/runs/{run_id}/rounds", {}))).json()["items"]
    ended = [Round.model_validate(one) for one in listed]
    return [
        (one.completed_at - one.closed_at).total_seconds()
        for one in ended
        if one.number > 1 and one.completed_at is not None and one.closed_at is not None
    ]


async def _claim(load: Load, run_id: str, tokens: Sequence[str]) -> list[str]:
    path = f"/v1/runs/{run_id}/tasks?wait={SECONDS_TO_WAIT}"
    answers = await load.send([Call(method="POST", path=path, token=token) for token in tokens])
    return [answer.json()["task_id"] for answer in answers]


async def _send_updates(
    load: Load, tasks: Sequence[str], tokens: Sequence[str], *, values: NDArray[np.float32]
) -> None:
    """Sends the updates so many at a time, so that this process holds no more of them than are under way."""
    for begin in range(0, len(tasks), IN_FLIGHT):
        numbers = range(begin, min(begin + IN_FLIGHT, len(tasks)))
        bodies = [b"".join(encode({"weight": np.roll(values, at)}, {"num_examples": str(at + 1)})) for at in numbers]
        await load.send(
            [
                Call(
                    method="PUT",
                    path=f"/v1/tasks/{tasks[at]}/update",
                    token=tokens[at],
                    body=body,
                    media_type=TENSORS,
                )
                for at, body in zip(numbers, bodies, strict=True)
            ]
        )


def _operator(method: str, path: str, fields: dict[str, Any]) -> Call:
    return Call(method=method, path=path, token=OPERATOR_TOKEN, body=json.dumps(fields).encode())
