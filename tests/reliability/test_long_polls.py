"""Many clients that wait on one process hear of a new round at once, and their places are handed out exactly."""

import pytest

from benchmarks.long_polls import LARGE_COHORT, NUM_CLIENTS, SMALL_COHORT, measure_server
from benchmarks.server import fresh_server


async def test_hundreds_of_clients_that_wait_are_told_of_a_round_its_end_and_a_model() -> None:
    with fresh_server("sqlite") as server:
        # It fails unless exactly as many as the cohort has places get a task, and all others what they wait for.
        seconds = await measure_server(server.url, num_clients=200, large_cohort=60)
    assert max(seconds.values()) < 10, seconds


@pytest.mark.soak
async def test_ten_thousand_clients_wait_on_one_process() -> None:
    with fresh_server("sqlite") as server:
        seconds = await measure_server(server.url, num_clients=NUM_CLIENTS, large_cohort=LARGE_COHORT)
        assert server.peak_mebibytes() * 2**20 < 350e6
    assert seconds[f"a new round: its {SMALL_COHORT} tasks"] < 2
