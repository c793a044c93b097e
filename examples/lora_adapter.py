"""A LoRA adapter of a transformer, federated: only the adapter travels (`python examples/lora_adapter.py`).

A small transformer learns to read handwritten digits, a row of pixels a token, on images that lie in one place. Then
it meets eight clients whose images are upside down, a few hundred each. The transformer is frozen; each weight of its
blocks gets a low-rank change beside it, W + B A (Hu et al. 2022), and only A, B and the last layer are trained and
sent: `parameters.trainable` names them. For comparison the same clients train and send the whole model, and the last
layer alone.

Prints a table with the bytes that an update has and the accuracy before and after, and saves a plot. Takes one to two
minutes on two cores.
"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from plotting import Line, print_table, save_lines
from torch import nn
from torch.nn.utils import parametrize

from client_sdk import Progress, RoundSpec, RunSpec, Tensor, Trainer, TrainingSpec, partitioning, simulate
from client_sdk.demo import mnist
from client_sdk.session.progress import UpdateAccepted
from client_sdk.torch import (
    ImageDataset,
    TorchEvaluator,
    TorchTrainer,
    image_dataset,
    load_into,
    tensors_of,
    use_threads,
)
from fl_protocol.specs.parameters import ParametersSpec

NUM_ROUNDS = 10
NUM_CLIENTS = 8
EXAMPLES_PER_CLIENT = 300
NUM_PRETRAINING = 4000
NUM_TEST_IMAGES = 1000
RANK = 4
WIDTH = 64
NUM_BLOCKS = 3


class Reader(nn.Module):
    """A transformer that reads an image row by row: float [N, 28, 28] to the scores of ten digits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(28, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, NUM_BLOCKS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Gives the digits' scores."""
        scores: torch.Tensor = self.head(self.blocks(self.embed(images) + self.places).mean(dim=1))
        return scores


class LowRank(nn.Module):
    """Adds a low-rank change to a weight, [out, in] -> [out, in]; it begins as no change at all."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.lora_a = nn.Parameter(torch.randn(RANK, inputs) / inputs**0.5)
        self.lora_b = nn.Parameter(torch.zeros(outputs, RANK))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Gives weight + B A."""
        return weight + self.lora_b @ self.lora_a


def with_adapter(reader: Reader) -> Reader:
    """Copies a reader and puts a low-rank change beside the weights of each block's attention and feed-forward."""
    adapted = copy.deepcopy(reader)
    for block in adapted.blocks.layers:
        for layer, name in ((block.self_attn, "in_proj_weight"), (block.linear1, "weight"), (block.linear2, "weight")):
            parametrize.register_parametrization(layer, name, LowRank(getattr(layer, name)))
    return adapted


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to go on from the pre-trained model: what is trained and travels, and how fast."""

    name: str
    reader: Reader
    trainable: Sequence[str]
    learning_rate: float


@dataclass(slots=True)
class Outcome:
    """What came of it: the accuracy on the clients' kind of images after each round, 0 first, and an update's bytes."""

    accuracies: list[float]
    num_parameters: int
    num_bytes: int = 0


def adam(parameters: object, learning_rate: float) -> torch.optim.Optimizer:
    """Makes Adam the optimizer, here and on the clients; its state lasts for one round."""
    return torch.optim.Adam(parameters, learning_rate)  # type: ignore[arg-type]


def pretrained(data: ImageDataset, *, num_epochs: int) -> Reader:
    """Trains a reader in one place."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = Reader()
    images, labels = data.tensors
    steps = num_epochs * -(-len(labels) // 32)
    optimizer = adam(reader.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(reader(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
    return reader


def federate(arm: Arm, clients: Sequence[ImageDataset], test: ImageDataset, *, num_rounds: int) -> Outcome:
    """Trains with all clients in each round and measures each model."""
    parameters = ParametersSpec(trainable=list(arm.trainable))
    evaluator = TorchEvaluator(copy.deepcopy(arm.reader), test)
    sent = [tensor for name, tensor in arm.reader.named_parameters() if parameters.travels(name)]
    outcome = Outcome([evaluator.measure().metrics["accuracy"]], sum(tensor.numel() for tensor in sent))

    def trainers(index: int) -> Trainer:
        return TorchTrainer(copy.deepcopy(arm.reader), clients[index], optimizer=adam, client=str(index))

    def measure(model: Mapping[str, Tensor]) -> Mapping[str, float]:
        load_into(evaluator.module, model)
        return evaluator.measure().metrics

    def note(event: Progress) -> None:
        if isinstance(event, UpdateAccepted):
            outcome.num_bytes = event.receipt.num_bytes

    spec = RunSpec(
        name="adapter",
        num_rounds=num_rounds,
        round=RoundSpec(quorum=len(clients)),
        training=TrainingSpec(local_epochs=1, batch_size=32, learning_rate=arm.learning_rate),
        parameters=parameters,
    )
    initial = tensors_of(arm.reader)
    done = simulate(spec, initial, trainers, num_clients=len(clients), measure=measure, on_event=note)
    outcome.accuracies += [one.measured["accuracy"] for one in done.rounds]
    return outcome


def upside_down(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> ImageDataset:
    """Shows the digits as the clients see them."""
    return image_dataset(images[:, ::-1], labels)


def clients_of(images: NDArray[np.uint8], labels: NDArray[np.uint8], *, num_clients: int) -> list[ImageDataset]:
    """Splits images over clients that see some digits more often than others."""
    parts = partitioning.dirichlet(labels, num_clients, alpha=1.0, seed=0)
    return [upside_down(images[part], labels[part]) for part in parts]


def arms_from(reader: Reader) -> list[Arm]:
    """Lists what may be trained and sent from a pre-trained model on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = with_adapter(reader)
    return [
        Arm("whole model", reader, ["*"], 1e-3),
        Arm("LoRA adapter and head", adapted, ["*.lora_*", "head.*"], 1e-2),
        Arm("head alone", reader, ["head.*"], 1e-2),
    ]


def show(outcomes: Mapping[str, Outcome], *, plot: str) -> None:
    """Prints the outcomes, the first one as the measure of the others, and saves the curves."""
    whole = next(iter(outcomes.values())).num_bytes
    rows = [
        [
            name,
            f"{outcome.num_parameters:,}",
            f"{outcome.num_bytes:,}",
            f"{outcome.num_bytes / whole:.1%}",
            f"{outcome.accuracies[0]:.1%}",
            f"{outcome.accuracies[-1]:.1%}",
        ]
        for name, outcome in outcomes.items()
    ]
    print_table(["trained and sent", "numbers", "bytes of an update", "of the whole", "before", "after"], rows)
    lines = [
        Line(name, [(number, 100 * accuracy) for number, accuracy in enumerate(outcome.accuracies)])
        for name, outcome in outcomes.items()
    ]
    save_lines(plot, lines, title="A transformer meets digits upside down", x="round", y="accuracy, %")


def main() -> None:
    """Trains in one place, then with the clients in each way."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--plot", default="lora_adapter.svg", metavar="FILE")
    given = parser.parse_args()
    use_threads(1)
    images = mnist.load()
    here, there = np.split(np.arange(NUM_PRETRAINING + NUM_CLIENTS * EXAMPLES_PER_CLIENT), [NUM_PRETRAINING])
    reader = pretrained(image_dataset(images.train_images[here], images.train_labels[here]), num_epochs=3)
    test = images.test_images[:NUM_TEST_IMAGES], images.test_labels[:NUM_TEST_IMAGES]
    at_home = TorchEvaluator(reader, image_dataset(*test)).measure().metrics["accuracy"]
    print(f"pre-trained: reads {at_home:.1%} of the digits as it knows them")
    clients = clients_of(images.train_images[there], images.train_labels[there], num_clients=NUM_CLIENTS)
    outcomes = {
        arm.name: federate(arm, clients, upside_down(*test), num_rounds=given.rounds) for arm in arms_from(reader)
    }
    show(outcomes, plot=given.plot)


if __name__ == "__main__":
    main()
