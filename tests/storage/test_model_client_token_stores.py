"""The models, clients, tokens, idempotency_keys and events tables."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from aggregator_service.domain.records import TokenKind
from aggregator_service.storage import clients, events, models, runs, tokens
from aggregator_service.storage.tokens import IdempotencyRecord
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import EventType
from tests.support.records import client_record, later, model_record, run_record, store_blob, store_ground, token_record
from tests.support.store import REFUSED, Store, open_store


def test_versions_come_back_are_paged_and_never_replaced(store: Store) -> None:
    def body(tx: WriteTx) -> None:
        store_ground(tx)
        store_blob(tx, "state")
        for version in (2, 0, 1):
            models.insert(tx, model_record(version, optimizer_blob_id="state" if version else None))

    store.write(body)
    assert store.read(lambda tx: models.get(tx, "run_1", 1)) == model_record(1, optimizer_blob_id="state")
    assert store.read(lambda tx: models.get(tx, "run_1", 3)) is None
    listed = store.read(lambda tx: models.page(tx, "run_1", after_version=-1, limit=2))
    assert [model.version for model in listed] == [0, 1]
    assert [one.version for one in store.read(lambda tx: models.page(tx, "run_1", after_version=1, limit=2))] == [2]
    with pytest.raises(REFUSED):
        store.write(lambda tx: models.insert(tx, model_record(1)))


def test_clients_come_back_are_paged_and_revoked_once(store: Store) -> None:
    made = [client_record(f"client_{name}", created_at=later(at)) for name, at in (("c", 0), ("a", 1), ("b", 1))]
    for record in reversed(made):
        store.write(lambda tx, record=record: clients.insert(tx, record))  # type: ignore[misc]
    first = store.read(lambda tx: clients.page(tx, after=None, limit=2))
    position = (first[-1].created_at, first[-1].client_id)
    assert [*first, *store.read(lambda tx: clients.page(tx, after=position, limit=2))] == made
    assert [store.write(lambda tx: clients.revoke(tx, "client_a")) for _ in range(2)] == [True, False]
    revoked = store.read(lambda tx: clients.get(tx, "client_a"))
    assert revoked is not None
    assert revoked.revoked_at is not None
    assert store.read(lambda tx: clients.get(tx, "client_z")) is None


def test_the_last_sight_of_a_client_is_kept_to_half_a_minute(store: Store) -> None:
    store.write(lambda tx: clients.insert(tx, client_record()))

    def seen() -> object:
        store.write(lambda tx: clients.mark_seen(tx, ["client_1"]))
        found = store.read(lambda tx: clients.get(tx, "client_1"))
        assert found is not None
        return found.last_seen_at

    first = seen()
    assert first is not None
    assert seen() == first


def test_a_token_is_known_by_its_hash_and_revoked_with_its_client(store: Store) -> None:
    def body(tx: WriteTx) -> None:
        clients.insert(tx, client_record())
        tokens.insert(tx, token_record("a" * 64, kind=TokenKind.CLIENT, client_id="client_1", max_uses=None))
        tokens.insert(tx, token_record("b" * 64))

    store.write(body)
    assert store.read(lambda tx: tokens.get(tx, "b" * 64)) == token_record("b" * 64)
    assert store.read(lambda tx: tokens.get(tx, "c" * 64)) is None
    assert not store.read(tokens.any_operator)
    store.write(lambda tx: tokens.revoke_of_client(tx, "client_1"))
    revoked, other = store.read(lambda tx: (tokens.get(tx, "a" * 64), tokens.get(tx, "b" * 64)))
    assert revoked is not None
    assert other is not None
    assert (revoked.revoked_at is None, other.revoked_at) == (False, None)
    store.write(lambda tx: tokens.insert(tx, token_record("d" * 64, kind=TokenKind.OPERATOR)))
    assert store.read(tokens.any_operator)


def test_a_tokens_uses_are_spent_exactly(store: Store) -> None:
    store.write(lambda tx: tokens.insert(tx, token_record(max_uses=5)))
    with ThreadPoolExecutor(8) as pool:
        spent = list(pool.map(lambda _: store.write(lambda tx: tokens.spend_use(tx, "0" * 64)), range(20)))
    assert spent.count(True) == 5


def test_what_a_create_with_a_key_made_is_remembered(store: Store) -> None:
    record = IdempotencyRecord("scope" * 20, "key", "sha256:" + "0" * 64, "run_1")
    store.write(lambda tx: tokens.remember(tx, record))
    assert store.read(lambda tx: tokens.recall(tx, record.scope, "key")) == record
    assert store.read(lambda tx: tokens.recall(tx, "other", "key")) is None
    with pytest.raises(REFUSED):
        store.write(lambda tx: tokens.remember(tx, record))


def test_events_are_numbered_from_one_without_gaps_in_each_run(store: Store, database_url: str) -> None:
    for run_id in ("run_1", "run_2"):
        store.write(lambda tx, run_id=run_id: runs.insert(tx, run_record(run_id)))  # type: ignore[misc]

    def append(into: Store, number: int) -> None:
        def body(tx: WriteTx) -> None:
            events.append(tx, f"run_{number % 2 + 1}", EventType.RUN_STATE, {"number": number, "name": "ü"})
            if number % 5 == 0:
                raise ValueError("this one is undone")

        with pytest.raises(ValueError, match="undone") if number % 5 == 0 else nullcontext():
            into.write(body)

    with ThreadPoolExecutor(8) as pool:
        if database_url.startswith("postgresql"):
            with open_store(database_url) as other:
                list(pool.map(append, [store, other] * 50, range(100)))
        else:
            list(pool.map(append, [store] * 100, range(100)))
    for run_id in ("run_1", "run_2"):
        found = store.read(lambda tx, run_id=run_id: events.after(tx, run_id, 0, limit=1000))  # type: ignore[misc]
        assert [event.event_id for event in found] == list(range(1, 41))
        assert all(event.data["name"] == "ü" for event in found)
        rest = store.read(lambda tx, run_id=run_id: events.after(tx, run_id, 37, limit=2))  # type: ignore[misc]
        assert [event.event_id for event in rest] == [38, 39]
