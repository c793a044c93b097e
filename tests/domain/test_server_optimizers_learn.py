"""On real images, split so that each client knows two digits, each server optimizer makes the model better."""

import itertools
import json
from functools import cache

import numpy as np
import pytest

from aggregator_service.flow.fold import SealedUpdate, aggregate
from client_sdk.demo import mnist
from fl_protocol.arrays import decode, encode
from fl_protocol.runs import RunSpec

NUM_CLIENTS, NUM_IMAGES, BATCH, LOCAL_RATE, NUM_ROUNDS = 10, 100, 20, 0.1, 8
COSINE = {"kind": "cosine", "num_rounds": NUM_ROUNDS, "final_factor": 0.1, "warmup_rounds": 1}


OPTIMIZERS = {
    "fedavg": {},
    "fedavgm": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "adagrad": {"kind": "adagrad", "learning_rate": 0.03},
    "adam": {"kind": "adam", "learning_rate": 0.1},
    "yogi": {"kind": "yogi", "learning_rate": 0.1},
}


@cache
def images():
    """Gives the clients' images and labels, two digits each, and those that nobody trains on."""
    found = mnist.load()
    order = np.argsort(found.train_labels, kind="stable")
    starts = np.searchsorted(found.train_labels[order], np.arange(10))
    shards = []
    for client in range(NUM_CLIENTS):
        digits = (client, (client + 1) % 10)
        mine = np.concatenate([order[starts[digit] + client * 50 :][: NUM_IMAGES // 2] for digit in digits])
        shards.append((flat(found.train_images[mine]), found.train_labels[mine]))
    return shards, (flat(found.test_images[:1000]), found.test_labels[:1000])


def flat(pictures):
    return pictures.reshape(len(pictures), -1).astype(np.float32) / 255


def probabilities(model, pictures):
    scores = pictures @ model["w"] + model["b"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def loss(model):
    pictures, labels = images()[1]
    return float(-np.log(probabilities(model, pictures)[np.arange(len(labels)), labels] + 1e-12).mean())


def local_delta(model, pictures, labels, source):
    """Gives what one epoch of a softmax regression changes."""
    local = {name: values.copy() for name, values in model.items()}
    order = source.permutation(len(labels))
    for begin in range(0, len(labels), BATCH):
        batch = order[begin : begin + BATCH]
        error = probabilities(local, pictures[batch])
        error[np.arange(len(batch)), labels[batch]] -= 1
        local["w"] -= LOCAL_RATE / len(batch) * pictures[batch].T @ error
        local["b"] -= LOCAL_RATE / len(batch) * error.sum(axis=0)
    return {name: local[name] - model[name] for name in model}


def sealed(delta):
    blob = b"".join(encode(delta, {"num_examples": str(NUM_IMAGES)}))
    max_abs = {name: float(np.abs(values).max()) for name, values in delta.items()}
    return SealedUpdate("u", "d", NUM_IMAGES, max_abs, lambda begin, end: blob[begin:end])


def train(optimizer):
    """Gives the loss on unseen images before the first round and after each."""
    spec = RunSpec.model_validate_json(json.dumps({"num_rounds": NUM_ROUNDS, "server_optimizer": optimizer}))
    model = {"w": np.zeros((784, 10), dtype=np.float32), "b": np.zeros(10, dtype=np.float32)}
    losses, state = [loss(model)], None
    for number in range(1, NUM_ROUNDS + 1):
        source = np.random.default_rng(number)
        updates = [sealed(local_delta(model, *shard, source)) for shard in images()[0]]
        blob, written, kept = b"".join(encode(model, {})), bytearray(), bytearray()
        aggregate(
            lambda begin, end, blob=blob: blob[begin:end],
            updates,
            spec=spec,
            round_number=number,
            optimizer_state=None if state is None else lambda begin, end, held=state: held[begin:end],
            write_model=written.extend,
            write_state=kept.extend,
        )
        model, state = decode(bytes(written)), bytes(kept) or None
        losses.append(loss(model))
    return losses


@cache
def losses_of(name):
    return train(OPTIMIZERS[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_eight_rounds_take_away_at_least_two_fifths_of_the_loss(name):
    losses = losses_of(name)
    assert losses[0] == pytest.approx(np.log(10), abs=1e-6)
    assert losses[-1] < 0.6 * losses[0], losses


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adam", "yogi"])
def test_the_defaults_of_each_kind_learn_without_ever_getting_worse(kind):
    losses = train({"kind": kind, "schedule": COSINE})
    assert all(after < before for before, after in itertools.pairwise(losses)), losses


def test_momentum_and_nesterov_are_faster_than_plain_averaging_and_not_the_same():
    plain, momentum, ahead = (losses_of(name) for name in ("fedavg", "fedavgm", "nesterov"))
    assert momentum[1] == plain[1]
    assert ahead[1] < plain[1]
    assert ahead[-1] < momentum[-1] < 0.6 * plain[-1]
