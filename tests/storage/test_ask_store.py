"""The look-up of those who answer tasks: each is told of its own token and task, many by as many statements as one."""

import asyncio

import pytest
import sqlalchemy as sa

from aggregator_service.domain.records import TokenKind
from aggregator_service.flow.authentication import (
    authenticate_for_task,
    hash_token,
    not_in_force,
    recognise_for_task,
)
from aggregator_service.flow.handed_out import HandedOut, HandedOutTasks
from aggregator_service.storage import asks, tokens
from aggregator_service.storage.asks import AskRecord
from fl_protocol.problems import ProblemError, ProblemType
from tests.support.records import NOON, round_record, run_record, store_ground, task_record, token_record
from tests.support.store import Store, flow_on

NUM_CLIENTS = 5


@pytest.fixture(autouse=True)
def _ground(store: Store) -> None:
    store.write(lambda tx: store_ground(tx, num_clients=NUM_CLIENTS))
    for number in range(1, NUM_CLIENTS + 1):
        token = token_record(
            hash_token(f"secret {number}"), kind=TokenKind.CLIENT, client_id=f"client_{number}", expires_at=None
        )
        store.write(lambda tx, token=token: tokens.insert(tx, token))  # type: ignore[misc]


def asked_for(number: int) -> AskRecord:
    return AskRecord(task_record(f"task_{number}", client_id=f"client_{number}"), round_record(), run_record())


async def test_all_who_ask_together_are_found_by_as_many_statements_as_one(store: Store) -> None:
    flow, statements = flow_on(store), []
    sa.event.listen(
        store.transactions.database.readers,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement),
    )
    await authenticate_for_task(flow, "secret 1", task_id="task_1")
    alone = len(statements)
    together = range(1, NUM_CLIENTS + 1)
    told = await asyncio.gather(
        *(authenticate_for_task(flow, f"secret {number}", task_id=f"task_{number}") for number in together)
    )
    assert len(statements) == 2 * alone
    assert [(caller.client_id, found) for caller, found in told] == [
        (f"client_{number}", asked_for(number)) for number in together
    ]


async def test_what_befalls_one_is_not_told_to_another(store: Store) -> None:
    """One token is not known, one has expired, one asks for another's task, one for a task that is not there."""
    expired = token_record(hash_token("old"), kind=TokenKind.CLIENT, client_id="client_1", expires_at=NOON)
    store.write(lambda tx: tokens.insert(tx, expired))
    flow = flow_on(store)
    pairs = [("unknown", "task_1"), ("old", "task_1"), ("secret 3", "task_4"), ("secret 4", ""), ("secret 5", "task_5")]
    told = await asyncio.gather(
        *(authenticate_for_task(flow, bearer, task_id=task_id) for bearer, task_id in pairs), return_exceptions=True
    )
    refused = [one for one in told if isinstance(one, ProblemError)]
    assert [one.problem_type for one in refused] == [ProblemType.UNAUTHENTICATED] * 2
    assert [(one[0].client_id, one[1]) for one in told if isinstance(one, tuple)] == [
        ("client_3", asked_for(4)),
        ("client_4", None),
        ("client_5", asked_for(5)),
    ]


def test_a_task_is_found_with_what_it_belongs_to(store: Store) -> None:
    assert store.read(lambda tx: asks.of_task(tx, "task_2")) == asked_for(2)
    assert store.read(lambda tx: asks.of_task(tx, "task_9")) is None


async def test_a_task_that_was_handed_out_is_known_to_the_same_token_for_one_answer(store: Store) -> None:
    flow = flow_on(store)
    flow.handed_out.note(HandedOut(hash_token("secret 1"), asked_for(1)))
    assert recognise_for_task(flow, "secret 2", task_id="task_1") is None
    assert recognise_for_task(flow, "secret 1", task_id="task_2") is None
    known = recognise_for_task(flow, "secret 1", task_id="task_1")
    assert known == await authenticate_for_task(flow, "secret 1", task_id="task_1")
    assert recognise_for_task(flow, "secret 1", task_id="task_1") is None


def test_of_the_tasks_that_were_handed_out_the_newest_are_known() -> None:
    known, last = HandedOutTasks(), 5000
    for number in range(last + 1):
        known.note(HandedOut("hash", AskRecord(task_record(f"task_{number}"), round_record(), run_record())))
        # A client that asks again is told of the same task.
        known.note(HandedOut("hash", AskRecord(task_record("task_0"), round_record(), run_record())))
    newest = [number for number in range(last + 1) if known.take(f"task_{number}", token_hash="hash")]
    assert newest == [0, *range(last - 4094, last + 1)]


def test_tokens_that_are_unknown_expired_or_revoked_are_not_in_force(store: Store) -> None:
    expired = token_record(hash_token("old"), kind=TokenKind.CLIENT, client_id="client_1", expires_at=NOON)
    store.write(lambda tx: tokens.insert(tx, expired))
    store.write(lambda tx: tokens.revoke_of_client(tx, "client_2"))
    hashes = {each: hash_token(each) for each in ("secret 1", "secret 2", "secret 3", "old", "unknown")}
    found = store.read(lambda tx: not_in_force(tx, set(hashes.values())))
    assert found == {hashes["secret 2"], hashes["old"], hashes["unknown"]}
