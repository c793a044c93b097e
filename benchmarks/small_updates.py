"""Durable updates a second, 32 in flight, claims prepared before (`python -m benchmarks small_updates`)."""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.load import TENSORS, Answer, Call, Load
from benchmarks.measurements import Row, row
from benchmarks.server import OPERATOR_TOKEN, STORES, Server, fresh_server, listening_process
from fl_protocol.arrays import encode

IN_FLIGHT = 32
NUM_UPDATES = 512
REPETITIONS = 3
NUM_ELEMENTS = {"10 KB": 2_500, "440 KB (MNIST's network)": 109_386}


def measure() -> list[Row]:
    """Measures both sizes on each store."""
    return [measured for store in STORES for measured in _measure(store)]


def _measure(store: str) -> list[Row]:
    database, blob_store = STORES[store]
    with ExitStack() as stack:
        server = stack.enter_context(fresh_server(database, blob_store=blob_store))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fedquorum-bench-"))
        arguments = ["-m", "benchmarks.bare_endpoint", "nothing"]
        bare = stack.enter_context(listening_process(arguments, folder=Path(folder)))
        return asyncio.run(_measure_server(server, store, bare))


async def _measure_server(server: Server, store: str, bare: Server) -> list[Row]:
    rows: list[Row] = []
    async with Load(server.url, in_flight=IN_FLIGHT) as load:
        tokens = await _enrol(load)
        for size, num_elements in NUM_ELEMENTS.items():
            bodies = _bodies(num_elements)
            rates, waits, files, hashed, processor = [], [], [], [], []
            for _ in range(REPETITIONS):
                files.append(_files_a_second(bodies))
                hashed.append(await _hashed_a_second(bare, bodies))
                calls = await _prepare(load, tokens, bodies)
                begin, begin_processor = time.perf_counter(), server.processor_seconds()
                answers = await load.send(calls)
                rates.append(len(calls) / (time.perf_counter() - begin))
                processor.append(1e3 * (server.processor_seconds() - begin_processor) / len(calls))
                waits.append(_percentile_99(answers))
            plain = float(np.median(files))
            what = f"files written and fsynced one by one ({plain:.0f}/s)"
            rows.append(row(f"{store}, {size}", "updates/s", rates, of=plain, ratio_of=what))
            alone = f"{store}, {size}: received and hashed by a bare endpoint, not stored"
            rows.append(row(alone, "updates/s", hashed, of=plain, ratio_of=what))
            rows.append(row(f"{store}, {size}: the server's processor for one", "ms", processor))
            rows.append(row(f"{store}, {size}: 99th percentile", "ms", waits))
        rows.append(row(f"{store}: server's peak memory", "MiB", [server.peak_mebibytes()]))
    return rows


async def _enrol(load: Load) -> list[str]:
    calls = [_operator("POST", "/v1/clients", {"name": f"client-{number}"}) for number in range(NUM_UPDATES)]
    return [answer.json()["token"] for answer in await load.send(calls)]


async def _prepare(load: Load, tokens: Sequence[str], bodies: Sequence[bytes]) -> list[Call]:
    """Opens a round in which every client holds a task, and gives the calls that answer them."""
    spec = {"name": "small", "num_rounds": 1, "round": {"quorum": NUM_UPDATES}}
    run_id = (await load.one(_operator("POST", "/v1/runs", spec))).json()["run_id"]
    model = bodies[0]
    path = f"/v1/runs/{run_id}/models/0"
    await load.one(Call(method="PUT", path=path, token=OPERATOR_TOKEN, body=model, media_type=TENSORS))
    await load.one(_operator("POST", f"/v1/runs/{run_id}/start", {}))
    claims = [Call(method="POST", path=f"/v1/runs/{run_id}/tasks", token=token) for token in tokens]
    tasks = [answer.json()["task_id"] for answer in await load.send(claims)]
    return [
        Call(method="PUT", path=f"/v1/tasks/{task}/update", token=token, body=body, media_type=TENSORS)
        for task, token, body in zip(tasks, tokens, bodies, strict=True)
    ]


def _operator(method: str, path: str, fields: dict[str, object]) -> Call:
    return Call(method=method, path=path, token=OPERATOR_TOKEN, body=json.dumps(fields).encode())


def _bodies(num_elements: int) -> list[bytes]:
    generator = np.random.default_rng(0)
    values = generator.normal(scale=0.01, size=num_elements).astype(np.float32)
    return [
        b"".join(encode({"weight": np.roll(values, number)}, {"num_examples": str(number + 1)}))
        for number in range(NUM_UPDATES)
    ]


async def _hashed_a_second(bare: Server, bodies: Sequence[bytes]) -> float:
    calls = [Call(method="PUT", path="/", token=OPERATOR_TOKEN, body=body, media_type=TENSORS) for body in bodies]
    async with Load(bare.url, in_flight=IN_FLIGHT) as load:
        begin = time.perf_counter()
        await load.send(calls)
        return len(calls) / (time.perf_counter() - begin)


def _files_a_second(bodies: Sequence[bytes], *, count: int = 128) -> float:
    with tempfile.TemporaryDirectory(prefix="fedquorum-bench-") as folder:
        begin = time.perf_counter()
        for number, body in enumerate(bodies[:count]):
            with Path(folder, str(number)).open("wb", buffering=0) as file:
                file.write(body)
                os.fsync(file.fileno())
        return count / (time.perf_counter() - begin)


def _percentile_99(answers: Sequence[Answer]) -> float:
    return float(np.percentile([1e3 * answer.seconds for answer in answers], 99))
