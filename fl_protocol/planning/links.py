"""A client's line: how fast and how far away."""

import re
from dataclasses import dataclass
from typing import Final

_LINK: Final = re.compile(
    r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([kMG]?)(bit|B)/s(?::([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s))?"
)
_SCALES: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_BITS: Final = {"bit": 1.0, "B": 8.0}
_SECONDS: Final = {"ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Link:
    """A line in one direction; `latency_seconds` is what a request waits for the first byte of its answer."""

    bits_per_second: float
    latency_seconds: float = 0.0

    def seconds(self, num_bytes: float) -> float:
        """Tells how long so many bytes take in one request."""
        return self.latency_seconds + 8 * num_bytes / self.bits_per_second


def parse_link(text: str) -> Link:
    """Reads a line such as `10Mbit/s` or `1.5MB/s:50ms`; raises ValueError saying what is read."""
    found = _LINK.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise ValueError(f"the link {text[:40]!r} must be like 10Mbit/s, 512kbit/s:200ms or 1.5MB/s, above 0")
    speed = float(found[1]) * _SCALES[found[2]] * _BITS[found[3]]
    return Link(speed, float(found[4]) * _SECONDS[found[5]] if found[4] else 0.0)
