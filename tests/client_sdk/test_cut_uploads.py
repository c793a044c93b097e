"""Uploads through a proxy that cuts the connection at random places: they complete, and no byte travels twice."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict

import httpx
import numpy as np
import pytest

from tests.support.participant import Participant, create_run, enrol, unpack, wait_for_run
from tests.support.proxy import Cuts, cutting
from tests.support.sender import Order, Sent, step
from tests.support.server import ServerProcess
from tests.support.store import copy_private
from tests.support.zygote import Zygote

HEADS_NUM_BYTES = 3000
"""What the heads of an attempt's two requests have at most, and those of their answers."""
HELD_NUM_BYTES = 5 << 16
"""What the server's HTTP parser may hold: up to 64 KiB, and what it reads at once."""
GROWTH_NUM_BYTES = 32 << 20
"""What a process may need beyond the tensors: a few pieces of 1 MiB, and the modules that are imported on the way."""


def _cuts(num_cuts: int, mean_bytes: int, *, unheard: bool) -> Cuts:
    chance = random.Random(7)
    after = [HEADS_NUM_BYTES + chance.randrange(2 * mean_bytes) for _ in range(num_cuts)]
    return Cuts(iter(after), unheard=unheard)


def _send(url: str, client: Participant, task_id: str, *, num_elements: int) -> Sent:
    order = Order(url, client.token, task_id, num_elements)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.sender"],
        input=json.dumps(asdict(order)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Sent(**json.loads(done.stdout))


def _sent_over_cuts(
    server: ServerProcess, operator: httpx.Client, *, num_elements: int, num_cuts: int, unheard: bool
) -> None:
    """Sends an update over a line that is cut, holds its bytes to what is promised, and looks at the next version."""
    model = {"w": np.zeros(num_elements, dtype=np.float32)}
    run_id, client = create_run(operator, model, round={"quorum": 1}), enrol(operator)
    task_id = client.claim(run_id, wait=20).json()["task_id"]
    cuts = _cuts(num_cuts, 4 * num_elements // (2 * num_cuts), unheard=unheard)
    with cutting(server.url, cuts) as proxy:
        sent = _send(f"http://127.0.0.1:{proxy.port}", client, task_id, num_elements=num_elements)
    assert cuts.num_made >= num_cuts // 2
    on_the_way = cuts.num_bytes_in_flight + (cuts.num_made + 1) * (HEADS_NUM_BYTES + HELD_NUM_BYTES)
    assert cuts.num_bytes_asked <= sent.num_bytes + on_the_way
    assert sent.growth_bytes < GROWTH_NUM_BYTES
    newest = unpack(wait_for_run(operator, run_id, version=1).content)
    assert np.array_equal(newest["w"], step(num_elements))


@pytest.fixture(scope="module", params=["files", pytest.param("database", marks=pytest.mark.soak)])
def shared_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forking: Zygote
) -> Iterator[ServerProcess]:
    """A server that keeps parts of bodies as files, or in chunks of its database."""
    folder = tmp_path_factory.mktemp("server")
    copy_private(request.getfixturevalue("sqlite_template"), folder / "fedquorum.db")
    store = f"file://{folder}/blobs" if request.param == "files" else request.param
    process = ServerProcess(
        f"sqlite:///{folder}/fedquorum.db", folder, environment={"FEDQUORUM_BLOB_STORE": store}, zygote=forking
    ).start()
    yield process
    process.kill()


@pytest.mark.parametrize("unheard", [False, True], ids=["closed", "dead"])
def test_an_update_that_is_cut_ten_times_arrives_and_sends_no_byte_twice(
    shared_server: ServerProcess, shared_operator: httpx.Client, unheard: bool
) -> None:
    _sent_over_cuts(shared_server, shared_operator, num_elements=2_500_000, num_cuts=10, unheard=unheard)


@pytest.mark.soak
@pytest.mark.parametrize("unheard", [False, True], ids=["closed", "dead"])
def test_two_hundred_cuts_in_two_hundred_megabytes(
    shared_server: ServerProcess, shared_operator: httpx.Client, unheard: bool
) -> None:
    _sent_over_cuts(shared_server, shared_operator, num_elements=50_000_000, num_cuts=200, unheard=unheard)
