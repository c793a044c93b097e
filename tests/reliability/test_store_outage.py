"""The object store goes away in the middle of a round: refused in time, nothing acknowledged lost, and it goes on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.object_server import BUCKET, ObjectServer
from tests.support.participant import Participant, create_run, enrol, unpack, update_body, wait_for_run
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess
from tests.support.stored import Stored
from tests.support.waiting import eventually
from tests.support.zygote import Zygote

NUM_ELEMENTS = (9 << 20) // 4
"""More than a part of 8 MiB: the store is also written to before a body has ended."""
STEPS = (1.0, 2.0, 6.0)


@pytest.fixture
def way(objects: ObjectServer) -> Iterator[Proxy]:
    """The way to a real S3-compatible server, which a test may shut."""
    host, port = objects.endpoint.removeprefix("http://").split(":")
    proxy = Proxy(host, int(port))
    proxy.open()
    yield proxy
    proxy.close()


@pytest.fixture
def server(
    database_url: str, tmp_path: Path, forking: Zygote, objects: ObjectServer, way: Proxy
) -> Iterator[ServerProcess]:
    """A server whose first attempt at a round's model fails, so that a test can do something before the next one."""
    environment = objects.environment | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{way.port}",
        "FEDQUORUM_BLOB_STORE": f"s3://{BUCKET}/{tmp_path.name.replace('_', '-')}",
        "FEDQUORUM_FAILPOINT": "aggregation.started:1:error",
    }
    process = ServerProcess(database_url, tmp_path, environment, zygote=forking).start()
    yield process
    process.kill()


def body_of(step: float) -> bytes:
    return update_body({"w": np.full(NUM_ELEMENTS, step, dtype=np.float32)}, num_examples=1)


def check_refused(client: Participant, task_id: str, body: bytes) -> None:
    """Checks that an update is refused for now, in good time, by an answer that says when to try again."""
    refused = client.put(task_id, body)
    problem = refused.json()
    assert (refused.status_code, problem["type"].rsplit("/", 1)[-1]) == (503, "unavailable"), refused.text
    assert problem["retryable"]
    assert "store of tensors" in problem["detail"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.elapsed.total_seconds() < 10


@pytest.mark.soak
def test_a_round_outlives_an_object_store_that_goes_away_twice(
    server: ServerProcess, database_url: str, way: Proxy
) -> None:
    with server.http() as operator, Stored(database_url) as stored:
        model = {"w": np.zeros(NUM_ELEMENTS, dtype=np.float32)}
        run_id = create_run(operator, model, num_rounds=1, round={"quorum": len(STEPS)})
        clients = [enrol(operator, f"client-{step}") for step in STEPS]
        tasks = [client.claim(run_id).json()["task_id"] for client in clients]
        bodies = [body_of(step) for step in STEPS]
        receipt = clients[0].put(tasks[0], bodies[0]).json()

        way.shut()
        check_refused(clients[1], tasks[1], bodies[1])
        assert stored.counts("updates") == {"updates": 1}
        # Who has lost a receipt is told it again: that needs no store.
        again = clients[0].put(tasks[0], bodies[0])
        assert (again.status_code, again.json()) == (200, receipt)

        way.open()
        for client, task_id, body in zip(clients[1:], tasks[1:], bodies[1:], strict=True):
            assert client.put(task_id, body).status_code == 201
        eventually(lambda: "failpoint aggregation.started" in server.log)
        way.shut()
        seen = server.log.count("blob_store_failed")
        eventually(lambda: server.log.count("blob_store_failed") > seen)
        assert operator.get(f"/v1/runs/{run_id}").json()["state"] == "running"

        way.open()
        answer = wait_for_run(operator, run_id, version=1)
        assert np.array_equal(unpack(answer.content)["w"], np.full(NUM_ELEMENTS, np.mean(STEPS), dtype=np.float32))
