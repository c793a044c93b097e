"""Work that outlives those who wait for it: done once, told to whoever asks, in any order of asking and ending."""

import asyncio

import pytest

from aggregator_service.flow.completions import NUM_AT_ONCE, Completions
from fl_protocol.problems import ProblemError, ProblemType

pytestmark = pytest.mark.anyio


class Work:
    """Ends when it is let go, and counts how often it was begun."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = 0
        self.let_go = asyncio.Event()
        self._error = error

    async def __call__(self) -> str:
        self.begun += 1
        await self.let_go.wait()
        if self._error is not None:
            raise self._error
        return "done"


async def test_work_that_takes_longer_than_patience_goes_on_and_is_told_to_who_asks_again() -> None:
    completions, work = Completions(patience_seconds=0.01), Work()
    for _ in range(2):
        with pytest.raises(ProblemError) as told:
            await completions.run("upload_1", work)
        assert told.value.problem_type is ProblemType.UNAVAILABLE
    work.let_go.set()
    assert await completions.run("upload_1", work) == "done"
    assert work.begun == 1


async def test_a_failure_is_told_and_the_next_one_who_asks_begins_anew() -> None:
    completions, work = Completions(), Work(ValueError("no"))
    work.let_go.set()
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await completions.run("upload_1", work)
    assert work.begun == 2


async def test_only_some_work_at_once_and_all_of_it_ends_with_the_process() -> None:
    completions, works = Completions(patience_seconds=0.01), [Work() for _ in range(NUM_AT_ONCE + 2)]
    asked = [completions.run(f"upload_{number}", work) for number, work in enumerate(works)]
    assert all(isinstance(one, ProblemError) for one in await asyncio.gather(*asked, return_exceptions=True))
    assert [work.begun for work in works] == [1] * NUM_AT_ONCE + [0, 0]
    await asyncio.wait_for(completions.stop(), timeout=20)
    assert sum(work.begun for work in works) == NUM_AT_ONCE
