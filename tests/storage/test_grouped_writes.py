"""Grouped writes: one body for all that wait together, and to each of them its own outcome, whatever befalls others."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from aggregator_service.storage import clients, runs
from aggregator_service.storage.tables import runs as table
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.problems import ProblemError, ProblemType
from tests.support.holding import queued
from tests.support.records import client_record, run_record
from tests.support.store import Store

CANCELLED = asyncio.CancelledError()
Poison = Callable[[WriteTx, str], None]


class _ConflictError(Exception):
    sqlstate = "40001"


class Enrolment:
    """A body that adds a client an item and wakes a topic of its name; remembers what it was called with."""

    def __init__(self, *, refused: str = "", poison: Poison = lambda _tx, _item: None) -> None:
        self.refused = refused
        self.poison = poison
        self.calls: list[list[str]] = []

    def __call__(self, tx: WriteTx, items: Sequence[str]) -> list[str | ProblemError]:
        self.calls.append(list(items))
        outcomes: list[str | ProblemError] = []
        for item in items:
            if item == self.refused:
                outcomes.append(ProblemError(ProblemType.ROUND_CLOSED, f"not {item}"))
                continue
            clients.insert(tx, client_record(item))
            tx.wake(item)
            self.poison(tx, item)
            outcomes.append(item.upper())
        return outcomes


def raises_value_error(tx: WriteTx, item: str) -> None:
    if item == "b":
        raise ValueError("poisoned")


def breaks_a_rule(tx: WriteTx, item: str) -> None:
    if item == "b":
        tx.connection.execute(sa.insert(table).values(run_id="run_2"))


@dataclass(frozen=True)
class Raised:
    """What an item was told by an exception."""

    error: BaseException


async def outcomes(writes: Sequence[asyncio.Future[str]]) -> list[str | Raised]:
    await asyncio.wait(writes)
    return [Raised(CANCELLED) if write.cancelled() else _told(write) for write in writes]


def _told(write: asyncio.Future[str]) -> str | Raised:
    error = write.exception()
    return write.result() if error is None else Raised(error)


async def grouped(store: Store, body: Enrolment, items: str) -> list[str | Raised]:
    """Writes items that wait together; gives what each was told."""
    async with queued(store, len(items)):
        writes = [asyncio.ensure_future(store.transactions.write_grouped("enrol", item, body)) for item in items]
    return await outcomes(writes)


def problem(told: str | Raised) -> ProblemError:
    assert isinstance(told, Raised)
    assert isinstance(told.error, ProblemError)
    return told.error


def names(store: Store) -> str:
    return "".join(client.client_id for client in store.read(lambda tx: clients.page(tx, after=None, limit=1000)))


async def test_what_waits_together_is_given_to_the_body_once_and_in_order(store: Store) -> None:
    body = Enrolment()
    assert await grouped(store, body, "abcd") == ["A", "B", "C", "D"]
    assert (body.calls, names(store)) == ([["a", "b", "c", "d"]], "abcd")
    assert store.announced == [frozenset("abcd")]


async def test_what_comes_alone_is_written_alone(store: Store) -> None:
    body = Enrolment()
    assert await store.transactions.write_grouped("enrol", "a", body) == "A"
    assert (body.calls, names(store)) == ([["a"]], "a")


async def test_a_refusal_is_raised_to_its_own_item_and_the_others_are_committed(store: Store) -> None:
    body = Enrolment(refused="b")
    first, second, third = await grouped(store, body, "abc")
    assert (first, third, names(store), len(body.calls)) == ("A", "C", "ac", 1)
    assert (problem(second).problem_type, problem(second).detail) == (ProblemType.ROUND_CLOSED, "not b")


@pytest.mark.parametrize(
    ("poison", "error"), [(raises_value_error, ValueError), (breaks_a_rule, sa.exc.IntegrityError)]
)
async def test_an_item_that_breaks_the_body_fails_alone(store: Store, poison: Poison, error: type[Exception]) -> None:
    store.write(lambda tx: runs.insert(tx, run_record()))
    body = Enrolment(refused="c", poison=poison)
    first, second, third, fourth = await grouped(store, body, "abcd")
    assert (first, fourth, names(store)) == ("A", "D", "ad")
    assert isinstance(second, Raised)
    assert isinstance(second.error, error)
    assert problem(third).detail == "not c"
    assert body.calls[0] == ["a", "b", "c", "d"]
    assert ["b"] in body.calls


async def test_a_group_that_lost_against_another_transaction_is_run_again(store: Store) -> None:
    def loses_at_first(tx: WriteTx, item: str) -> None:
        if len(body.calls) == 1 and item == "b":
            raise sa.exc.OperationalError("UPDATE", {}, _ConflictError())

    body = Enrolment(refused="c", poison=loses_at_first)
    first, second, third, fourth = await grouped(store, body, "abcd")
    assert (first, second, fourth, names(store)) == ("A", "B", "D", "abd")
    assert problem(third).detail == "not c"


async def test_who_gives_up_while_waiting_is_left_out(store: Store) -> None:
    body = Enrolment()
    async with queued(store, 3):
        writes = [asyncio.ensure_future(store.transactions.write_grouped("enrol", item, body)) for item in "abc"]
        await asyncio.sleep(0)
        writes[1].cancel()
    first, second, third = await outcomes(writes)
    assert (first, third, names(store), body.calls) == ("A", "C", "ac", [["a", "c"]])
    assert second == Raised(CANCELLED)


async def test_groups_and_ordinary_writes_share_a_commit_and_nothing_else(store: Store) -> None:
    body, other = Enrolment(), Enrolment()
    async with queued(store, 5):
        write = store.transactions.write_grouped
        writes = [
            asyncio.ensure_future(write("enrol", "a", body)),
            asyncio.ensure_future(write("invite", "b", other)),
            asyncio.ensure_future(store.transactions.write("enrol", lambda tx: body(tx, ["c"])[0])),
            asyncio.ensure_future(write("enrol", "d", body)),
            asyncio.ensure_future(write("invite", "e", other)),
        ]
    assert await asyncio.gather(*writes) == ["A", "B", "C", "D", "E"]
    assert sorted(body.calls) == [["a", "d"], ["c"]]
    assert (other.calls, names(store)) == ([["b", "e"]], "abcde")
    metrics = store.telemetry.render().decode()
    assert "fedquorum_commit_batch_size_count 2.0" in metrics
    assert "fedquorum_commit_batch_size_sum 6.0" in metrics


async def test_an_ordinary_write_that_raises_leaves_a_group_together(store: Store) -> None:
    def refuses(tx: WriteTx) -> str:
        raise ProblemError(ProblemType.NOT_FOUND, "nothing here")

    body = Enrolment()
    async with queued(store, 3):
        writes = [
            asyncio.ensure_future(store.transactions.write_grouped("enrol", "a", body)),
            asyncio.ensure_future(store.transactions.write("refuse", refuses)),
            asyncio.ensure_future(store.transactions.write_grouped("enrol", "b", body)),
        ]
    first, second, third = await outcomes(writes)
    assert (first, third, names(store), body.calls) == ("A", "B", "ab", [["a", "b"]] * 2)
    assert problem(second).detail == "nothing here"


async def test_a_body_that_forgets_an_item_fails_rather_than_answer_for_another(store: Store) -> None:
    def forgetful(tx: WriteTx, items: Sequence[str]) -> list[str | ProblemError]:
        return Enrolment()(tx, items)[1:]

    with pytest.raises(ValueError, match="zip"):
        await store.transactions.write_grouped("enrol", "a", forgetful)
    assert names(store) == ""
