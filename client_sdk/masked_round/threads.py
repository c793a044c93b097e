"""Work that would hold the event loop goes to a thread."""

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread

Result = TypeVar("Result")


async def in_thread(call: Callable[[], Result]) -> Result:
    """Calls a function in a worker thread; a cancelled caller does not wait for it."""
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
