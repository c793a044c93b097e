"""The updates and evaluations tables: each client once in an attempt, whoever asks for it."""

import pytest
import sqlalchemy as sa

from aggregator_service.storage import updates
from aggregator_service.storage.transactions import WriteTx
from tests.support.records import evaluation_record, store_blob, store_ground, update_record
from tests.support.store import REFUSED, Store


@pytest.fixture(autouse=True)
def _ground(store: Store) -> None:
    def body(tx: WriteTx) -> None:
        store_ground(tx, num_clients=3)
        for number in (2, 3):
            store_blob(tx, f"blob_{number}")

    store.write(body)


def test_an_update_comes_back_as_it_was_inserted(store: Store) -> None:
    store.write(lambda tx: updates.insert(tx, update_record()))
    assert store.read(lambda tx: updates.of_task(tx, "task_1")) == update_record()
    assert store.read(lambda tx: updates.of_task(tx, "task_2")) is None
    assert store.read(lambda tx: updates.of_round(tx, "round_1")) == [update_record()]


@pytest.mark.parametrize(
    "second",
    [
        update_record("update_2", client_id="client_2", blob_id="blob_2"),
        update_record("update_2", task_id="task_2", blob_id="blob_2"),
        update_record(task_id="task_2", client_id="client_2", blob_id="blob_2"),
    ],
    ids=["of-the-same-task", "of-the-same-client", "of-the-same-id"],
)
def test_the_database_itself_refuses_a_second_update(store: Store, second: object) -> None:
    store.write(lambda tx: updates.insert(tx, update_record()))
    with pytest.raises(REFUSED):
        store.write(lambda tx: updates.insert(tx, second))  # type: ignore[arg-type]
    assert len(store.read(lambda tx: updates.of_round(tx, "round_1"))) == 1


def test_a_client_may_be_counted_again_in_an_attempt_where_no_update_counts_once(store: Store) -> None:
    pair = [
        update_record(f"update_{at}", task_id=f"task_{at}", blob_id=f"blob_{at}", counts_once=False) for at in (1, 2)
    ]
    store.write(lambda tx: updates.insert(tx, *pair))
    assert len(store.read(lambda tx: updates.of_round(tx, "round_1"))) == 2


def test_an_update_without_its_bytes_cannot_exist(store: Store) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        store.write(lambda tx: updates.insert(tx, update_record(blob_id="blob_9")))


def test_a_rounds_updates_come_in_the_order_of_their_digests_and_are_paged_by_client(store: Store) -> None:
    digests = ["sha256:" + letter * 64 for letter in "bca"]
    for number, digest in enumerate(digests, start=1):
        record = update_record(
            f"update_{number}",
            task_id=f"task_{number}",
            client_id=f"client_{number}",
            blob_id=f"blob_{number}",
            digest=digest,
        )
        store.write(lambda tx, record=record: updates.insert(tx, record))  # type: ignore[misc]
    assert [one.digest for one in store.read(lambda tx: updates.of_round(tx, "round_1"))] == sorted(digests)
    pages = [
        store.read(lambda tx, after=after: updates.page(tx, "round_1", after=after, limit=2))  # type: ignore[misc]
        for after in (("", ""), ("client_2", "update_2"), ("client_3", "update_3"))
    ]
    assert [[one.client_id for one in page] for page in pages] == [["client_1", "client_2"], ["client_3"], []]


def test_a_report_comes_back_and_there_is_one_of_a_client(store: Store) -> None:
    store.write(lambda tx: updates.insert_evaluation(tx, evaluation_record()))
    assert store.read(lambda tx: updates.evaluation_of_task(tx, "task_1")) == evaluation_record()
    for second in (
        evaluation_record("update_2", task_id="task_2"),
        evaluation_record("update_2", client_id="client_2"),
    ):
        with pytest.raises(REFUSED):
            store.write(lambda tx, second=second: updates.insert_evaluation(tx, second))  # type: ignore[misc]
    assert store.read(lambda tx: updates.evaluations_of_round(tx, "round_1")) == [evaluation_record()]
