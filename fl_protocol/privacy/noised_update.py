"""What one client gives to a sum whose noise the clients share: rounded on the run's grid, with its share of the noise.

Alone it is not private: that is what the masks are for.
"""

from collections.abc import Iterator

from fl_protocol.privacy.conditional_rounding import Windows, round_conditionally
from fl_protocol.privacy.noise import Int64Array
from fl_protocol.privacy.shared_noise import SharedNoise
from fl_protocol.privacy.skellam import add_skellam


def noised_windows(windows: Windows, noise: SharedNoise, *, key: bytes) -> Iterator[Int64Array]:
    """Yields an update's windows in steps of the run's grid, noised and ready to be masked.

    The update is finite and clipped to the run's norm. `key` is 32 bytes of `os.urandom` for this vector alone: whoever
    masks the same update again needs another.
    """
    first = 0
    for steps in round_conditionally(windows, scale=noise.scale, max_norm=noise.max_norm, key=key):
        add_skellam(steps, key=key, first=first, variance=noise.variance)
        yield steps
        first += steps.size
