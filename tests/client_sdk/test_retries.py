import pytest

from client_sdk.config import Limits
from client_sdk.errors import ServerError, TransportError, UntrustedAnswerError, error_of_problem
from client_sdk.retries import is_retryable, pause_seconds, retrying
from fl_protocol.problems import Problem

LIMITS = Limits(max_attempts=5, backoff_initial_seconds=1, backoff_max_seconds=6, retry_after_max_seconds=20)


def refusal(status: int, *, retryable: bool | None = None, retry_after: float | None = None) -> ServerError:
    if retryable is None:
        return ServerError("no", status=status, retry_after_seconds=retry_after)
    problem = Problem(type="/problems/unheard-of", title="No", status=status, detail="no", retryable=retryable)
    return error_of_problem(problem, status=status, retry_after_seconds=retry_after)


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504, 507])
def test_some_statuses_are_always_tried_again(status: int) -> None:
    assert is_retryable(refusal(status))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 415, 422, 500])
def test_other_statuses_only_if_the_problem_says_so(status: int) -> None:
    assert not is_retryable(refusal(status))
    assert not is_retryable(refusal(status, retryable=False))
    assert is_retryable(refusal(status, retryable=True))


def test_what_cannot_be_trusted_is_never_tried_again() -> None:
    assert is_retryable(TransportError("cut"))
    assert not is_retryable(UntrustedAnswerError("a lie"))


def test_ceilings_double_up_to_the_highest() -> None:
    pauses = [pause_seconds(TransportError("cut"), attempt, limits=LIMITS, fraction=1.0) for attempt in range(1, 6)]
    assert pauses == [1, 2, 4, 6, None]


def test_the_jitter_is_full() -> None:
    assert pause_seconds(TransportError("cut"), 3, limits=LIMITS, fraction=0.0) == 0
    assert pause_seconds(TransportError("cut"), 3, limits=LIMITS, fraction=0.25) == 1


@pytest.mark.parametrize(("asked", "waited"), [(3.0, 3.0), (1e9, 20.0), (0.0, 0.0)])
def test_retry_after_is_obeyed_up_to_its_ceiling(asked: float, waited: float) -> None:
    assert pause_seconds(refusal(503, retry_after=asked), 1, limits=LIMITS, fraction=0.0) == waited


async def test_attempts_end_with_the_last_error() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def attempt() -> None:
        raise TransportError("cut")

    with pytest.raises(TransportError, match="cut"):
        await retrying(attempt, LIMITS, sleep=sleep, fraction=lambda: 1.0)
    assert slept == [1, 2, 4, 6]
