"""A hundred clients in one masked session; some vanish or dawdle (`python -m benchmarks sessions_under_load`)."""

from typing import Final

from benchmarks.measurements import Row
from benchmarks.sessions import Scene, measured

SCENES: Final = (
    Scene(num_clients=100, num_parameters=110_000),
    Scene(num_clients=100, num_parameters=110_000, num_vanish=10, phase_seconds=15.0),
    Scene(num_clients=100, num_parameters=1_000_000, num_slow=20, repetitions=1),
)


def measure() -> list[Row]:
    """Measures every scene on a server of its own."""
    return [one for scene in SCENES for one in measured(scene)]
