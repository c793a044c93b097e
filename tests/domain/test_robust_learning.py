"""On real images with three attackers among the clients: the mean collapses, robust strategies learn on."""

from functools import cache

import numpy as np
import pytest

from aggregator_service.flow.fold import SealedUpdate, aggregate
from client_sdk.demo import mnist
from fl_protocol.arrays import decode, encode
from fl_protocol.runs import RunSpec

NUM_ATTACKERS, NUM_IMAGES, BATCH, LOCAL_RATE, NUM_ROUNDS = 3, 400, 40, 0.1, 4
SCALE = np.float32(10)
TEN = {
    "mean": {"kind": "mean"},
    "median": {"kind": "median"},
    "trimmed_mean": {"kind": "trimmed_mean", "trim_fraction": 0.3},
    "multi_krum": {"kind": "multi_krum", "num_byzantine": 3, "num_selected": 7},
    "geometric_median": {"kind": "geometric_median"},
    "clipped_mean": {"kind": "mean", "max_update_norm": {"kind": "clip", "norm": 1.0}},
}
BULYAN = {"kind": "bulyan", "num_byzantine": 3}


def flat(pictures):
    return pictures.reshape(len(pictures), -1).astype(np.float32) / 255


@cache
def images():
    """Gives the clients' images and labels, and those that nobody trains on."""
    found = mnist.load()
    starts = range(0, 15 * NUM_IMAGES, NUM_IMAGES)
    shards = [
        (flat(found.train_images[begin : begin + NUM_IMAGES]), found.train_labels[begin : begin + NUM_IMAGES])
        for begin in starts
    ]
    return shards, (flat(found.test_images), found.test_labels)


def probabilities(model, pictures):
    scores = pictures @ model["w"] + model["b"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def accuracy(model):
    pictures, labels = images()[1]
    return float(np.mean(probabilities(model, pictures).argmax(axis=1) == labels))


def local_delta(model, pictures, labels):
    """Gives what one epoch of a softmax regression changes."""
    local = {name: values.copy() for name, values in model.items()}
    for begin in range(0, len(labels), BATCH):
        batch = slice(begin, begin + BATCH)
        error = probabilities(local, pictures[batch])
        error[np.arange(BATCH), labels[batch]] -= 1
        local["w"] -= LOCAL_RATE / BATCH * pictures[batch].T @ error
        local["b"] -= LOCAL_RATE / BATCH * error.sum(axis=0)
    return {name: local[name] - model[name] for name in model}


def sent(model, client, attack):
    """Gives the delta of a client; the first ones attack."""
    pictures, labels = images()[0][client]
    if client >= NUM_ATTACKERS or attack == "none":
        return local_delta(model, pictures, labels)
    if attack == "flipped labels":
        return local_delta(model, pictures, 9 - labels)
    return {name: -SCALE * values for name, values in local_delta(model, pictures, labels).items()}


def sealed(delta, client):
    blob = b"".join(encode(delta, {"num_examples": str(NUM_IMAGES)}))
    max_abs = {name: float(np.abs(values).max()) for name, values in delta.items()}
    return SealedUpdate(str(client), f"digest-{client:02}", NUM_IMAGES, max_abs, lambda begin, end: blob[begin:end])


@cache
def learned(num_clients, kind, attack):
    """Gives the accuracy on unseen images after the last round."""
    strategy = BULYAN if kind == "bulyan" else TEN[kind]
    spec = RunSpec.model_validate({"round": {"quorum": num_clients}, "strategy": strategy})
    model = {"w": np.zeros((784, 10), dtype=np.float32), "b": np.zeros(10, dtype=np.float32)}
    for number in range(1, NUM_ROUNDS + 1):
        blob, written, kept = b"".join(encode(model, {})), bytearray(), bytearray()
        aggregate(
            lambda begin, end, blob=blob: blob[begin:end],
            [sealed(sent(model, client, attack), client) for client in range(num_clients)],
            spec=spec,
            round_number=number,
            optimizer_state=None,
            write_model=written.extend,
            write_state=kept.extend,
        )
        model = decode(bytes(written))
    return accuracy(model)


def test_three_of_ten_that_flip_and_scale_their_updates_destroy_the_mean():
    assert learned(10, "mean", "none") > 0.75
    assert learned(10, "mean", "flipped signs") < 0.2


@pytest.mark.parametrize("attack", ["flipped signs", "flipped labels"])
@pytest.mark.parametrize("kind", ["median", "trimmed_mean", "multi_krum", "geometric_median"])
def test_three_of_ten_attackers_cost_a_robust_strategy_at_most_three_points(kind, attack):
    assert learned(10, kind, attack) >= learned(10, "mean", "none") - 0.03


@pytest.mark.parametrize("attack", ["flipped signs", "flipped labels"])
def test_three_of_fifteen_attackers_cost_bulyan_at_most_three_points(attack):
    assert learned(15, "bulyan", attack) >= learned(15, "mean", "none") - 0.03


def test_bulyan_with_three_attackers_among_ten_clients_is_refused_when_the_run_is_declared():
    with pytest.raises(ValueError, match=r"strategy\.num_byzantine 3 needs at least 4 \* num_byzantine \+ 3 = 15"):
        RunSpec.model_validate({"round": {"quorum": 10}, "strategy": BULYAN})
