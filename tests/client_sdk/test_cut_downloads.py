"""Downloads through a proxy that cuts the connection at random places: they complete, and no byte travels twice."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from client_sdk.client import AggregatorClient, Seams
from client_sdk.transfer import Content, StoredModel
from tests.support.participant import create_run, enrol, update_body, wait_for_run
from tests.support.proxy import Cuts, cutting
from tests.support.server import ServerProcess
from tests.support.store import copy_private
from tests.support.zygote import Zygote

HEADS_NUM_BYTES = 2000
"""What a request and the head of its answer have at most."""
IN_FLIGHT_NUM_BYTES = 1 << 16
"""What the proxy forwards at once: so much of the answer may be on the way to the client when the line is cut."""


@dataclass(frozen=True)
class Published:
    """A run's two versions, and the newest one's content."""

    run_id: str
    newest: Content


async def _no_sleep(seconds: float) -> None:
    """Waits for nothing."""


def _publish(http: httpx.Client, num_elements: int) -> Published:
    generator = np.random.default_rng(1)
    model = {"w": generator.normal(scale=0.02, size=num_elements).astype(np.float32)}
    run_id = create_run(http, model, num_rounds=2, round={"quorum": 1})
    client = enrol(http)
    task = client.claim(run_id, wait=20).json()
    step = {"w": generator.normal(scale=2e-5, size=num_elements).astype(np.float32)}
    assert client.put(task["task_id"], update_body(step, num_examples=1)).status_code == 201
    wait_for_run(http, run_id, version=1)
    newest = http.get(f"/v1/runs/{run_id}/models").json()["items"][-1]
    return Published(run_id, Content(newest["digest"], newest["num_bytes"]))


def _cuts(num_cuts: int, mean_bytes: int) -> Cuts:
    chance = random.Random(7)
    return Cuts(iter([HEADS_NUM_BYTES + chance.randrange(2 * mean_bytes) for _ in range(num_cuts)]))


async def _downloaded(
    server: ServerProcess, published: Published, folder: Path, *, num_cuts: int, with_base: bool
) -> tuple[StoredModel, int]:
    """Downloads the newest version over a line that is cut, and gives it with how many bytes the client was sent."""
    async with AggregatorClient(server.url, token=server.operator_token) as direct:
        base = await direct.download_model(published.run_id, folder / "base", version=0)
    size = published.newest.num_bytes // (2 if with_base else 1)
    with cutting(server.url, _cuts(num_cuts, size // (2 * num_cuts))) as proxy:
        client = AggregatorClient(
            f"http://127.0.0.1:{proxy.port}", token=server.operator_token, seams=Seams(sleep=_no_sleep)
        )
        async with client:
            stored = await client.download_model(
                published.run_id,
                folder / "newest",
                version=1,
                expected=published.newest,
                base=base if with_base else None,
            )
        assert proxy.cuts.num_made >= num_cuts // 2
        return stored, proxy.cuts.num_bytes_answered


@pytest.fixture(scope="module", params=["files", pytest.param("database", marks=pytest.mark.soak)])
def shared_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forking: Zygote
) -> Iterator[ServerProcess]:
    """A server that sends files by sendfile, or chunks of its database in pieces."""
    folder = tmp_path_factory.mktemp("server")
    copy_private(request.getfixturevalue("sqlite_template"), folder / "fedquorum.db")
    store = f"file://{folder}/blobs" if request.param == "files" else request.param
    process = ServerProcess(
        f"sqlite:///{folder}/fedquorum.db", folder, environment={"FEDQUORUM_BLOB_STORE": store}, zygote=forking
    ).start()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def published(shared_operator: httpx.Client) -> Published:
    return _publish(shared_operator, 1_500_000)


@pytest.mark.parametrize("with_base", [False, True], ids=["whole", "delta"])
async def test_a_download_that_is_cut_a_dozen_times_arrives_and_sends_no_byte_twice(
    shared_server: ServerProcess, published: Published, tmp_path: Path, with_base: bool
) -> None:
    stored, answered = await _downloaded(shared_server, published, tmp_path, num_cuts=12, with_base=with_base)
    assert (stored.digest, stored.num_bytes) == (published.newest.digest, published.newest.num_bytes)
    assert stored.num_received < (0.7 if with_base else 1.01) * stored.num_bytes
    assert answered <= stored.num_received + 13 * (HEADS_NUM_BYTES + IN_FLIGHT_NUM_BYTES)
    assert [path.name for path in (tmp_path / "newest").iterdir()] == [stored.path.name]


@pytest.mark.soak
@pytest.mark.parametrize("with_base", [False, True], ids=["whole", "delta"])
async def test_two_hundred_cuts_in_two_hundred_megabytes(
    shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path, with_base: bool
) -> None:
    large = _publish(shared_operator, 50_000_000)
    stored, answered = await _downloaded(shared_server, large, tmp_path, num_cuts=200, with_base=with_base)
    assert stored.digest == large.newest.digest
    assert answered <= stored.num_received + 201 * (HEADS_NUM_BYTES + IN_FLIGHT_NUM_BYTES)
