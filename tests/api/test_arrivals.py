"""How far bodies are read ahead: all together have a bound, and one that was answered early is read to its end."""

import itertools

import pytest

from aggregator_service.api.arrivals import Arrivals
from tests.support.raw import connect, read_answer
from tests.support.server import ServerProcess

MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("num_bodies", "num_bytes"), [(1, 256 << 10), (16, 256 << 10), (100, 41943), (10_000, 16 << 10)]
)
def test_a_body_is_read_in_pieces_that_shrink_with_the_number_of_bodies(num_bodies: int, num_bytes: int) -> None:
    arrivals = Arrivals()
    for _ in range(num_bodies):
        arrivals.begin()
    assert arrivals.room(is_begun=True) == len(arrivals.buffer(arrivals.room(is_begun=True))) == num_bytes
    for _ in range(num_bodies):
        arrivals.end()
    assert arrivals.room(is_begun=True) == 256 << 10


def test_a_hundred_bodies_that_nobody_takes_are_read_ahead_by_less_than_8_mebibytes() -> None:
    arrivals, waiting = Arrivals(), list[int]()
    for _ in range(100):
        # Each comes with its head, as much of it as the first read takes.
        waiting.append(arrivals.room(is_begun=False))
        arrivals.begin()
    for body in itertools.cycle(range(100)):
        if all(map(arrivals.is_much, waiting)):
            break
        if not arrivals.is_much(waiting[body]):
            waiting[body] += arrivals.room(is_begun=True)
    assert sum(waiting) < 8 * MEBIBYTE


def test_a_large_body_that_is_refused_at_once_is_read_to_its_end_and_the_connection_goes_on(
    shared_server: ServerProcess,
) -> None:
    body = bytes(4 * MEBIBYTE)
    refused = f"PUT /nothing HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with connect(shared_server.url) as link:
        for _ in range(2):
            link.sendall(refused + body)
            assert read_answer(link).status == 404
        link.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_answer(link).status == 200
