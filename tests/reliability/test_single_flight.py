"""Work that many ask for at once is done once, and nobody waits for it longer than they said."""

import asyncio
import threading

from aggregator_service.flow import single_flight
from aggregator_service.flow.single_flight import SingleFlight


async def test_all_who_ask_meanwhile_get_what_one_made() -> None:
    flight, go, made = SingleFlight(), threading.Event(), []

    def work() -> int:
        go.wait(30)
        made.append(1)
        return len(made)

    asked = [asyncio.ensure_future(flight.run("key", work, patience_seconds=30)) for _ in range(5)]
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*asked) == [1] * 5
    assert await flight.run("key", work, patience_seconds=30) == 2


async def test_who_runs_out_of_patience_leaves_and_the_work_goes_on() -> None:
    flight, go = SingleFlight(), threading.Event()

    def work() -> str:
        go.wait(30)
        return "made"

    assert await flight.run("key", work, patience_seconds=0.01) is None
    later = asyncio.ensure_future(flight.run("key", work, patience_seconds=30))
    await asyncio.sleep(0)
    go.set()
    assert await later == "made"


async def test_who_is_cancelled_takes_the_work_from_nobody() -> None:
    flight, go = SingleFlight(), threading.Event()

    def work() -> bool:
        return go.wait(30)

    gone, stays = (asyncio.ensure_future(flight.run("key", work, patience_seconds=30)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    go.set()
    assert await stays


async def test_work_that_fails_is_nothing_and_may_be_tried_again() -> None:
    flight = SingleFlight()

    def fail() -> None:
        raise OSError("the disk is full")

    assert await flight.run("key", fail, patience_seconds=30) is None
    assert await flight.run("key", lambda: "made", patience_seconds=30) == "made"


async def test_what_is_queued_has_a_bound() -> None:
    flight, go = SingleFlight(), threading.Event()
    most = single_flight._MAX_QUEUED
    asked = [
        asyncio.ensure_future(flight.run(number, lambda: go.wait(30), patience_seconds=30)) for number in range(most)
    ]
    await asyncio.sleep(0)
    assert await flight.run("one more", lambda: True, patience_seconds=30) is None
    go.set()
    assert await asyncio.gather(*asked) == [True] * most
