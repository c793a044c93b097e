"""The ceilings that the SDK keeps, whatever a server does."""

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

PIECE_BYTES: Final = MIB
"""How much is handed to the network or to the disk at once; httpx is quadratic in the size of one `bytes` body."""

IN_MEMORY_BYTES: Final = 8 * MIB
"""What is made to be sent, beside the tensors that it was made of, goes to a file if it is larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ceilings on what is read, waited for and tried again; sizes in bytes, times in seconds."""

    max_json_bytes: int = 4 * MIB
    max_items: int = 100_000
    """The longest list that is gathered from its pages."""
    max_list_bytes: int = 64 * MIB
    """How much JSON the pages of one list may be together."""
    max_event_bytes: int = 256 * KIB
    max_model_bytes: int = 64 * GIB
    resumable_bytes: int = 8 * MIB
    """A larger update or start model is sent so that it goes on where the line was cut."""
    connect_seconds: float = 10.0
    idle_seconds: float = 60.0
    """The longest silence within one request, in either direction."""
    answer_seconds: float = 120.0
    """The longest that a whole JSON answer may take, on top of the wait that was asked for."""
    wait_seconds: float = 30.0
    """How long the server is asked to hold a request for a task or a new model; 0 to 60."""
    max_attempts: int = 10
    backoff_initial_seconds: float = 0.2
    backoff_max_seconds: float = 10.0
    retry_after_max_seconds: float = 300.0


MAX_ERROR_BYTES: Final = 64 * KIB
"""How much is read of an answer that refuses a request; the rest is left."""

DEFAULT_LIMITS: Final = Limits()
