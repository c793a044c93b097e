"""Two processes that make the same form of a version at the same instant: one is stored, and both give that one."""

import threading

import httpx
import numpy as np
import pytest

from tests.support.participant import create_run
from tests.support.racing import at_once
from tests.support.server import ServerProcess
from tests.support.stored import Stored

REPETITIONS = 30
NUM_ELEMENTS = 1_500_000
"""More than a small blob has, so that each process writes ahead what one of them must throw away."""


def _raw(http: httpx.Client, url: str, barrier: threading.Barrier) -> tuple[str, bytes]:
    barrier.wait()
    with http.stream("GET", url, headers={"Accept-Encoding": "zstd"}) as answer:
        return answer.headers["etag"], b"".join(answer.iter_raw())


@pytest.mark.soak
@pytest.mark.parametrize("servers", ["two-servers-on-postgres"], indirect=True)
def test_one_of_two_that_race_is_stored_and_both_give_it(servers: list[ServerProcess]) -> None:
    model = {"w": np.random.default_rng(3).normal(scale=0.02, size=NUM_ELEMENTS).astype(np.float32)}
    with servers[0].http() as one, servers[1].http() as two, Stored(servers[0].database_url) as stored:
        for repetition in range(1, REPETITIONS + 1):
            url = f"/v1/runs/{create_run(one, model, start=False)}/models/0"
            answers = at_once(lambda http, barrier, url=url: _raw(http, url, barrier), [one, two])
            assert len(set(answers)) == 1
            assert ":zstd:" in answers[0][0]
            assert stored.counts("renditions", "blobs") == {"renditions": repetition, "blobs": 2 * repetition}
            assert stored.rows("SELECT 1 FROM blobs WHERE NOT sealed") == []
