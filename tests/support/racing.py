"""Clients that do the same thing at the same instant."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tests.support.participant import Participant, enrol
from tests.support.server import ServerProcess

T = TypeVar("T")
A = TypeVar("A")

PATIENCE_SECONDS = 60.0


def spread(servers: Sequence[ServerProcess], number: int) -> list[Participant]:
    """Enrols clients, each of which speaks to one of the servers in turn."""
    clients = []
    for index in range(number):
        with servers[index % len(servers)].http() as operator:
            clients.append(enrol(operator, f"client-{index}"))
    return clients


def at_once(step: Callable[[A, threading.Barrier], T], actors: Sequence[A]) -> list[T]:
    """Runs a step for each actor on a thread of its own, with a barrier to wait at, and gives what they return."""
    barrier = threading.Barrier(len(actors), timeout=PATIENCE_SECONDS)

    def run(actor: A) -> T:
        try:
            return step(actor, barrier)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(len(actors)) as pool:
        return [job.result() for job in [pool.submit(run, actor) for actor in actors]]


def held_back(body: bytes, barrier: threading.Barrier) -> Iterator[bytes]:
    """Sends a body up to its last byte, and that one when everybody has come as far."""
    yield body[:-1]
    barrier.wait()
    yield body[-1:]
