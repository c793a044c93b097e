"""A held request is answered outside of the framework, whatever happens to it there, and leaves nothing behind."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aggregator_service.api.application import serve
from aggregator_service.api.connections import Pipeline, Signal
from aggregator_service.api.holding import Held
from aggregator_service.telemetry import Telemetry
from fl_protocol.problems import ProblemError, ProblemType


class _Found(BaseModel):
    number: int


async def _finds() -> _Found:
    return _Found(number=7)


async def _refuses() -> Response:
    raise ProblemError(ProblemType.RUN_FINISHED, "the run is stopped")


async def _fails() -> Response:
    raise ZeroDivisionError


class _Breaks(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise ProblemError(ProblemType.UNAVAILABLE, "the store does not answer")


async def _breaks() -> Response:
    return _Breaks()


@dataclass(frozen=True)
class _Answered:
    response: httpx.Response
    metrics: str


async def _held(answer: Callable[[], Awaitable[Response | BaseModel]]) -> _Answered:
    """Asks a route that holds its requests for this answer."""
    telemetry, app = Telemetry(), FastAPI()

    @app.get("/held", response_model=None)
    async def hold() -> Held:
        return Held(answer)

    transport = httpx.ASGITransport(serve(app, telemetry))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        response = await http.get("/held")
    return _Answered(response, telemetry.render().decode())


@pytest.mark.parametrize(
    ("answer", "status"),
    [(_finds, 200), (_refuses, 410), (_fails, 500), (_breaks, 503)],
    ids=["finds", "refuses", "fails", "breaks"],
)
async def test_every_end_of_a_held_request_is_an_answer_that_is_counted(
    answer: Callable[[], Awaitable[Response | BaseModel]], status: int
) -> None:
    answered = await _held(answer)
    assert answered.response.status_code == status
    assert answered.response.headers["x-content-type-options"] == "nosniff"
    is_problem = answered.response.headers["content-type"] == "application/problem+json"
    assert is_problem if status >= 400 else answered.response.json() == {"number": 7}
    counted = f'fedquorum_requests_total{{operation="GET /held",status="{status}"}} 1.0'
    assert counted in answered.metrics
    assert "\nfedquorum_waiting_requests 0.0\n" in answered.metrics
    assert ("fedquorum_refusals_total" in answered.metrics.partition("# TYPE fedquorum_refusals")[2]) == is_problem


async def test_a_signal_lets_everyone_go_who_waits_and_who_comes() -> None:
    signal, told = Signal(), []

    async def wait(name: str) -> None:
        await signal.wait()
        told.append(name)

    first, second, leaver = (asyncio.ensure_future(wait(name)) for name in ("first", "second", "leaver"))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.sleep(0)
    assert not told
    signal.set()
    await asyncio.gather(first, second, wait("third"))
    assert sorted(told) == ["first", "second", "third"]
    signal.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(signal.wait(), 0.01)


def test_requests_that_came_early_leave_a_pipeline_in_their_order() -> None:
    pipeline: Pipeline[int] = Pipeline()
    assert not pipeline
    for number in (1, 2, 3):
        pipeline.appendleft(number)
    assert [pipeline.pop(), pipeline.pop(), pipeline.pop()] == [1, 2, 3]
