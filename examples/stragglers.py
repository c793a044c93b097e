"""Two of ten clients are ten times slower: synchronous rounds against a buffer (`python examples/stragglers.py`).

Every client holds 2,000 digits of MNIST. A fast one takes 3 s for a task and a slow one 30 s, simulated by sleeping
what the training does not take. Three runs with the same clients, each on a server of its own:

- synchronous rounds that wait for all ten;
- synchronous rounds that close with the eighth of ten updates (over-selection): the slow ones always come too late;
- buffers of five (FedBuff, Nguyen et al. 2022): what the slow ones send counts when it comes, discounted by staleness.

Prints a table and saves a plot, in about five minutes; models are measured after a run, which takes no time from it.
"""

import functools
import secrets
import tempfile
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np
from plotting import Line, print_table, save_lines

from client_sdk import (
    AggregatorClient,
    BufferedRoundSpec,
    Operator,
    RoundSpec,
    RunSpec,
    TrainedModel,
    TrainingSpec,
    TrainingTask,
    participate,
)
from client_sdk.demo import mnist
from client_sdk.local_server import running_server
from client_sdk.torch import (
    ImageDataset,
    TorchEvaluator,
    TorchTrainer,
    classifier,
    image_dataset,
    load_into,
    sgd,
    tensors_of,
    use_threads,
)

NUM_CLIENTS, NUM_SLOW = 10, 2
FAST_SECONDS, SLOWNESS = 3.0, 10
TARGET = 0.95
SIZES = (784, 64, 10)
TRAINING = TrainingSpec(local_epochs=3, batch_size=32, learning_rate=0.1)


@dataclass(frozen=True)
class Way:
    """A way to go on when some are slow."""

    name: str
    round: RoundSpec | BufferedRoundSpec
    num_rounds: int


WAYS = (
    Way("synchronous, ten of ten", RoundSpec(quorum=10), num_rounds=7),
    Way("synchronous, eight of ten", RoundSpec(quorum=8, cohort_size=10), num_rounds=10),
    Way("buffered, five by five", BufferedRoundSpec(buffer_size=5, concurrency=10), num_rounds=26),
)


@dataclass(frozen=True)
class Paced:
    """A trainer on a machine that takes a given time for it."""

    trainer: TorchTrainer
    seconds: float

    def __call__(self, task: TrainingTask) -> TrainedModel:
        begun = time.monotonic()
        trained = self.trainer(task)
        time.sleep(max(0.0, self.seconds - (time.monotonic() - begun)))
        return trained


@dataclass(frozen=True)
class Version:
    """A global model: when it was there after the start, its accuracy on images that no client has, and its updates."""

    seconds: float
    accuracy: float
    num_updates: int
    num_slow: int
    staleness: int


def paced_trainer(index: int, data: ImageDataset) -> Paced:
    """Makes the trainer of a client; the first ones are slow."""
    trainer = TorchTrainer(classifier(SIZES, seed=0), data, optimizer=sgd(momentum=0.9), client=f"client-{index}")
    return Paced(trainer, FAST_SECONDS * (SLOWNESS if index < NUM_SLOW else 1))


def shares(images: mnist.MnistSubset) -> list[ImageDataset]:
    """Deals the training images out."""
    order = np.random.default_rng(0).permutation(len(images.train_labels))
    return [
        image_dataset(images.train_images[mine], images.train_labels[mine]) for mine in np.split(order, NUM_CLIENTS)
    ]


async def train(way: Way, images: mnist.MnistSubset) -> list[Version]:
    """Runs a whole federation one way, and then measures each of its models."""
    spec = RunSpec(name="stragglers", num_rounds=way.num_rounds, round=way.round, training=TRAINING)
    token = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as folder:
        async with running_server(Path(folder), token) as address, AggregatorClient(address, token=token) as client:
            operator = Operator(client)
            run = await operator.start_run(spec, tensors_of(classifier(SIZES, seed=0)))
            enrolled = [await operator.enrol(f"client-{index}") for index in range(NUM_CLIENTS)]
            async with anyio.create_task_group() as clients:
                for index, (one, data) in enumerate(zip(enrolled, shares(images), strict=True)):
                    clients.start_soon(take_part, address, one.token, run.run_id, paced_trainer(index, data))
                await operator.wait(run.run_id)
                clients.cancel_scope.cancel()
            slow = {one.client_id for one in enrolled[:NUM_SLOW]}
            return await measure(operator, run.run_id, images, slow=slow, folder=Path(folder))


async def take_part(address: str, token: str, run_id: str, trainer: Paced) -> None:
    """Takes part as one client until the run is over."""
    async with AggregatorClient(address, token=token) as client:
        await participate(client, run_id, trainer)


async def measure(
    operator: Operator, run_id: str, images: mnist.MnistSubset, *, slow: Set[str], folder: Path
) -> list[Version]:
    """Measures every version of a run's model."""
    rounds = [one for one in await operator.rounds(run_id) if one.completed_at is not None]
    begun = rounds[0].opened_at
    module = classifier(SIZES, seed=0)
    evaluator = TorchEvaluator(module, image_dataset(images.test_images, images.test_labels))
    versions = []
    for done in rounds:
        load_into(module, await operator.result(run_id, folder / "models", version=done.result_version))
        members = await operator.client.list_contributions(run_id, done.number)
        versions.append(
            Version(
                seconds=(done.completed_at - begun).total_seconds(),
                accuracy=evaluator.measure().metrics["accuracy"],
                num_updates=len(members),
                num_slow=sum(member.client_id in slow for member in members),
                staleness=sum(member.staleness for member in members),
            )
        )
    return versions


def reached(versions: list[Version]) -> Version | None:
    """Gives the first version that is good enough."""
    return next((version for version in versions if version.accuracy >= TARGET), None)


def row_of(name: str, versions: list[Version]) -> tuple[str, ...]:
    """Gives a way's row in the table."""
    first = reached(versions)
    num_updates = sum(version.num_updates for version in versions)
    return (
        name,
        "not reached" if first is None else f"{first.seconds:.1f}",
        "-" if first is None else str(versions.index(first) + 1),
        f"{versions[-1].seconds / len(versions):.2f}",
        f"{sum(version.num_slow for version in versions)} of {num_updates}",
        f"{sum(version.staleness for version in versions) / num_updates:.2f}",
        f"{versions[-1].accuracy:.2%}",
    )


def report(found: Mapping[str, list[Version]]) -> None:
    """Prints how long each way took, and draws the curves."""
    head = (
        "rounds",
        f"seconds to {TARGET:.0%}",
        "models to it",
        "seconds a model",
        "by slow clients",
        "mean staleness",
        "at the end",
    )
    print_table(head, [row_of(name, versions) for name, versions in found.items()])
    lines = [
        Line(name, [(version.seconds, version.accuracy) for version in versions]) for name, versions in found.items()
    ]
    save_lines("stragglers.svg", lines, title="Two of ten clients are ten times slower", x="seconds", y="accuracy")


def main() -> None:
    """Trains in each way and compares the wall clock."""
    use_threads(1)
    images = mnist.load()
    found = {way.name: anyio.run(functools.partial(train, way, images)) for way in WAYS}
    report(found)
    waiting, _, buffered = (reached(versions) for versions in found.values())
    if waiting is not None and buffered is not None:
        times = waiting.seconds / buffered.seconds
        print(f"the buffered run is at {TARGET:.0%} {times:.1f} times sooner than rounds that wait for all")


if __name__ == "__main__":
    main()
