"""10,000 clients that wait on one process, and how soon they hear of it (`python -m benchmarks long_polls`).

Seconds from the request that changes something to the last answer. The plain thing is uvicorn that holds as many
requests on one event, with the same clients.
"""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.load import TENSORS, Answer, Call, Load
from benchmarks.measurements import Row, row
from benchmarks.server import OPERATOR_TOKEN, Server, fresh_server, listening_process
from benchmarks.waiting import Waiting, allow_descriptors
from fl_protocol.arrays import encode

NUM_CLIENTS: Final = 10_000
SMALL_COHORT: Final = 10
LARGE_COHORT: Final = 4096
WAIT_SECONDS: Final = 60
NUM_ELEMENTS: Final = 1000
_SPARE_DESCRIPTORS: Final = 200
_ALL_WAIT_SECONDS: Final = 50.0
_WAKE: Final = Call(method="POST", path="/wake", token="")
_COUNT: Final = Call(method="POST", path="/", token="")
_HOLD: Final = Call(method="GET", path="/", token="")


def measure() -> list[Row]:
    """Measures the plain thing and the server on SQLite."""
    allow_descriptors(NUM_CLIENTS + _SPARE_DESCRIPTORS)
    with _bare() as server:
        plain = asyncio.run(_measure_bare(server.url))
    with fresh_server("sqlite") as server:
        seconds = asyncio.run(measure_server(server.url, num_clients=NUM_CLIENTS, large_cohort=LARGE_COHORT))
        peak = server.peak_mebibytes()
    bare = f"one event in uvicorn ({plain:.2f} s)"
    rows = [row(name, "s", [each], of=plain, ratio_of=bare) for name, each in seconds.items()]
    return [*rows, row(f"server's peak memory, {NUM_CLIENTS} waiting", "MiB", [peak])]


async def measure_server(url: str, *, num_clients: int, large_cohort: int) -> dict[str, float]:
    """Gives the seconds until the last of those who wait has its answer, by what they wait for."""
    async with Load(url, in_flight=32) as load:
        enrolments = [_operator("POST", "/v1/clients", {"name": f"client-{each}"}) for each in range(num_clients)]
        tokens = [answer.json()["token"] for answer in await load.send(enrolments)]
    seconds = {}
    for cohort_size in (SMALL_COHORT, large_cohort):
        run_id = await _draft(url, quorum=cohort_size)
        path = f"/v1/runs/{run_id}/tasks?wait={WAIT_SECONDS}"
        async with Waiting(url, [Call(method="POST", path=path, token=token) for token in tokens]) as waiting:
            await _all_wait(url, num_clients)
            start, stop = (_operator("POST", f"/v1/runs/{run_id}/{step}") for step in ("start", "stop"))
            rest = num_clients - cohort_size
            seconds[f"a new round: its {cohort_size} tasks"] = await _until(url, start, waiting, {201: cohort_size})
            seconds[f"the run's end, told to {rest}"] = await _until(url, stop, waiting, {410: rest})
    seconds[f"a new model, downloaded by {num_clients}"] = await _new_model(url, tokens)
    return seconds


async def _new_model(url: str, tokens: Sequence[str]) -> float:
    run_id = await _draft(url, quorum=1)
    await _ask(url, _operator("POST", f"/v1/runs/{run_id}/start"))
    claim = Call(method="POST", path=f"/v1/runs/{run_id}/tasks", token=tokens[0])
    task_id = (await _ask(url, claim)).json()["task_id"]
    path = f"/v1/tasks/{task_id}/update"
    update = Call(method="PUT", path=path, token=tokens[0], body=_tensors(), media_type=TENSORS)
    latest = f"/v1/runs/{run_id}/models/latest?after=0&wait={WAIT_SECONDS}"
    async with Waiting(url, [Call(method="GET", path=latest, token=token) for token in tokens]) as waiting:
        await _all_wait(url, len(tokens))
        return await _until(url, update, waiting, {200: len(tokens)})


async def _until(url: str, cause: Call, waiting: Waiting, expected: dict[int, int]) -> float:
    begin = asyncio.get_running_loop().time()
    _, answers = await asyncio.gather(_ask(url, cause), waiting.answers(sum(expected.values())))
    statuses = Counter(status for _, status in answers)
    if statuses != expected:
        raise RuntimeError(f"expected the answers {expected}, got {dict(statuses)}")
    return max(moment for moment, _ in answers) - begin


async def _all_wait(url: str, number: int) -> None:
    """Returns when the server says that so many requests are held."""
    told, metrics = f"\nfedquorum_waiting_requests {number:.1f}\n", _operator("GET", "/metrics")
    async with asyncio.timeout(_ALL_WAIT_SECONDS):
        while told not in (await _ask(url, metrics)).body.decode():  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(0.2)
    # Those who came last still look for the first time.
    await asyncio.sleep(0.5)


async def _ask(url: str, call: Call) -> Answer:
    async with Load(url, in_flight=1) as load:
        return await load.one(call)


async def _draft(url: str, *, quorum: int) -> str:
    spec = {"name": "long-polls", "num_rounds": 2, "round": {"quorum": quorum}}
    run_id: str = (await _ask(url, _operator("POST", "/v1/runs", spec))).json()["run_id"]
    path = f"/v1/runs/{run_id}/models/0"
    await _ask(url, Call(method="PUT", path=path, token=OPERATOR_TOKEN, body=_tensors(), media_type=TENSORS))
    return run_id


def _tensors() -> bytes:
    return b"".join(encode({"weight": np.zeros(NUM_ELEMENTS, dtype=np.float32)}, {"num_examples": "1"}))


def _operator(method: str, path: str, fields: dict[str, object] | None = None) -> Call:
    body = b"" if fields is None else json.dumps(fields).encode()
    return Call(method=method, path=path, token=OPERATOR_TOKEN, body=body)


@contextmanager
def _bare() -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory(prefix="fedquorum-bench-") as folder,
        listening_process(["-m", "benchmarks.bare_waiting"], folder=Path(folder)) as server,
    ):
        yield server


async def _measure_bare(url: str) -> float:
    async with Waiting(url, [_HOLD] * NUM_CLIENTS) as waiting:
        while int((await _ask(url, _COUNT)).body) < NUM_CLIENTS:  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(0.2)
        return await _until(url, _WAKE, waiting, {200: NUM_CLIENTS})
