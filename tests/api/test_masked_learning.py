"""Real MNIST with ten clients of which two vanish amid each session: as good as the run that is not masked."""

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from client_sdk.demo import mnist
from tests.support.masked import MaskedClient, MaskedCohort, let_time_pass, masked_spec, quantised
from tests.support.participant import Tensors, create_run, enrol, unpack, update_body, wait_for_run
from tests.support.server import ServerProcess

# What is learned is the same on both databases.
pytestmark = pytest.mark.parametrize("shared_server", ["sqlite"], indirect=True)

NUM_CLIENTS, NUM_ROUNDS, NUM_IMAGES, BATCH, RATE = 10, 3, 2000, 20, 0.1
ALLOWED = 0.005
MODEL = {"w": np.zeros((784, 10), dtype=np.float32), "b": np.zeros(10, dtype=np.float32)}


class Digits:
    """The packaged images: a share for each client, and those that nobody trains on."""

    def __init__(self) -> None:
        found = mnist.load()
        self.train, self.labels = _flat(found.train_images), found.train_labels
        self.test, self.test_labels = _flat(found.test_images), found.test_labels

    def delta(self, model: Tensors, client: int) -> Tensors:
        """Gives what an epoch of a softmax regression changes on a client's own images."""
        local = {name: values.copy() for name, values in model.items()}
        for begin in range(client * NUM_IMAGES, (client + 1) * NUM_IMAGES, BATCH):
            batch = slice(begin, begin + BATCH)
            error = _probabilities(local, self.train[batch])
            error[np.arange(BATCH), self.labels[batch]] -= 1
            local["w"] -= RATE / BATCH * self.train[batch].T @ error
            local["b"] -= RATE / BATCH * error.sum(axis=0)
        return {name: local[name] - model[name] for name in model}

    def accuracy(self, model: Tensors) -> float:
        return float(np.mean(_probabilities(model, self.test).argmax(axis=1) == self.test_labels))


def _flat(pictures: Any) -> Any:
    return pictures.reshape(len(pictures), -1).astype(np.float32) / 255


def _probabilities(model: Tensors, pictures: Any) -> Any:
    scores = pictures @ model["w"] + model["b"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def plain_run(operator: httpx.Client, digits: Digits) -> Tensors:
    """Trains without masks, all ten in every round."""
    run_id = create_run(operator, MODEL, num_rounds=NUM_ROUNDS, round={"quorum": NUM_CLIENTS})
    clients = [enrol(operator, f"plain-{number}") for number in range(NUM_CLIENTS)]
    model = MODEL
    for number in range(1, NUM_ROUNDS + 1):
        for at, client in enumerate(clients):
            task = client.claim(run_id, wait=20).json()
            body = update_body(digits.delta(model, at), num_examples=NUM_IMAGES)
            assert client.put(task["task_id"], body).status_code == 201
        model = unpack(wait_for_run(operator, run_id, version=number).content)
    return model


def masked_round(
    server: ServerProcess, cohort: MaskedCohort, digits: Digits, *, model: Tensors, gone: set[int]
) -> None:
    """Takes everyone as far as the shares, and those that have not vanished then to the end."""
    for at, client in enumerate(cohort.clients):
        client.claim(cohort.run_id)
        client.vector = quantised(digits.delta(model, at), cohort.spec, num_examples=NUM_IMAGES)
    cohort.seat()
    cohort.phase(MaskedClient.send_shares)
    staying: Sequence[MaskedClient] = [client for at, client in enumerate(cohort.clients) if at not in gone]
    cohort.phase(lambda client: client.send_input(cohort.ring), staying)
    let_time_pass(server, cohort.run_id)
    assert staying[0].leave("input") == "consistency"
    cohort.phase(MaskedClient.send_signature, staying)
    for client in staying:
        if client.session()["state"] == "unmask":
            client.send_answer()


def test_two_of_ten_that_vanish_after_their_shares_cost_at_most_half_a_point(
    shared_server: ServerProcess, shared_operator: httpx.Client
) -> None:
    digits = Digits()
    spec = masked_spec(NUM_CLIENTS, num_rounds=NUM_ROUNDS, round={"quorum": NUM_CLIENTS - 2})
    run_id = create_run(shared_operator, MODEL, **spec)
    cohort = MaskedCohort.enrol(shared_operator, run_id, NUM_CLIENTS)
    model = MODEL
    for number in range(1, NUM_ROUNDS + 1):
        gone = {2 * number % NUM_CLIENTS, (2 * number + 1) % NUM_CLIENTS}
        masked_round(shared_server, cohort, digits, model=model, gone=gone)
        model = unpack(wait_for_run(shared_operator, run_id, version=number).content)
        round_ = shared_operator.get(f"/v1/runs/{run_id}/rounds/{number}").json()
        assert (round_["num_updates"], round_["num_tasks"]) == (NUM_CLIENTS - 2, NUM_CLIENTS)
    unmasked = digits.accuracy(plain_run(shared_operator, digits))
    assert unmasked > 0.85
    assert abs(digits.accuracy(model) - unmasked) <= ALLOWED
