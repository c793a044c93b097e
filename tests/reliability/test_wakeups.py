"""Waits end with their hint or with their time, and what has ended holds nothing."""

import asyncio
import gc
import weakref
from collections.abc import Iterator, Sequence

import pytest

from aggregator_service.flow.gathering import Gatherings
from aggregator_service.wakeups import Wakeups
from fl_protocol.problems import ProblemError, ProblemType


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Only reference counts free anything meanwhile."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_a_wait_ends_soon_after_its_time_and_never_before() -> None:
    loop = asyncio.get_running_loop()
    wakeups = Wakeups(loop)

    async def wait(seconds: float) -> float:
        began = loop.time()
        await wakeups.wait("topic", 0, timeout_seconds=seconds)
        return loop.time() - began - seconds

    late = await asyncio.gather(*(wait(number / 1000) for number in range(1, 200)))
    assert min(late) > -0.002, "the loop's clock and its timers differ by a millisecond"
    assert max(late) < 1


async def test_a_hint_wakes_those_of_its_topic_and_draining_wakes_all() -> None:
    wakeups = Wakeups(asyncio.get_running_loop())
    woken, others = (
        [asyncio.ensure_future(wakeups.wait(topic, 0, timeout_seconds=60)) for _ in range(100)] for topic in "ab"
    )
    await asyncio.sleep(0)
    wakeups.publish(["a"])
    await asyncio.wait_for(asyncio.gather(*woken), 10)
    assert not any(other.done() for other in others)
    wakeups.close()
    await asyncio.wait_for(asyncio.gather(*others), 10)
    await asyncio.wait_for(wakeups.wait("b", wakeups.seen("b"), timeout_seconds=60), 10)


async def test_a_hint_between_the_look_and_the_wait_is_not_missed() -> None:
    wakeups = Wakeups(asyncio.get_running_loop())
    seen = wakeups.seen("topic")
    wakeups.publish(["topic"])
    await asyncio.sleep(0)
    await asyncio.wait_for(wakeups.wait("topic", seen, timeout_seconds=60), 10)


class _Asker:
    pass


@pytest.mark.usefixtures("uncollected")
async def test_who_is_refused_is_free_at_once() -> None:
    async def refuse(askers: Sequence[_Asker]) -> Sequence[ProblemError]:
        return [ProblemError(ProblemType.RUN_FINISHED, "the run is stopped") for _ in askers]

    async def ask(asker: _Asker) -> None:
        with pytest.raises(ProblemError):
            await gatherings.ask("key", asker, refuse)

    gatherings, askers = Gatherings(), [_Asker() for _ in range(3)]
    asked = [weakref.ref(asker) for asker in askers]
    waiting = [asyncio.ensure_future(ask(asker)) for asker in askers]
    del askers
    await asyncio.wait(waiting)
    del waiting
    # The lot itself ends a step later.
    await asyncio.sleep(0)
    assert [each() for each in asked] == [None] * 3
