"""How fast the line to the server is, as far as downloads have shown it."""

from dataclasses import dataclass
from typing import Final

THIN_BYTES_A_SECOND: Final = 8 << 20
"""Below this, fewer bytes are worth the work that both sides have with them; a local network is far above."""
LEAST_MEASURED_BYTES: Final = 256 << 10
"""What is smaller says more of the line's latency than of its width, and has little to save."""


@dataclass(slots=True)
class Link:
    """The line to one server; nothing is known of it before the first download."""

    is_thin: bool = False

    def measured(self, num_bytes: int, seconds: float) -> None:
        """Takes note of a download: how many bytes travelled, and how long it took until they were a model."""
        if num_bytes >= LEAST_MEASURED_BYTES:
            self.is_thin = num_bytes < THIN_BYTES_A_SECOND * seconds
