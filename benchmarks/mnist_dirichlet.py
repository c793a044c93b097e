"""Federated averaging on MNIST over clients that see few digits each, beside a simulation in PyTorch alone.

`python -m benchmarks.mnist_dirichlet [FOLDER]`; FOLDER (or FEDQUORUM_MNIST_FOLDER) holds the data set's four `.gz`
files, without it the 20,000 images that ship with the package are taken. Dirichlet(0.1) over 20 clients, 10 of them
drawn for each of 30 rounds, one local epoch, batches of 32, learning rate 0.05, the network of `mnist_band`, 3 seeds.
FedQuorum's side is `client_sdk.simulate`: a real server, every byte over HTTP. The other side is
`mnist_dirichlet_reference`: once for each seed with a split, cohorts and an initial model of its own, and twice with
those of FedQuorum's run, which leaves the order of the images alone to chance. Takes about eight minutes.

The curves agree if at each point
- the means of independent runs differ by no more than two samples of one law do 19 times in 20: 2.78 standard errors,
  from the spread of the seeds on each side (Student's t with 4 degrees of freedom), and
- FedQuorum's distance to the runs with the same draws (the root of the mean square over the seeds) is no more than
  what the spread between those explains 19 times in 20 (F with 3 and 3 degrees of freedom).
The second finds small faults: with clients weighted alike in the reference, by mistake, it fails.
"""

import copy
import math
import operator
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import mnist_dirichlet_reference as reference
from benchmarks.mnist_band import network, standardised
from benchmarks.mnist_dirichlet_reference import Draws
from client_sdk import (
    RoundSpec,
    RunSpec,
    Tensor,
    Trainer,
    TrainingResult,
    TrainingSpec,
    TrainingTask,
    partitioning,
    simulate,
)
from client_sdk.demo.mnist import MnistSubset, load, load_idx
from client_sdk.torch import TorchEvaluator, TorchTrainer, load_into, tensors_of, use_threads

NUM_CLIENTS = 20
COHORT_SIZE = 10
ALPHA = 0.1
NUM_ROUNDS = 30
ROUNDS_SHOWN = (5, 10, 20, 30)
SEEDS = (0, 1, 2)
TRAINING = TrainingSpec(local_epochs=1, batch_size=32, learning_rate=0.05)
NUM_REPLAYS = 2
MAX_ERRORS = 2.776
"""The 97.5% quantile of Student's t with 4 degrees of freedom."""
MAX_SQUARES = 9.277
"""The 95% quantile of F with 3 and 3 degrees of freedom."""

Curve = list[float]
"""The accuracy on the test images after each round, in per cent."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One run through FedQuorum, and what was drawn for it."""

    curve: Curve
    draws: Draws


def run(images: MnistSubset, *, seed: int) -> Experiment:
    """Trains once through a real server, with clients that ask in an order drawn anew for each round."""
    shards = partitioning.dirichlet(images.train_labels, NUM_CLIENTS, alpha=ALPHA, seed=seed)
    held = [standardised(images.train_images[mine], images.train_labels[mine]) for mine in shards]
    module = network(seed)
    initial = copy.deepcopy(module.state_dict())
    evaluator = TorchEvaluator(module, standardised(images.test_images, images.test_labels))
    cohorts: list[list[int]] = [[] for _ in range(NUM_ROUNDS)]

    def trainers(index: int) -> Trainer:
        trainer = TorchTrainer(network(seed=0), held[index], seed=seed, client=f"client-{index}")

        def train(task: TrainingTask) -> TrainingResult:
            cohorts[task.round - 1].append(index)
            return trainer(task)

        return train

    def measure(model: Mapping[str, Tensor]) -> Mapping[str, float]:
        load_into(module, model)
        return evaluator.measure().metrics

    spec = RunSpec(name="dirichlet", num_rounds=NUM_ROUNDS, round=RoundSpec(quorum=COHORT_SIZE), training=TRAINING)
    done = simulate(spec, tensors_of(module), trainers, num_clients=NUM_CLIENTS, measure=measure, seed=seed)
    curve = [100 * one.measured["accuracy"] for one in done.rounds]
    return Experiment(curve, Draws([torch.from_numpy(mine) for mine in shards], initial, cohorts))


def run_reference(images: MnistSubset, *, draws: Draws | None, seed: int) -> Curve:
    """Trains once with PyTorch alone, with draws of its own or with those given."""
    train = torch.tensor(images.train_images), torch.tensor(images.train_labels)
    test = torch.tensor(images.test_images), torch.tensor(images.test_labels)
    draws = draws or reference.draw(train[1], num_rounds=NUM_ROUNDS, seed=seed)
    return reference.accuracies(train, test, draws=draws, seed=seed)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One point of the curves over the seeds: how far the two sides are apart, and how much of it may be chance."""

    name: str
    ours: Sequence[float]
    theirs: Sequence[float]
    apart: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether the difference may be chance."""
        return abs(self.apart) <= self.allowed


def compare_independent(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Compares the means over the seeds."""
    squares = sum(statistics.variance(side) / len(side) for side in (ours, theirs))
    apart = statistics.mean(ours) - statistics.mean(theirs)
    return Comparison(name, ours, theirs, apart, MAX_ERRORS * math.sqrt(squares))


def compare_replays(name: str, ours: Sequence[float], replays: Sequence[Sequence[float]]) -> Comparison:
    """Compares each seed with the runs that had its draws; `replays` holds for each seed what they reached."""
    theirs = [statistics.mean(same) for same in replays]
    apart = math.sqrt(statistics.mean((mine - other) ** 2 for mine, other in zip(ours, theirs, strict=True)))
    noise = statistics.mean(statistics.variance(same) for same in replays)
    return Comparison(name, ours, theirs, apart, math.sqrt(MAX_SQUARES * (1 + 1 / NUM_REPLAYS) * noise))


def points() -> dict[str, Callable[[Curve], float]]:
    """Lists what is compared: the rounds shown, and the mean over all rounds, which chance moves least."""
    rounds = {f"round {number}": operator.itemgetter(number - 1) for number in ROUNDS_SHOWN}
    return {**rounds, f"mean of rounds 1-{NUM_ROUNDS}": statistics.mean}


def main() -> int:
    """Prints both curves; the exit status is 1 if they do not agree."""
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FEDQUORUM_MNIST_FOLDER")
    use_threads(1)
    images = load() if given is None else load_idx(Path(given))
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(f"{len(images.train_labels)} training and {len(images.test_labels)} test images")
    ours: list[Curve] = []
    theirs: list[Curve] = []
    replays: list[list[Curve]] = []
    for seed in SEEDS:
        begin = time.monotonic()
        experiment = run(images, seed=seed)
        between = time.monotonic()
        ours.append(experiment.curve)
        theirs.append(run_reference(images, draws=None, seed=seed))
        orders = range(100 * (seed + 1), 100 * (seed + 1) + NUM_REPLAYS)
        replays.append([run_reference(images, draws=experiment.draws, seed=order) for order in orders])
        console.print(f"seed {seed}: {between - begin:.0f} s and {time.monotonic() - between:.0f} s")
    independent = [compare_independent(name, [*map(of, ours)], [*map(of, theirs)]) for name, of in points().items()]
    replayed = [
        compare_replays(name, [*map(of, ours)], [[*map(of, same)] for same in replays]) for name, of in points().items()
    ]
    console.print(_table("PyTorch alone, draws of its own", independent))
    console.print(_table("PyTorch alone, the same draws", replayed))
    agree = all(one.agrees for one in (*independent, *replayed))
    console.print("The curves agree within noise." if agree else "The curves do NOT agree within noise.")
    return 0 if agree else 1


def _table(theirs: str, comparisons: Sequence[Comparison]) -> Table:
    table = Table("accuracy, mean ± spread")
    for heading in ("FedQuorum", theirs, "apart", "allowed", "agree"):
        table.add_column(heading, justify="right")
    for one in comparisons:
        figures = (_figure(one.ours), _figure(one.theirs), f"{one.apart:.2f}", f"{one.allowed:.2f}")
        table.add_row(one.name, *figures, "yes" if one.agrees else "NO")
    return table


def _figure(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}% ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    sys.exit(main())
