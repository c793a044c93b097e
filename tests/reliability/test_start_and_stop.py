"""Starting and stopping: drained in seconds, at the same time as others, before the database, on a newer schema."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

from aggregator_service.flow import aggregation, sealed_rounds
from aggregator_service.flow.sealed_rounds import SealedRound
from tests.support.events import read_events
from tests.support.participant import (
    MEDIA_TYPE,
    Tensors,
    create_run,
    enrol,
    pack,
    small_model,
    unpack,
    update_body,
    wait_for_run,
)
from tests.support.proxy import Proxy
from tests.support.racing import held_back
from tests.support.records import model_record, round_record, run_record, store_blob, update_record
from tests.support.server import ServerProcess
from tests.support.store import flow_on, open_store
from tests.support.waiting import eventually
from tests.support.zygote import Zygote

DRAIN_SECONDS = 12
LONG = 3600


def body_of(model: Tensors, value: float = 1.0) -> bytes:
    return update_body({name: np.full_like(one, value) for name, one in model.items()}, num_examples=1)


@pytest.fixture
def fixed_server(server: ServerProcess) -> ServerProcess:
    """A server that comes back on the same port, so that connections find it again."""
    server.port = int(server.url.rpartition(":")[2])
    return server


def stop_within(server: ServerProcess, seconds: float) -> None:
    """Sends SIGTERM and expects exit status 0 soon."""
    begun = time.monotonic()
    assert server.stop() == 0, server.log[-2000:]
    assert time.monotonic() - begun < seconds
    assert "Traceback" not in server.log


def test_an_idle_server_stops_at_once(server: ServerProcess) -> None:
    stop_within(server, 5)


def test_held_requests_are_answered_and_uploads_finished_before_the_server_stops(fixed_server: ServerProcess) -> None:
    with fixed_server.http() as operator, ThreadPoolExecutor(5) as pool:
        run_id = create_run(operator, small_model(), num_rounds=1, round={"quorum": 2, "deadline_seconds": LONG})
        sender, poller = enrol(operator), enrol(operator)
        task_id = sender.claim(run_id).json()["task_id"]
        poller.http.delete(f"/v1/tasks/{poller.claim(run_id).json()['task_id']}")
        stopping = threading.Barrier(2, timeout=60)
        content = held_back(body_of(small_model()), stopping)
        headers = {"Content-Type": MEDIA_TYPE}
        upload = pool.submit(sender.http.put, f"/v1/tasks/{task_id}/update", content=content, headers=headers)
        claim = pool.submit(poller.claim, run_id, 60)
        model = pool.submit(_wait_for_version, fixed_server, run_id)
        following = threading.Event()
        events = pool.submit(_follow, fixed_server, run_id, following)
        assert following.wait(30)
        eventually(lambda: "fedquorum_waiting_requests 2.0" in operator.get("/metrics").text)
        eventually(lambda: stopping.n_waiting == 1)
        stopper = pool.submit(stop_within, fixed_server, DRAIN_SECONDS)
        assert (claim.result().status_code, model.result()) == (204, 204)
        stopping.wait()
        assert upload.result().status_code == 201
        assert events.result() == 4
        stopper.result()
        fixed_server.start()
        assert operator.get(f"/v1/runs/{run_id}/rounds/1").json()["num_updates"] == 1


def _wait_for_version(server: ServerProcess, run_id: str) -> int:
    with server.http() as http:
        return http.get(f"/v1/runs/{run_id}/models/latest", params={"after": 0, "wait": 60}).status_code


def _follow(server: ServerProcess, run_id: str, following: threading.Event) -> int:
    with server.http() as http:
        return len(read_events(http, run_id, on_event=lambda _: following.set()))


def test_a_sender_that_stalls_does_not_keep_the_server_from_stopping(tmp_path: Path, forking: Zygote) -> None:
    server = ServerProcess(f"sqlite:///{tmp_path}/fedquorum.db", tmp_path, zygote=forking).start()
    with server.http() as operator, ThreadPoolExecutor(1) as pool:
        run_id = create_run(operator, small_model(), num_rounds=1, round={"quorum": 2, "deadline_seconds": LONG})
        client = enrol(operator)
        task_id = client.claim(run_id).json()["task_id"]
        ended, sending = threading.Event(), threading.Event()

        def stalled() -> Iterator[bytes]:
            yield body_of(small_model())[:-1]
            sending.set()
            ended.wait(60)

        headers = {"Content-Type": MEDIA_TYPE}
        upload = pool.submit(client.http.put, f"/v1/tasks/{task_id}/update", content=stalled(), headers=headers)
        assert sending.wait(30)
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < DRAIN_SECONDS
        ended.set()
        answer = upload.result()
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
        assert "retry-after" in answer.headers


def test_a_round_left_in_the_middle_of_its_aggregation_is_finished_after_the_next_start(
    fixed_server: ServerProcess,
) -> None:
    model: Tensors = {"large": np.zeros(4_000_000, dtype=np.float32)}
    with fixed_server.http() as operator:
        run_id = create_run(operator, model, num_rounds=1, round={"quorum": 2, "deadline_seconds": LONG})
        for value in (1.0, 3.0):
            client = enrol(operator)
            task_id = client.claim(run_id).json()["task_id"]
            assert client.put(task_id, body_of(model, value)).status_code == 201
        stop_within(fixed_server, 5)
        fixed_server.start()
        published = unpack(wait_for_run(operator, run_id, version=1).content)["large"]
        assert np.all(published == 2.0)
    stop_within(fixed_server, 5)


async def test_an_aggregation_is_left_as_soon_as_the_server_drains(database_url: str) -> None:
    model = small_model()
    with open_store(database_url) as store:
        flow = flow_on(store)
        base, body = pack(model), body_of(model)
        store.write(lambda tx: store_blob(tx, "blob_1", base))
        store.write(lambda tx: store_blob(tx, "blob_2", body))
        update = update_record(blob_id="blob_2", num_bytes=len(body), max_abs=dict.fromkeys(model, 1.0))
        sealed = SealedRound(run_record(), round_record(), model_record(num_bytes=len(base)), [update], [1])
        assert aggregation.compute(flow, sealed).model.num_bytes > 0
        flow.wakeups.close()
        with pytest.raises(sealed_rounds.AggregationStoppedError):
            await asyncio.to_thread(aggregation.compute, flow, sealed)


def refuses_to_start(server: ServerProcess, why: str) -> None:
    """Expects the server to end with status 1 and one clear line."""
    server.begin()
    assert server.wait() == 1
    lines = server.log.splitlines()
    assert why in lines[-1]
    assert lines[-1].startswith("fedquorum: ")
    assert "Traceback" not in server.log


def test_a_second_server_on_the_same_sqlite_file_refuses_to_start(tmp_path: Path, forking: Zygote) -> None:
    url = f"sqlite:///{tmp_path}/fedquorum.db"
    first = ServerProcess(url, tmp_path, zygote=forking).start()
    folder = tmp_path / "second"
    folder.mkdir()
    second = ServerProcess(url, folder, zygote=forking)
    try:
        refuses_to_start(second, "another server process uses")
        first.kill()
        second.start()
    finally:
        first.kill()
        second.kill()


def test_a_schema_from_a_newer_version_is_refused_and_left_alone(server: ServerProcess) -> None:
    server.kill()
    url = sa.make_url(server.database_url)
    driver = "postgresql+psycopg" if url.get_backend_name() == "postgresql" else url.drivername
    engine = sa.create_engine(url.set(drivername=driver), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    refuses_to_start(server, "'9999' is newer than this version of fedquorum knows; upgrade fedquorum")
    with engine.begin() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"


def test_four_servers_that_start_at_once_on_an_empty_database_all_come_up(
    postgres_server_url: str, postgres_url: str, tmp_path: Path, forking: Zygote
) -> None:
    name = urlsplit(postgres_url).path.removeprefix("/")
    for attempt in range(3):
        if attempt:
            with psycopg.connect(postgres_server_url, autocommit=True) as connection:
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
                connection.execute(f'CREATE DATABASE "{name}"')
        servers = []
        for number in range(4):
            folder = tmp_path / f"{attempt}-{number}"
            folder.mkdir()
            servers.append(ServerProcess(postgres_url, folder, zygote=forking))
        try:
            for server in servers:
                server.begin()
            for server in servers:
                server.await_listening()
                with server.http() as http:
                    assert http.get("/readyz").status_code == 200
        finally:
            for server in servers:
                server.kill()


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    """A way to the database that is not open yet."""
    address = urlsplit(postgres_url)
    assert address.hostname is not None
    assert address.port is not None
    made = Proxy(address.hostname, address.port)
    yield made
    made.close()


def behind(proxy: Proxy, postgres_url: str) -> str:
    """Gives the database's URL by way of a proxy."""
    address = urlsplit(postgres_url)
    return urlunsplit(address._replace(netloc=f"{address.username}@127.0.0.1:{proxy.port}"))


def test_a_server_waits_for_a_database_that_starts_after_it(
    proxy: Proxy, postgres_url: str, tmp_path: Path, forking: Zygote
) -> None:
    server = ServerProcess(behind(proxy, postgres_url), tmp_path, zygote=forking)
    server.begin()
    try:
        eventually(lambda: "waiting_for_database" in server.log)
        proxy.open()
        server.await_listening()
        with server.http() as http:
            assert http.get("/readyz").status_code == 200
    finally:
        server.kill()


def test_a_server_outlives_its_database_connections(
    proxy: Proxy, postgres_url: str, tmp_path: Path, forking: Zygote
) -> None:
    proxy.open()
    server = ServerProcess(behind(proxy, postgres_url), tmp_path, zygote=forking).start()
    try:
        with server.http() as operator:
            run_id = create_run(operator, small_model(), num_rounds=1, round={"quorum": 1, "deadline_seconds": LONG})
            client = enrol(operator)
            task_id = client.claim(run_id).json()["task_id"]
            proxy.shut()
            assert operator.get("/readyz").status_code == 503
            assert operator.get("/healthz").status_code == 200
            refused = operator.get(f"/v1/runs/{run_id}")
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
            proxy.open()
            eventually(lambda: operator.get("/readyz").status_code == 200)
            assert client.put(task_id, body_of(small_model())).status_code == 201
            wait_for_run(operator, run_id, version=1)
    finally:
        server.kill()
