import pytest

import client_sdk.errors
from client_sdk.errors import ERROR_OF_PROBLEM, FedQuorumError, ServerError, error_of_problem, printable
from fl_protocol.problems import Problem, ProblemType


def test_every_problem_type_has_an_exception_of_its_own() -> None:
    assert set(ERROR_OF_PROBLEM) == set(ProblemType)
    assert len(set(ERROR_OF_PROBLEM.values())) == len(ProblemType)


@pytest.mark.parametrize("problem_type", ProblemType)
def test_a_problem_becomes_its_exception(problem_type: ProblemType) -> None:
    uri = f"/problems/{problem_type.value}"
    problem = Problem(type=uri, title="Title", status=418, detail="what was wrong", retryable=False)
    error = error_of_problem(problem, status=418, retry_after_seconds=2.0)
    assert type(error).problem_type is problem_type
    assert (error.status, error.detail, error.retry_after_seconds) == (418, "what was wrong", 2.0)
    assert error.problem == problem


def test_an_unknown_problem_is_a_server_error() -> None:
    problem = Problem(type="/problems/of-the-future", title="New", status=409, detail="", retryable=False)
    error = error_of_problem(problem, status=409)
    assert type(error) is ServerError
    assert str(error) == "New"


def test_the_docstring_draws_every_error() -> None:
    drawn = client_sdk.errors.__doc__ or ""
    for name, value in vars(client_sdk.errors).items():
        if isinstance(value, type) and issubclass(value, FedQuorumError):
            assert name in drawn


def test_what_the_server_says_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[31mb\r\n\x00c\u202ed\u2028e") == "a [31mb c d e"
    assert len(printable("x" * 10_000)) == 500
