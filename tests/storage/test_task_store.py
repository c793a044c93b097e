"""The tasks table."""

import pytest

from aggregator_service.domain.records import TaskState
from aggregator_service.storage import tasks
from aggregator_service.storage.rows import StaleRowError
from fl_protocol.tasks import TaskKind
from tests.support.records import store_ground, task_record
from tests.support.store import REFUSED, Store


@pytest.fixture(autouse=True)
def _ground(store: Store) -> None:
    store.write(lambda tx: store_ground(tx, num_clients=3))


def test_a_task_comes_back_as_it_was_inserted(store: Store) -> None:
    assert store.read(lambda tx: tasks.get(tx, "task_1")) == task_record()
    assert store.read(lambda tx: tasks.get(tx, "task_9")) is None


def test_a_client_has_one_task_of_a_kind_in_an_attempt(store: Store) -> None:
    with pytest.raises(REFUSED):
        store.write(lambda tx: tasks.insert(tx, task_record("task_9")))
    store.write(lambda tx: tasks.insert(tx, task_record("task_9", kind=TaskKind.EVALUATE)))
    found = store.read(
        lambda tx: [tasks.find(tx, round_id="round_1", client_id="client_1", kind=kind) for kind in TaskKind]
    )
    assert {task.task_id for task in found if task} == {"task_1", "task_9"}
    assert store.read(lambda tx: tasks.find(tx, round_id="round_1", client_id="nobody", kind=TaskKind.TRAIN)) is None


def test_a_task_moves_only_from_the_state_that_was_read(store: Store) -> None:
    task = task_record()
    store.write(lambda tx: tasks.set_state(tx, task, TaskState.GIVEN_UP))
    with pytest.raises(StaleRowError):
        store.write(lambda tx: tasks.set_state(tx, task, TaskState.DONE))
    found = store.read(lambda tx: tasks.get(tx, "task_1"))
    assert found == task_record(state=TaskState.GIVEN_UP)


def test_tasks_given_up_free_their_place(store: Store) -> None:
    def count() -> int:
        return store.read(lambda tx: tasks.count(tx, round_id="round_1", kind=TaskKind.TRAIN))

    assert count() == 3
    store.write(lambda tx: tasks.set_state(tx, task_record(), TaskState.GIVEN_UP))
    store.write(lambda tx: tasks.set_state(tx, task_record("task_2"), TaskState.DONE))
    assert count() == 2


def test_tasks_are_answered_together_only_if_each_is_open(store: Store) -> None:
    store.write(lambda tx: tasks.insert(tx, task_record("task_9", kind=TaskKind.EVALUATE, state=TaskState.GIVEN_UP)))
    with pytest.raises(StaleRowError):
        store.write(lambda tx: tasks.mark_done(tx, ["task_1", "task_9"]))
    store.write(lambda tx: tasks.mark_done(tx, ["task_1", "task_2"]))
    found = store.read(lambda tx: tasks.get_all(tx, ["task_1", "task_2", "task_9", "task_0"]))
    assert {task_id: task.state for task_id, task in found.items()} == {
        "task_1": TaskState.DONE,
        "task_2": TaskState.DONE,
        "task_9": TaskState.GIVEN_UP,
    }
