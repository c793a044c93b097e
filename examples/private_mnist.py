r"""Accuracy against epsilon on MNIST: a hundred clients, twenty a round (`python examples/private_mnist.py`).

The server clips each update and adds the noise that the budget asks for, either independent in each round
(`central_gaussian`) or such that later rounds take a part of it back (`central_blt`). In twenty rounds each client
takes part four times, every fifth round: both caps are enforced, and the noise is calibrated to them. The model is
small on purpose: fixed edge filters and a trained layer of 1,290 numbers, of which alone updates consist.

Prints a table, saves a plot; each point has the clipping norm that was best for it in a small grid, which stands below
and which `--grid` searches again. `--lessons` changes one thing at a time instead: the clip, the number of clients, the
caps, the model. The noise is the server's own, from the operating system's generator, so no two runs give the same
figures; `--repeats 3` shows by how much they differ. `--mnist FOLDER` takes the whole of MNIST from its four files.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from plotting import Line, print_table, save_lines
from torch import nn

from client_sdk import RunSpec, partitioning, simulate
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
from fl_protocol.privacy.utility import loudness
from fl_protocol.specs.parameters import ParametersSpec

NUM_CLIENTS, COHORT, PARTICIPATIONS = 100, 20, 4
DELTA = 1e-6
EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0)
NUM_OWN = 2_000
"""The operator's own images, the last training images, which no client has: public, as far as the promise goes.

The grid is judged on them, and what is common to their features is taken off everyone's; the tables are about test
images.
"""
GRID_SEED = 1000
"""The grid has a federation of its own, so that no seed of the table chose the clipping norms."""
CLIPPING_NORMS = (0.125, 0.25, 0.5, 1.0)
TUNED = {1.0: 0.125, 2.0: 0.25, 4.0: 0.5, 8.0: 0.5, 16.0: 1.0}
"""The clipping norm that the grid found best for each epsilon, with independent noise; both kinds have it."""
KINDS = ("central_gaussian", "central_blt")

NUM_DIRECTIONS, CELL, LENGTH = 8, 7, 5.0


class Edges(nn.Module):
    """Fixed features and a trained layer: float [N, 28, 28] to the scores of ten digits [N, 10].

    A feature is how much edge of one of eight directions is in one of sixteen cells. What all digits have in common is
    taken off and the rest has the same length for every image: noise in the weights disturbs a score by their product
    with the features, and the common part of these would only add to that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(directions())
        self.common = nn.Parameter(torch.zeros(NUM_DIRECTIONS * (28 // CELL) ** 2))
        self.head = nn.Linear(self.common.numel(), 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Measures the edges, [N, 28, 28] to [N, 128] of length 1."""
        edges = nn.functional.relu(nn.functional.conv2d(images[:, None], self.filters, padding=1))
        return nn.functional.normalize(nn.functional.avg_pool2d(edges, CELL).flatten(1))

    def look_at(self, data: ImageDataset) -> None:
        """Measures what all images have in common."""
        with torch.no_grad():
            self.common.copy_(self.features(data.tensors[0]).mean(dim=0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Gives the digits' scores."""
        own = nn.functional.normalize(self.features(images) - self.common)
        scores: torch.Tensor = self.head(LENGTH * own)
        return scores


def directions() -> torch.Tensor:
    """Gives filters for edges in eight directions, [8, 1, 3, 3]."""
    across = torch.tensor([[0.0, 0, 0], [-1, 0, 1], [0, 0, 0]])
    angles = torch.arange(NUM_DIRECTIONS) * (2 * torch.pi / NUM_DIRECTIONS)
    return torch.stack([angle.cos() * across + angle.sin() * across.T for angle in angles])[:, None]


@dataclass(frozen=True, slots=True)
class Network:
    """A model to begin with, what of it is trained and sent, and the clients' learning rate."""

    make: Callable[[], nn.Module]
    trainable: Sequence[str]
    learning_rate: float

    @property
    def num_trained(self) -> int:
        """Counts the numbers that an update has."""
        sent = ParametersSpec(trainable=list(self.trainable))
        return sum(one.numel() for name, one in self.make().named_parameters() if sent.travels(name))


NETWORKS = {
    "edges": Network(Edges, ("head.*",), 2.0),
    "edges, common part left": Network(Edges, ("head.*",), 2.0),
    "pixels": Network(lambda: classifier((784, 10), seed=0), ("*",), 0.1),
    "two layers": Network(lambda: classifier((784, 32, 10), seed=0), ("*",), 0.2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run: how much privacy, and what is chosen for it."""

    kind: str = "none"
    epsilon: float | None = None
    clipping_norm: float = 0.5
    participations: int = PARTICIPATIONS
    capped: bool = True
    num_clients: int = NUM_CLIENTS
    cohort: int = COHORT
    model: str = "edges"

    def spec(self) -> RunSpec:
        """Declares the run: as many rounds as it takes until each client has taken part so many times."""
        cycle = self.num_clients // self.cohort
        network = NETWORKS[self.model]
        caps = {"max_participations": self.participations, "min_separation": cycle - 1}
        budget = {"target_epsilon": self.epsilon, "delta": DELTA, "clipping_norm": self.clipping_norm}
        return RunSpec.model_validate(
            {
                "name": "private",
                "num_rounds": cycle * self.participations,
                "round": {"quorum": self.cohort, "cohort_size": self.cohort},
                "selection": caps if self.capped else {},
                "strategy": {"kind": "mean", "weighting": "uniform"},
                "training": {"local_epochs": 1, "batch_size": 60, "learning_rate": network.learning_rate},
                "parameters": {"trainable": list(network.trainable)},
                "privacy": {"kind": "none"} if self.epsilon is None else {"kind": self.kind} | budget,
            }
        )

    def without_privacy(self) -> "Plan":
        """Gives the same run without clip and noise."""
        return replace(self, kind="none", epsilon=None, clipping_norm=1.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The last model's accuracy, what it cost by the server's ledger, and the run with the noise that it calculated."""

    accuracy: float
    epsilon: float | None
    spec: RunSpec

    @property
    def noise_multiplier(self) -> str:
        """Tells the noise's standard deviation over the clipping norm."""
        multiplier = getattr(self.spec.privacy, "noise_multiplier", None)
        return "-" if multiplier is None else f"{multiplier:.2f}"


@dataclass(frozen=True, slots=True)
class Experiment:
    """The images, and how a run goes with them."""

    images: mnist.MnistSubset
    images_per_client: int

    def run(self, plan: Plan, *, seed: int, tuning: bool = False) -> Outcome:
        """Trains once; the same seed gives the same federation, but never the same noise."""
        parts = partitioning.iid(self.images_per_client * plan.num_clients, plan.num_clients, seed=seed)
        clients = [image_dataset(self.images.train_images[mine], self.images.train_labels[mine]) for mine in parts]
        network = NETWORKS[plan.model]

        def trainer(index: int) -> TorchTrainer:
            return TorchTrainer(network.make(), clients[index], seed=seed, client=f"client-{index}")

        begin = network.make()
        if isinstance(begin, Edges) and plan.model == "edges":
            begin.look_at(self.held_out(tuning=True))
        done = simulate(plan.spec(), tensors_of(begin), trainer, num_clients=plan.num_clients, seed=seed)
        load_into(begin, done.model)
        measured = TorchEvaluator(begin, self.held_out(tuning=tuning)).measure()
        return Outcome(measured.metrics["accuracy"], done.rounds[-1].round.epsilon, done.run.spec)

    def held_out(self, *, tuning: bool) -> ImageDataset:
        """Gives images that no client has."""
        if tuning:
            return image_dataset(self.images.train_images[-NUM_OWN:], self.images.train_labels[-NUM_OWN:])
        return image_dataset(self.images.test_images, self.images.test_labels)

    def repeat(self, plan: Plan, *, repeats: int) -> list[Outcome]:
        """Trains so many times, each with a federation and noise of its own, and says what came of it."""
        done = [self.run(plan, seed=seed) for seed in range(repeats)]
        budget = "no privacy" if plan.epsilon is None else f"{plan.kind}, epsilon {plan.epsilon:g}"
        print(f"{plan.model}, {budget}: {told(done)}", flush=True)
        return done


def told(outcomes: Sequence[Outcome]) -> str:
    """Tells the mean accuracy, and its range where there are several."""
    found = [one.accuracy for one in outcomes]
    spread = f" ({min(found):.1%} to {max(found):.1%})" if len(found) > 1 else ""
    return f"{np.mean(found):.1%}{spread}"


def search(experiment: Experiment, epsilon: float) -> float:
    """Tries the clipping norms of the grid, and gives the one with the best last model."""
    found = {}
    for norm in CLIPPING_NORMS:
        plan = Plan(kind="central_gaussian", epsilon=epsilon, clipping_norm=norm)
        found[norm] = experiment.run(plan, seed=GRID_SEED, tuning=True).accuracy
        print(f"grid  epsilon {epsilon:<4g}  clip {norm:<5g}  {found[norm]:.1%}", flush=True)
    return max(CLIPPING_NORMS, key=lambda norm: found[norm])


def compare(experiment: Experiment, plans: Sequence[Plan], *, repeats: int, plot: str) -> None:
    """Runs each plan with each kind, prints the table, and saves the plot."""
    rows, lines = [], []
    for kind in KINDS:
        points = []
        for plan in plans:
            done = experiment.repeat(replace(plan, kind=kind), repeats=repeats)
            spent, clip = f"{done[0].epsilon:.2f}", f"{plan.clipping_norm:g}"
            rows.append((kind, spent, clip, done[0].noise_multiplier, told(done)))
            points.append((float(plan.epsilon or 0), float(np.mean([one.accuracy for one in done]))))
        lines.append(Line(kind, points))
    plain = experiment.repeat(plans[0].without_privacy(), repeats=repeats)
    level = float(np.mean([one.accuracy for one in plain]))
    rows.append(("none", "-", "-", "-", told(plain)))
    lines.append(Line(f"no privacy {level:.1%}", [(at, level) for at, _ in lines[0].points]))
    title = f"MNIST, {plans[0].num_clients} clients, {plans[0].cohort} a round"
    print_table(("kind", "epsilon spent", "clip", "noise multiplier", "test accuracy"), rows)
    save_lines(plot, lines, title=title, x="epsilon (delta 1e-6)", y="test accuracy")


def lessons(experiment: Experiment, *, epsilon: float, repeats: int) -> None:
    """Changes one thing at a time, with the same budget, and prints what that does."""
    base = Plan(kind="central_gaussian", epsilon=epsilon)
    rows: list[tuple[str, ...]] = []
    plain: dict[Plan, str] = {}
    for title, plan in {
        "as in the first table": base,
        "correlated noise": replace(base, kind="central_blt"),
        "clip 0.05": replace(base, clipping_norm=0.05),
        "clip 5": replace(base, clipping_norm=5.0),
        "50 clients, 10 a round": replace(base, num_clients=50, cohort=10),
        "25 clients, 5 a round": replace(base, num_clients=25, cohort=5),
        "1 participation, 5 rounds": replace(base, participations=1),
        "8 participations, 40 rounds": replace(base, participations=8),
        "no caps": replace(base, capped=False),
        "common part left": replace(base, model="edges, common part left"),
        "pixels": replace(base, model="pixels"),
        "pixels, two layers": replace(base, model="two layers"),
    }.items():
        private = experiment.repeat(plan, repeats=repeats)
        same = plan.without_privacy()
        if same not in plain:
            plain[same] = told(experiment.repeat(same, repeats=repeats))
        numbers = NETWORKS[plan.model].num_trained
        ratio = loudness(private[0].spec, num_parameters=numbers).ratio
        rows.append((title, f"{numbers:,}", private[0].noise_multiplier, f"{ratio:.2f}", plain[same], told(private)))
    last = f"epsilon {epsilon:g}"
    print_table(("what is different", "trained", "multiplier", "noise/signal", "no privacy", last), rows)


def main() -> None:
    """Reads the options, searches where that is asked for, and compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--grid", action="store_true", help="search the clipping norms instead of taking those found")
    parser.add_argument("--lessons", action="store_true", help="change one thing at a time instead")
    parser.add_argument("--repeats", type=int, default=1, help="how many federations")
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS, choices=EPSILONS)
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="the whole of MNIST instead of what is packaged")
    parser.add_argument("--plot", default="private_mnist.svg", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="a few clients and rounds, to see it work")
    given = parser.parse_args()
    use_threads(1)
    images = mnist.load() if given.mnist is None else mnist.load_idx(given.mnist)
    experiment = Experiment(images, (len(images.train_labels) - NUM_OWN) // NUM_CLIENTS)
    if given.lessons:
        lessons(experiment, epsilon=8.0, repeats=given.repeats)
        return
    norms = {one: search(experiment, one) if given.grid else TUNED[one] for one in given.epsilons}
    plans = [Plan(epsilon=one, clipping_norm=norm) for one, norm in norms.items()]
    if given.quick:
        plans = [replace(one, num_clients=10, cohort=5, participations=1) for one in plans[-1:]]
    compare(experiment, plans, repeats=given.repeats, plot=given.plot)


if __name__ == "__main__":
    main()
