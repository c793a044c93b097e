"""One upload of 40 MB, SDK put to acknowledged, beside bare endpoints (`python -m benchmarks upload`).

A bare endpoint is uvicorn with nothing but a hash and a file that is fsynced, or a row for each MiB and a commit in the
same database; the same SDK sends it the same bytes.
"""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio.to_thread
import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal

from benchmarks.measurements import Row, in_turns, row
from benchmarks.server import OPERATOR_TOKEN, STORES, Server, fresh_database, fresh_server, listening_process
from client_sdk.client import AggregatorClient
from client_sdk.operator import Operator
from client_sdk.transfer import Body, body_of_tensors
from fl_protocol.runs import RunSpec
from fl_protocol.specs.rounds import RoundSpec
from fl_protocol.tasks import Task

NUM_ELEMENTS = 10_000_000
REPETITIONS = 9

Send = Callable[[], object]
Receiver = tuple[Server, Send]


def measure() -> list[Row]:
    """Measures the server on each store and the bare endpoint on the same, in turns, and the CPU time of each."""
    values = np.random.default_rng(0).normal(scale=0.01, size=NUM_ELEMENTS).astype(np.float32)
    body = body_of_tensors({"weight": values}, {"num_examples": "1"})
    with contextlib.ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        receivers: dict[str, Receiver] = {}
        for store in STORES:
            receivers[_bare_name(store)] = stack.enter_context(_bare(store, portal, body))
            receivers[f"server on {store}"] = stack.enter_context(_server(store, portal, body))
        begun = {name: server.processor_seconds() for name, (server, _) in receivers.items()}
        seconds = in_turns({name: send for name, (_, send) in receivers.items()}, repetitions=REPETITIONS)
        processor = {
            name: (server.processor_seconds() - begun[name]) / (REPETITIONS + 1)
            for name, (server, _) in receivers.items()
        }
    speeds = {name: [body.num_bytes / 1e6 / each for each in taken] for name, taken in seconds.items()}
    rows = []
    for store in STORES:
        bare = _bare_name(store)
        for name in (bare, f"server on {store}"):
            of = statistics.median(speeds[bare])
            rows.append(row(f"{name}, 40 MB", "MB/s", speeds[name], of=of, ratio_of=bare))
            times = [1e3 * processor[name]]
            rows.append(row(f"{name}, CPU time", "ms", times, of=1e3 * processor[bare], ratio_of=f"{bare}, CPU time"))
    return rows


def _bare_name(store: str) -> str:
    database, blob_store = STORES[store]
    return "bare files" if blob_store == "files" else f"bare chunks on {database}"


@contextlib.contextmanager
def _bare(store: str, portal: BlockingPortal, body: Body) -> Iterator[Receiver]:
    database, blob_store = STORES[store]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fedquorum-bench-"))
        where = folder if blob_store == "files" else stack.enter_context(fresh_database(database, Path(folder)))
        arguments = ["-m", "benchmarks.bare_endpoint", where]
        server = stack.enter_context(listening_process(arguments, folder=Path(folder)))
        client = portal.call(_open, server.url, OPERATOR_TOKEN)
        yield server, lambda: portal.call(client.put_update, "task_0", body)
        portal.call(client.aclose)


@contextlib.contextmanager
def _server(store: str, portal: BlockingPortal, body: Body) -> Iterator[Receiver]:
    """Prepares one client and one task for each upload; the round never closes, so that nothing else goes on."""
    database, blob_store = STORES[store]
    with fresh_server(database, blob_store=blob_store) as server:
        prepared = iter(portal.call(_prepare, server.url, body))

        def send() -> None:
            client, task = next(prepared)
            portal.call(client.put_update, task.task_id, body)
            portal.call(client.aclose)

        yield server, send


async def _open(url: str, token: str) -> AggregatorClient:
    return AggregatorClient(url, token=token)


async def _prepare(url: str, body: Body) -> list[tuple[AggregatorClient, Task]]:
    count = REPETITIONS + 1
    async with AggregatorClient(url, token=OPERATOR_TOKEN) as client:
        operator = Operator(client)
        spec = RunSpec(name="upload", num_rounds=1, round=RoundSpec(quorum=count + 1))
        model = await anyio.to_thread.run_sync(lambda: b"".join(body.pieces()))
        run = await operator.start_run(spec, model)
        enrolled = [await operator.enrol(f"client-{number}") for number in range(count)]
    clients = [AggregatorClient(url, token=one.token) for one in enrolled]
    tasks = [await client.claim_task(run.run_id) for client in clients]
    return [(client, task) for client, task in zip(clients, tasks, strict=True) if isinstance(task, Task)]
