"""What an update's encoding costs and saves (`python examples/thin_links.py`).

Five clients with 800 digits of MNIST each train a network of 50,890 parameters, a hundred rounds, once for each
encoding and otherwise the same. Every update travels in zstd, which changes nothing that is learnt, so that each run
tells its size with and without. Accuracies are measured on images that no client has. Prints a table, relative to
float32, and saves a plot, in about six minutes.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from plotting import Line, print_table, save_lines

from client_sdk import RunSpec, SimulatedRound, Tensor, simulate
from client_sdk.demo import mnist
from client_sdk.session.progress import UpdateAccepted
from client_sdk.torch import (
    ImageDataset,
    TorchEvaluator,
    TorchTrainer,
    classifier,
    image_dataset,
    load_into,
    tensors_of,
    use_threads,
)

NUM_CLIENTS, NUM_EXAMPLES, NUM_ROUNDS = 5, 800, 100
SIZES = (784, 64, 10)
SMOOTHED = 3
"""Accuracies go up and down from round to round: the table has the mean of so many last models."""
TRAINING = {"local_epochs": 1, "batch_size": 40, "learning_rate": 0.2}
ZSTD = {"compression": {"kind": "zstd"}}

ENCODINGS: Mapping[str, Mapping[str, Any]] = {
    "dense (float32)": {"kind": "dense"},
    "bfloat16": {"kind": "dense", "dtype": "bfloat16"},
    "float16": {"kind": "dense", "dtype": "float16"},
    "int8": {"kind": "int8"},
    "int4": {"kind": "int4"},
    "topk 10%": {"kind": "topk", "fraction": 0.1},
    "topk 1%": {"kind": "topk", "fraction": 0.01},
    "random_mask 10%": {"kind": "random_mask", "fraction": 0.1},
}


@dataclass
class Outcome:
    """What one encoding came to: the accuracy of each model, and the bytes of each update, plain and in zstd."""

    accuracies: list[float] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    num_zstd_bytes: list[int] = field(default_factory=list)

    @property
    def size(self) -> float:
        """The mean size of an update."""
        return sum(self.num_bytes) / len(self.num_bytes)

    @property
    def zstd_size(self) -> float:
        """The mean size of an update in zstd."""
        return sum(self.num_zstd_bytes) / len(self.num_zstd_bytes)

    @property
    def accuracy(self) -> float:
        """The mean accuracy of the last models."""
        last = self.accuracies[-SMOOTHED:]
        return sum(last) / len(last)


def shares(images: mnist.MnistSubset, *, num_examples: int) -> list[ImageDataset]:
    """Deals the training images out."""
    order = np.random.default_rng(0).permutation(len(images.train_labels))[: NUM_CLIENTS * num_examples]
    return [
        image_dataset(images.train_images[mine], images.train_labels[mine]) for mine in np.split(order, NUM_CLIENTS)
    ]


def train(encoding: Mapping[str, Any], data: Sequence[ImageDataset], test: ImageDataset, *, num_rounds: int) -> Outcome:
    """Trains a whole federation whose updates travel in one encoding."""
    outcome, module = Outcome(), classifier(SIZES, seed=0)
    evaluator = TorchEvaluator(module, test)

    def trainer(index: int) -> TorchTrainer:
        return TorchTrainer(classifier(SIZES, seed=0), data[index], client=f"client-{index}")

    def measure(model: Mapping[str, Tensor]) -> Mapping[str, float]:
        load_into(module, model)
        return {"accuracy": evaluator.measure().metrics["accuracy"]}

    def on_round(done: SimulatedRound) -> None:
        outcome.accuracies.append(done.measured["accuracy"])

    def on_event(event: object) -> None:
        if isinstance(event, UpdateAccepted):
            outcome.num_bytes.append(event.receipt.num_bytes)
            outcome.num_zstd_bytes.append(event.num_sent_bytes)

    spec = RunSpec.model_validate(
        {
            "name": "thin-links",
            "num_rounds": num_rounds,
            "round": {"quorum": len(data)},
            "training": TRAINING,
            "encoding": {**encoding, **ZSTD},
        }
    )
    simulate(
        spec,
        tensors_of(classifier(SIZES, seed=0)),
        trainer,
        num_clients=len(data),
        measure=measure,
        on_round=on_round,
        on_event=on_event,
    )
    return outcome


def report(found: Mapping[str, Outcome], *, plot: str) -> None:
    """Prints what each encoding costs and saves, and draws accuracy over what a client has sent."""
    plain = next(iter(found.values()))
    rows = [
        (
            name,
            f"{outcome.size:,.0f}",
            f"{outcome.size / plain.size:.4f}",
            f"{outcome.zstd_size:,.0f}",
            f"{outcome.zstd_size / plain.size:.4f}",
            f"{outcome.accuracy:.2%}",
            f"{100 * (outcome.accuracy - plain.accuracy):+.2f}",
        )
        for name, outcome in found.items()
    ]
    head = ("encoding", "bytes", "of float32", "bytes in zstd", "of float32", "accuracy", "points to float32")
    print_table(head, rows)
    lines = [
        Line(
            name,
            [
                (float(np.log10(number * outcome.zstd_size)), accuracy)
                for number, accuracy in enumerate(outcome.accuracies, start=1)
            ],
        )
        for name, outcome in found.items()
    ]
    save_lines(plot, lines, title="Accuracy over what a client has sent, in zstd", x="log10 of bytes", y="accuracy")


def main() -> None:
    """Trains once for each encoding and compares."""
    parser = argparse.ArgumentParser(description="what an update's encoding costs and saves")
    parser.add_argument("--only", nargs="*", metavar="ENCODING", help="the rows to make, the first one for comparison")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    arguments = parser.parse_args()
    use_threads(1)
    images = mnist.load()
    data = shares(images, num_examples=NUM_EXAMPLES)
    test = image_dataset(images.test_images, images.test_labels)
    names = arguments.only or list(ENCODINGS)
    found = {name: train(ENCODINGS[name], data, test, num_rounds=arguments.rounds) for name in names}
    report(found, plot="thin_links.svg")


if __name__ == "__main__":
    main()
