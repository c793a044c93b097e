"""Federated averaging on the whole of MNIST through a real server, beside the band that a simulation gives.

`python -m benchmarks.mnist_band [FOLDER]`; FOLDER (or FEDQUORUM_MNIST_FOLDER) holds the data set's four `.gz` files.
Ten clients with 6,000 images each, drawn at random; one local epoch, batches of 32, learning rate 0.05, a
784-128-64-10 network with ReLU, 20 rounds, 3 seeds; pixels standardised by the mean and deviation of the training
images, without which the band is missed by 2 to 3 points with or without FedQuorum. Takes some minutes.
`python -m benchmarks.mnist_reference FOLDER` prints the same figures from PyTorch alone.
"""

import asyncio
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.server import OPERATOR_TOKEN, Server, fresh_server
from client_sdk.client import AggregatorClient
from client_sdk.demo.mnist import MnistSubset, load_idx
from client_sdk.operator import Operator
from client_sdk.participant import participate
from client_sdk.torch import TorchEvaluator, TorchTrainer, image_dataset, load_into, tensors_of, use_threads
from fl_protocol.rounds import EventType
from fl_protocol.runs import RunSpec
from fl_protocol.specs.rounds import RoundSpec
from fl_protocol.specs.training import TrainingSpec
from fl_protocol.tasks import EnrolledClient

NUM_CLIENTS = 10
NUM_ROUNDS = 20
SEEDS = (0, 1, 2)
TRAINING = TrainingSpec(local_epochs=1, batch_size=32, learning_rate=0.05)
BANDS = {5: (94.6, 95.0), 10: (96.5, 96.6), 20: (97.5, 97.6)}
TOLERANCE = 0.4
PIXEL_MEAN, PIXEL_DEVIATION = 0.1307, 0.3081


@dataclass(frozen=True, slots=True)
class Experiment:
    """One run on one server: accuracy in per cent by round, and how long it took."""

    seed: int
    accuracies: dict[int, float]
    seconds: float


def network(seed: int) -> nn.Sequential:
    """Makes the network with PyTorch's own initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )


def run(images: MnistSubset, *, seed: int) -> Experiment:
    """Trains once through a fresh server on SQLite."""
    begin = time.monotonic()
    with fresh_server("sqlite") as server:
        accuracies = asyncio.run(_train(server, images, seed=seed))
    return Experiment(seed, accuracies, time.monotonic() - begin)


async def _train(server: Server, images: MnistSubset, *, seed: int) -> dict[int, float]:
    async with AggregatorClient(server.url, token=OPERATOR_TOKEN) as client:
        operator = Operator(client)
        spec = RunSpec(name="mnist", num_rounds=NUM_ROUNDS, round=RoundSpec(quorum=NUM_CLIENTS), training=TRAINING)
        run = await operator.start_run(spec, tensors_of(network(seed)))
        shards = _shards(images, seed=seed)
        clients = [await operator.enrol(f"client-{number}") for number in range(NUM_CLIENTS)]
        taking_part = [
            asyncio.create_task(_take_part(server.url, run.run_id, client=client, shard=shard, seed=seed))
            for client, shard in zip(clients, shards, strict=True)
        ]
        accuracies = await _follow(operator, run.run_id, images)
        await asyncio.gather(*taking_part)
    return accuracies


def _shards(images: MnistSubset, *, seed: int) -> list[TensorDataset]:
    order = np.random.default_rng(seed).permutation(len(images.train_labels))
    return [
        standardised(images.train_images[mine], images.train_labels[mine])
        for mine in np.array_split(order, NUM_CLIENTS)
    ]


def standardised(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> TensorDataset:
    """Makes a data set of images whose pixels have mean 0 and deviation 1 over the training images."""
    pixels, targets = image_dataset(images, labels).tensors
    return TensorDataset((pixels - PIXEL_MEAN) / PIXEL_DEVIATION, targets)


async def _take_part(url: str, run_id: str, *, client: EnrolledClient, shard: TensorDataset, seed: int) -> None:
    trainer = TorchTrainer(network(seed=0), shard, seed=seed, client=client.name)
    async with AggregatorClient(url, token=client.token) as connection:
        await participate(connection, run_id, trainer)


async def _follow(operator: Operator, run_id: str, images: MnistSubset) -> dict[int, float]:
    module = network(seed=0)
    evaluator = TorchEvaluator(module, standardised(images.test_images, images.test_labels))
    accuracies: dict[int, float] = {}
    async with anyio.TemporaryDirectory(prefix="fedquorum-bench-") as folder:
        async for event in operator.watch(run_id):
            version = event.data.get("version")
            if event.type == EventType.MODEL_PUBLISHED and isinstance(version, int) and version in BANDS:
                load_into(module, await operator.result(run_id, Path(folder), version=version))
                report = await anyio.to_thread.run_sync(evaluator.measure)
                accuracies[version] = 100 * report.metrics["accuracy"]
    return accuracies


def main() -> int:
    """Prints the accuracies beside their bands; the exit status is 1 if a mean lies outside."""
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FEDQUORUM_MNIST_FOLDER")
    if given is None:
        print("name the folder of MNIST's four .gz files: python -m benchmarks.mnist_band FOLDER", file=sys.stderr)
        return 2
    use_threads(1)
    images = load_idx(Path(given))
    console = Console(width=None if sys.stdout.isatty() else 120)
    experiments = []
    for seed in SEEDS:
        experiments.append(run(images, seed=seed))
        console.print(f"seed {seed}: {experiments[-1].seconds:.0f} s", highlight=False)
    table, is_inside = _table(experiments)
    console.print(table)
    return 0 if is_inside else 1


def _table(experiments: list[Experiment]) -> tuple[Table, bool]:
    table = Table("after round", *(f"seed {one.seed}" for one in experiments), "mean", "band +- 0.4", "inside")
    verdicts = []
    for number, (low, high) in BANDS.items():
        found = [one.accuracies[number] for one in experiments]
        mean = statistics.mean(found)
        verdicts.append(low - TOLERANCE <= mean <= high + TOLERANCE)
        figures = [f"{accuracy:.2f}%" for accuracy in (*found, mean)]
        table.add_row(str(number), *figures, f"{low}-{high}%", "yes" if verdicts[-1] else "NO")
    return table, all(verdicts)


if __name__ == "__main__":
    sys.exit(main())
