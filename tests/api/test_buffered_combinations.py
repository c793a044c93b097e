"""What goes with synchronous rounds goes with buffers: where no update is stale, the models are the same bits."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.learning import begin
from tests.support.participant import Participant, Tensors, create_run, enrol, unpack, update_body, wait_for_run
from tests.support.refusals import assert_refused

REGIONS = "nnnnssw"
NUM_ROUNDS = 2
SYNCHRONOUS = {"quorum": len(REGIONS), "deadline_seconds": 3600}
BUFFERED = {"kind": "buffered", "buffer_size": len(REGIONS), "deadline_seconds": 3600}
ALL_ALIKE = {"staleness": {"kind": "constant"}}
MODEL: Tensors = {
    "layer.weight": np.linspace(-1, 1, 35, dtype=np.float32).reshape(5, 7),
    "layer.bias": np.zeros(7, dtype=np.float32),
    "head.weight": np.ones(4, dtype=np.float64),
    "num_batches": np.array(3, dtype=np.int64),
}
MEANS: dict[str, dict[str, Any]] = {
    "by-examples": {"strategy": {"max_weight": 5}},
    "largest-share": {"strategy": {"max_share": 0.2}},
    "uniform": {"strategy": {"weighting": "uniform"}},
    "strata": {"strategy": {"weighting": {"kind": "inverse_stratum_size", "attribute": "region"}}},
    "clipped": {"strategy": {"max_update_norm": {"kind": "clip", "norm": 3.0}}},
    "fedavgm": {"server_optimizer": {"kind": "sgd", "momentum": 0.9}},
    "nesterov": {"server_optimizer": {"kind": "sgd", "momentum": 0.9, "nesterov": True}},
    "adagrad": {"server_optimizer": {"kind": "adagrad", "schedule": {"kind": "step", "every": 1, "factor": 0.5}}},
    "adam": {"server_optimizer": {"kind": "adam", "schedule": {"kind": "cosine", "num_rounds": NUM_ROUNDS}}},
    "yogi": {"server_optimizer": {"kind": "yogi", "schedule": {"kind": "constant", "warmup_rounds": 1}}},
    "adapter": {"parameters": {"trainable": ["layer.*"]}},
    "personal": {"parameters": {"personal": ["head.*"]}},
}
ROBUST: dict[str, dict[str, Any]] = {
    "median": {"strategy": {"kind": "median"}},
    "trimmed_mean": {"strategy": {"kind": "trimmed_mean", "trim_fraction": 0.3}},
    "krum": {"strategy": {"kind": "krum", "num_byzantine": 2}},
    "multi_krum": {"strategy": {"kind": "multi_krum", "num_byzantine": 2, "num_selected": 3}},
    "bulyan": {"strategy": {"kind": "bulyan", "num_byzantine": 1}},
    "geometric_median": {"strategy": {"kind": "geometric_median"}},
}
CASES = {name: (spec, BUFFERED) for name, spec in MEANS.items()} | {
    name: (spec, BUFFERED | ALL_ALIKE) for name, spec in ROBUST.items()
}
# The database makes no difference to the arithmetic: a mean, an optimizer and a robust strategy go on both.
PLACES = {f"sqlite-{name}": ("sqlite", *case) for name, case in CASES.items()} | {
    f"postgres-{name}": ("postgres", *CASES[name]) for name in ("strata", "adam", "bulyan")
}


@pytest.fixture
def clients(shared_operator: httpx.Client) -> list[Participant]:
    """Enrols clients of three regions."""
    return [enrol(shared_operator, f"client-{index}", region=region) for index, region in enumerate(REGIONS)]


def delta_of(number: int, round_number: int, *, names: tuple[str, ...]) -> bytes:
    """Writes what a client sends; the last one's is far off."""
    generator = np.random.default_rng([number, round_number])
    scale = 1.0 if number + 1 < len(REGIONS) else -40.0
    delta = {
        name: (scale * generator.normal(size=values.shape)).astype(values.dtype)
        for name, values in MODEL.items()
        if name.startswith(names)
    }
    return update_body(delta, num_examples=3 * number + 1)


def models_of(operator: httpx.Client, clients: list[Participant], *, order: range, **spec: Any) -> list[bytes]:
    """Lets every client take part in every round, in a given order, and gives the bytes of each version."""
    parameters = spec.get("parameters", {})
    names = ("layer.",) if "trainable" in parameters else ("layer.", "num_")
    names += () if parameters else ("head.",)
    run_id = create_run(operator, MODEL, num_rounds=NUM_ROUNDS, **spec)
    for number in range(1, NUM_ROUNDS + 1):
        tasks = [client.claim(run_id, wait=20).json() for client in clients]
        for at in order:
            sent = clients[at].put(tasks[at]["task_id"], delta_of(at, number, names=names))
            assert sent.status_code == 201, sent.text
        wait_for_run(operator, run_id, version=number)
    versions = range(NUM_ROUNDS + 1)
    return [operator.get(f"/v1/runs/{run_id}/models/{version}").content for version in versions]


@pytest.mark.parametrize(("shared_server", "spec", "buffered"), PLACES.values(), ids=PLACES, indirect=["shared_server"])
def test_a_buffer_of_fresh_updates_makes_the_bits_of_a_synchronous_round(
    shared_operator: httpx.Client, clients: list[Participant], spec: dict[str, Any], buffered: dict[str, Any]
) -> None:
    forwards, backwards = range(len(clients)), range(len(clients) - 1, -1, -1)
    in_rounds = models_of(shared_operator, clients, order=forwards, round=SYNCHRONOUS, **spec)
    in_buffers = models_of(shared_operator, clients, order=backwards, round=buffered, **spec)
    assert len(set(in_rounds)) == NUM_ROUNDS + 1
    assert in_buffers == in_rounds


def test_an_update_over_the_norm_is_refused_and_its_place_in_the_buffer_stays_free(
    shared_operator: httpx.Client,
) -> None:
    bound = {"max_update_norm": {"kind": "reject", "norm": 2.0}}
    course = begin(shared_operator, num_clients=1, round={"kind": "buffered", "buffer_size": 1}, strategy=bound)
    (client,) = course.clients
    task = course.claim(client)
    longer = client.put(task["task_id"], update_body({"value": np.full(3, 2, np.float32)}, num_examples=1))
    assert_refused(longer, "value-out-of-range", "2.0")
    assert client.put(task["task_id"], update_body({"value": np.ones(3, np.float32)}, num_examples=1)).is_success
    wait_for_run(shared_operator, course.run_id, version=1)
    assert course.values(1) == [1.0, 1.0, 1.0]


def test_a_buffered_run_stops_when_its_patience_is_used_up(shared_operator: httpx.Client) -> None:
    stopping = {"metric": "loss", "mode": "min", "patience": 2}
    course = begin(
        shared_operator,
        num_clients=2,
        round={"kind": "buffered", "buffer_size": 1},
        evaluation={"every": 1, "cohort_size": 1, "early_stopping": stopping},
    )
    for loss, state in ((0.5, "running"), (0.6, "running"), (0.7, "completed")):
        course.train(1.0)
        run = course.evaluate(loss=loss)
        assert run["state"] == state, run
    assert (run["best_version"], run["latest_version"]) == (1, 3)


def test_a_buffered_run_begins_where_another_run_ended(shared_operator: httpx.Client) -> None:
    earlier = begin(shared_operator, num_clients=1)
    earlier.train(2.0)
    made = shared_operator.post(
        "/v1/runs",
        json={
            "name": "goes-on",
            "num_rounds": 1,
            "round": {"kind": "buffered", "buffer_size": 1},
            "initial_model": {"kind": "version", "run_id": earlier.run_id, "version": 1},
        },
    )
    assert made.status_code == 201, made.text
    run_id = made.json()["run_id"]
    assert shared_operator.post(f"/v1/runs/{run_id}/start").status_code == 200
    (client,) = earlier.clients
    task = client.claim(run_id, wait=20).json()
    delta = {"value": np.ones(3, dtype=np.float32)}
    assert client.put(task["task_id"], update_body(delta, num_examples=1)).status_code == 201
    content = wait_for_run(shared_operator, run_id, version=1).content
    assert unpack(content)["value"].tolist() == [3.0, 3.0, 3.0]
