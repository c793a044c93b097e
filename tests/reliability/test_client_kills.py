"""A SCAFFOLD client that is killed around its PUT: both sides stay as if nothing had happened, bit for bit."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from client_sdk.blocking import participate_blocking
from tests.support.ledger import digest_of
from tests.support.mortal_client import POINTS, train
from tests.support.participant import Participant, create_run, enrol, unpack, update_body
from tests.support.server import ServerProcess
from tests.support.zygote import Zygote

ROOT = Path(__file__).parents[2]
NUM_ROUNDS = 3
SCAFFOLD = {"kind": "scaffold", "num_clients": 2}


def die(server: ServerProcess, run_id: str, token: str, folder: Path, point: str) -> None:
    """Runs client 0 in a process of its own until it kills itself at a point of its update of round 2."""
    command = [sys.executable, "-m", "tests.support.mortal_client", server.url, run_id, token, str(folder), point]
    ended = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert ended.returncode == -9, ended.stderr


def live(server: ServerProcess, run_id: str, token: str, folder: Path, number: int) -> None:
    """Takes part to the run's end in this process."""
    participate_blocking(server.url, run_id, partial(train, number=number), token=token, state_dir=folder)


def train_with_two(server: ServerProcess, folder: Path, points: tuple[str, ...]) -> tuple[str, str]:
    """Lets client 0 die of each point in turn, beside one that lives; gives the digests of model and control."""
    with server.http() as operator, ThreadPoolExecutor(1) as beside:
        model = {"w": np.array([0.3, -7.0, 1e-3], dtype=np.float32)}
        spec = {"round": {"quorum": 2, "deadline_seconds": 3600}, "training": {"learning_rate": 0.1}}
        run_id = create_run(operator, model, num_rounds=NUM_ROUNDS, algorithm=SCAFFOLD, **spec)
        tokens = [enrol(operator, f"mortal-{number}").token for number in range(2)]
        folders = [folder / str(number) for number in range(2)]
        living = beside.submit(live, server, run_id, tokens[1], folders[1], 1)
        try:
            for point in points:
                die(server, run_id, tokens[0], folders[0], point)
            live(server, run_id, tokens[0], folders[0], 0)
        except BaseException:
            # Nobody else would end the run, for which the living client waits.
            operator.post(f"/v1/runs/{run_id}/stop")
            raise
        living.result(timeout=120)
        final = operator.get(f"/v1/runs/{run_id}/models/{NUM_ROUNDS}").content
        control = operator.get(f"/v1/runs/{run_id}/models/{NUM_ROUNDS}/control-variate").content
        contributed = operator.get(f"/v1/runs/{run_id}/rounds/{NUM_ROUNDS}/updates").json()["items"]
    newest = {one["digest"].removeprefix("sha256:") for one in contributed}
    kept = [path for one in folders for path in (one / run_id / "controls").glob("*.safetensors")]
    own = [unpack(path.read_bytes())["w"].astype(np.float64) for path in kept if path.stem.rpartition("-")[2] in newest]
    assert len(own) == len(newest) == 2
    np.testing.assert_allclose(unpack(control)["control:w"], np.mean(own, axis=0), rtol=1e-5, atol=1e-6)
    return digest_of(final), digest_of(control)


def test_a_client_that_dies_around_its_put_leaves_no_trace(tmp_path: Path, forking: Zygote) -> None:
    server = ServerProcess(f"sqlite:///{tmp_path}/fedquorum.db", tmp_path, zygote=forking).start()
    try:
        disturbed = train_with_two(server, tmp_path / "disturbed", POINTS)
        assert train_with_two(server, tmp_path / "calm", ()) == disturbed
    finally:
        server.kill()


def claimed_task(client: Participant, run_id: str, *, after_attempt: int = 0) -> dict[str, Any]:
    """Asks until the client has a task of a later attempt than this one."""
    for _ in range(40):
        claimed = client.claim(run_id, wait=1)
        if claimed.status_code in (200, 201) and claimed.json()["attempt"] > after_attempt:
            task: dict[str, Any] = claimed.json()
            return task
    raise AssertionError(f"no task after attempt {after_attempt}")


def test_an_update_of_an_abandoned_round_was_never_counted(server: ServerProcess, operator: httpx.Client) -> None:
    rounds = {"quorum": 2, "deadline_seconds": 1, "max_attempts": 1000}
    model = {"w": np.zeros(2, dtype=np.float32)}
    run_id = create_run(operator, model, num_rounds=2, round=rounds, algorithm=SCAFFOLD)
    first, second = enrol(operator, "first"), enrol(operator, "second")
    body = update_body({"w": np.ones(2, "f4"), "control:w": np.ones(2, "f4")}, num_examples=1)
    lost = claimed_task(first, run_id)
    assert first.put(lost["task_id"], body).status_code == 201
    again = claimed_task(first, run_id, after_attempt=lost["attempt"])
    assert (again["round"], again["counted_update"]) == (1, None)
    while operator.get(f"/v1/runs/{run_id}").json()["latest_version"] == 0:
        for one in (first, second):
            claimed = one.claim(run_id, wait=1)
            if claimed.status_code in (200, 201) and claimed.json()["round"] == 1:
                one.put(claimed.json()["task_id"], body)
    task = claimed_task(first, run_id)
    counted = operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"]
    mine = [update["digest"] for update in counted if update["client_id"] == first.client_id]
    assert (task["round"], [task["counted_update"]]) == (2, mine)
