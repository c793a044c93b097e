"""Waits for what nothing announces."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    """Returns as soon as a condition holds; fails if it does not within some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.01)
