"""S30: a hundred clients with a million parameters in one masked session, a fifth of whom dawdle."""

import pytest

from benchmarks.sessions import SLOWEST_SECONDS, Scene, measured

MAX_SECONDS = 60
MAX_MEBIBYTES = 3 * 8e6 / 2**20
"""Beyond what a session of a thousand parameters takes: three accumulators, in which a sum of a million is int64."""


@pytest.mark.soak
def test_a_hundred_clients_with_a_million_parameters_are_done_in_a_minute() -> None:
    scene = Scene(num_clients=100, num_parameters=1_000_000, num_slow=20, repetitions=1)
    rows = {one.name.partition(": ")[2]: one.median for one in measured(scene)}
    (mebibytes,) = (value for name, value in rows.items() if name.startswith("server's peak memory"))
    assert SLOWEST_SECONDS < rows["whole round"] < MAX_SECONDS
    assert mebibytes < MAX_MEBIBYTES
