r"""Which algorithm helps when clients' data differ, and by how much (`python examples/non_iid_mnist.py`).

MNIST on twenty clients of which ten take part in a round, skewed in two ways: by Dirichlet(0.1), and with exactly two
digits a client, which trains five epochs a round. Eight algorithms, each at the rates that were best for it in a small
grid, which stands below and which `--grid` searches again. Prints tables and saves plots, in about five minutes:

    python examples/non_iid_mnist.py --grid --seeds 3

searches the grid first and repeats with three federations; and how soon 90% are reached on three times the images:

    python examples/non_iid_mnist.py --setting two-labels --only SCAFFOLD FedAvg --images 18000 --batch 100 \
        --rounds 50 --until 0.9 --seeds 3
"""

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from plotting import Line, print_table, save_lines

from client_sdk import RunSpec, SimulatedRound, Tensor, partitioning, simulate
from client_sdk.demo import mnist
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

NUM_CLIENTS, COHORT = 20, 10
SIZES = (784, 64, 10)
NUM_TUNING = 2_000
"""The grid is judged on the last of the packaged training images, which no client has; the table on test images."""
GRID_SEED = 1000
"""The grid has a federation of its own, so that no seed of the table chose the rates."""
GRID_ROUNDS = 12
SMOOTHED = 5
"""Accuracies go up and down from round to round: compared are means of so many last rounds."""

Rates = tuple[float, float]
"""The clients' learning rate, and the number that is the algorithm's own (0 where it has none)."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way in which the clients' data differ."""

    title: str
    local_epochs: int

    def split(self, labels: np.ndarray, seed: int) -> partitioning.Partition:
        """Gives each client the indices of its examples."""
        if self is TWO_LABELS:
            return partitioning.pathological(labels, NUM_CLIENTS, labels_per_client=2, seed=seed)
        return partitioning.dirichlet(labels, NUM_CLIENTS, alpha=0.1, seed=seed, min_examples=20)


DIRICHLET = Setting("Dirichlet(0.1), 2 local epochs", local_epochs=2)
TWO_LABELS = Setting("Two digits a client, 5 local epochs", local_epochs=5)
SETTINGS = {"dirichlet": DIRICHLET, "two-labels": TWO_LABELS}


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One algorithm: what its own number is, the rates that are tried, and those that `--grid` found best."""

    own: str
    grid: Sequence[Rates]
    tuned: Mapping[str, Rates]

    def told(self, rates: Rates) -> str:
        """Says the rates in words."""
        return f"{rates[0]:g}" + (f", {self.own} {rates[1]:g}" if self.own else "")


LOCAL: Sequence[Rates] = ((0.1, 0), (0.2, 0), (0.4, 0), (0.8, 0))
ALGORITHMS = {
    "FedAvg": Algorithm("", LOCAL, {"dirichlet": (0.4, 0), "two-labels": (0.2, 0)}),
    "FedAvgM": Algorithm(
        "momentum",
        ((0.1, 0.9), (0.2, 0.5), (0.2, 0.9), (0.4, 0.5)),
        {"dirichlet": (0.4, 0.5), "two-labels": (0.2, 0.5)},
    ),
    "FedProx": Algorithm(
        "mu",
        ((0.2, 0.01), (0.2, 0.1), (0.2, 1.0), (0.4, 0.01), (0.4, 0.1)),
        {"dirichlet": (0.4, 0.01), "two-labels": (0.2, 0.01)},
    ),
    "SCAFFOLD": Algorithm("", LOCAL, {"dirichlet": (0.1, 0), "two-labels": (0.2, 0)}),
    "FedNova": Algorithm("", LOCAL, {"dirichlet": (0.4, 0), "two-labels": (0.2, 0)}),
    "FedAdagrad": Algorithm(
        "server",
        ((0.2, 0.01), (0.2, 0.03), (0.2, 0.1)),
        {"dirichlet": (0.2, 0.03), "two-labels": (0.2, 0.03)},
    ),
    "FedAdam": Algorithm(
        "server",
        ((0.2, 0.003), (0.2, 0.01), (0.2, 0.03), (0.2, 0.1)),
        {"dirichlet": (0.2, 0.03), "two-labels": (0.2, 0.03)},
    ),
    "FedYogi": Algorithm(
        "server",
        ((0.2, 0.003), (0.2, 0.01), (0.2, 0.03), (0.2, 0.1)),
        {"dirichlet": (0.2, 0.03), "two-labels": (0.2, 0.03)},
    ),
}


def choices(name: str, own: float) -> dict[str, Any]:
    """Gives what an algorithm is in a RunSpec, beside the clients' learning rate."""
    match name:
        case "FedAvgM":
            return {"server_optimizer": {"kind": "sgd", "momentum": own}}
        case "FedAdagrad" | "FedAdam" | "FedYogi":
            kind = name.removeprefix("Fed").lower()
            return {"server_optimizer": {"kind": kind, "learning_rate": own, "tau": 0.001}}
        case "SCAFFOLD":
            return {"algorithm": {"kind": "scaffold", "num_clients": NUM_CLIENTS}}
        case "FedNova":
            return {"algorithm": {"kind": "fednova"}}
    return {}


def spec_of(name: str, rates: Rates, *, setting: Setting, batch_size: int, num_rounds: int) -> RunSpec:
    """Declares one run."""
    training = {"local_epochs": setting.local_epochs, "batch_size": batch_size, "learning_rate": rates[0]}
    if name == "FedProx":
        training["proximal_mu"] = rates[1]
    rounds = {"quorum": COHORT, "cohort_size": COHORT}
    parts = {"name": "non-iid", "num_rounds": num_rounds, "round": rounds, "training": training}
    return RunSpec.model_validate(parts | choices(name, rates[1]))


class _ReachedError(Exception):
    """The run is as good as was asked for."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """The images and how many of them the clients have, and how a run goes."""

    images: mnist.MnistSubset
    num_images: int
    batch_size: int
    num_rounds: int
    until: float | None = None

    def run(self, name: str, rates: Rates, *, setting: Setting, seed: int, tuning: bool = False) -> list[float]:
        """Trains once, and gives the accuracy after each round; the same seed gives the same federation to all."""
        labels = self.images.train_labels[: self.num_images]
        clients = [image_dataset(self.images.train_images[mine], labels[mine]) for mine in setting.split(labels, seed)]
        judged_on = TorchEvaluator(classifier(SIZES, seed=0), self.held_out(tuning=tuning))
        accuracies: list[float] = []

        def measure(model: Mapping[str, Tensor]) -> Mapping[str, float]:
            load_into(judged_on.module, model)
            return judged_on.measure().metrics

        def note(done: SimulatedRound) -> None:
            accuracies.append(done.measured["accuracy"])
            if self.until is not None and accuracies[-1] >= self.until:
                raise _ReachedError

        def trainer(index: int) -> TorchTrainer:
            return TorchTrainer(classifier(SIZES, seed=0), clients[index], seed=seed, client=f"client-{index}")

        num_rounds = GRID_ROUNDS if tuning else self.num_rounds
        spec = spec_of(name, rates, setting=setting, batch_size=self.batch_size, num_rounds=num_rounds)
        initial = tensors_of(classifier(SIZES, seed=seed))
        with contextlib.suppress(_ReachedError):
            simulate(spec, initial, trainer, num_clients=NUM_CLIENTS, measure=measure, on_round=note, seed=seed)
        return accuracies

    def held_out(self, *, tuning: bool) -> ImageDataset:
        """Gives images that no client has."""
        if tuning:
            return image_dataset(self.images.train_images[-NUM_TUNING:], self.images.train_labels[-NUM_TUNING:])
        return image_dataset(self.images.test_images, self.images.test_labels)

    def search(self, name: str, key: str) -> Rates:
        """Tries an algorithm's grid, and gives the rates with the best last rounds."""
        algorithm, found = ALGORITHMS[name], {}
        for rates in algorithm.grid:
            found[rates] = smoothed(self.run(name, rates, setting=SETTINGS[key], seed=GRID_SEED, tuning=True))
            print(f"grid  {key:10}  {name:10}  {algorithm.told(rates):20}  {found[rates]:.1%}", flush=True)
        return max(algorithm.grid, key=lambda rates: found[rates])


def smoothed(accuracies: Sequence[float]) -> float:
    """Averages the last rounds."""
    return float(np.mean(accuracies[-SMOOTHED:]))


def first_round(accuracies: Sequence[float], bound: float) -> str:
    """Gives the round whose model first had this accuracy."""
    return next((str(number) for number, one in enumerate(accuracies, start=1) if one >= bound), "-")


def compare(experiment: Experiment, key: str, chosen: Mapping[str, Rates], *, num_seeds: int) -> None:
    """Runs each algorithm in one setting, prints the table, and saves the plot."""
    setting, rows, lines = SETTINGS[key], [], []
    for name, rates in chosen.items():
        curves = [experiment.run(name, rates, setting=setting, seed=seed) for seed in range(num_seeds)]
        last = [smoothed(curve) for curve in curves]
        bound = experiment.until or 0.8
        rounds = ", ".join(first_round(curve, bound) for curve in curves)
        told = ALGORITHMS[name].told(rates)
        rows.append((name, told, f"{np.mean(last):.1%}", f"{min(last):.1%} to {max(last):.1%}", rounds))
        print(f"{key}: {name} with {told}: {np.mean(last):.1%}; {bound:.0%} in round {rounds}", flush=True)
        lines.append(Line(f"{name} {np.mean(last):.1%}", mean_curve(curves)))
    seeds = "seed 0" if num_seeds == 1 else f"seeds 0 to {num_seeds - 1}"
    print(f"\n{setting.title}; {seeds}")
    last_rounds = f"last {SMOOTHED} rounds"
    print_table(("algorithm", "local rate", last_rounds, "over seeds", f"{bound:.0%} in round"), rows)
    if experiment.until is None:
        name = f"non_iid_mnist_{key.replace('-', '_')}.svg"
        save_lines(name, lines, title=setting.title, x="round", y="test accuracy")


def mean_curve(curves: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Averages curves of one length."""
    shortest = min(len(curve) for curve in curves)
    means = np.mean([curve[:shortest] for curve in curves], axis=0)
    return [(float(number), float(mean)) for number, mean in enumerate(means, start=1)]


def main() -> None:
    """Reads the options, searches where that is asked for, and compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="one setting instead of both")
    parser.add_argument("--only", choices=ALGORITHMS, nargs="+", default=list(ALGORITHMS), help="these algorithms")
    parser.add_argument("--grid", action="store_true", help="search the rates instead of taking those found before")
    parser.add_argument("--seeds", type=int, default=1, help="how many federations")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=6_000, help="how many images the clients have, at most 18,000")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--until", type=float, help="end a run at this test accuracy, and compare the rounds")
    parser.add_argument("--local-rate", type=float, help="the clients' learning rate, instead of the one found")
    told = parser.parse_args()
    use_threads(1)
    experiment = Experiment(mnist.load(), told.images, told.batch, told.rounds, told.until)
    for key in told.setting or SETTINGS:
        chosen = {
            name: experiment.search(name, key) if told.grid else ALGORITHMS[name].tuned[key] for name in told.only
        }
        if told.local_rate is not None:
            chosen = {name: (told.local_rate, own) for name, (_, own) in chosen.items()}
        compare(experiment, key, chosen, num_seeds=told.seeds)


if __name__ == "__main__":
    main()
