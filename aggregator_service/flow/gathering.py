"""Answers together what is asked at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Final, TypeVar

from fl_protocol.problems import ProblemError

T = TypeVar("T")
Item = TypeVar("Item")

MAX_LOT: Final = 1024
"""How many questions are answered together: more would only make the first of them wait longer."""

Answer = Callable[[Sequence[Item]], Awaitable[Sequence[T | ProblemError]]]
"""Gives each item, in order, a value or the problem for which it is refused."""

_Lot = list[tuple[Any, "asyncio.Future[Any]"]]


class Gatherings:
    """Questions by key: those that come while an earlier lot is being answered are the next lot."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, _Lot] = {}
        self._serving: set[asyncio.Task[None]] = set()

    async def ask(self, key: Hashable, item: Item, answer: Answer[Item, T]) -> T:
        """Gives what an item is answered; a key goes with one way to answer.

        If the answer to a lot raises, each of its items is asked alone, so that none is refused for another's sake.
        """
        waiting = self._waiting.get(key)
        if waiting is None:
            # Its turn comes after everyone who was woken at the same moment.
            waiting = self._waiting[key] = []
            serving = asyncio.get_running_loop().create_task(self._serve(key, waiting, answer))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting.append((item, future))
        try:
            return await future
        finally:
            # A problem's traceback leads here, and from a future to its problem: a circle around all of a request.
            del future

    async def _serve(self, key: Hashable, waiting: _Lot, answer: Answer[Any, Any]) -> None:
        try:
            while waiting:
                lot = waiting[:MAX_LOT]
                del waiting[:MAX_LOT]
                await _settle(lot, answer)
        finally:
            del self._waiting[key]


async def _settle(lot: _Lot, answer: Answer[Any, Any]) -> None:
    try:
        outcomes = await answer([item for item, _ in lot])
    except Exception as error:  # noqa: BLE001 - passed on to whoever asked
        if len(lot) > 1:
            for alone in lot:
                await _settle([alone], answer)
            return
        outcomes = [error]
    for (_, future), outcome in zip(lot, outcomes, strict=True):
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
