"""Layers that stay with each client, against one global model (`python examples/personalised_layers.py`).

Two federations on MNIST, each with one global model, with personal layers, and with every client alone:

- the same digits, seen differently: each client's scanner inverts, darkens, brightens, blurs ... its images. The
  normalisation layers are personal (FedBN, Li et al. 2021), so that each client normalises what it sees. Their running
  statistics belong to the client's own weights; it may renew them for a new model by one pass over its images.
- different label sets: each client knows five of the ten digits and numbers them in an order of its own. The last
  layer is personal (FedPer, Arivazhagan et al. 2019), so that each client has answers of its own.

Prints two tables with each client's accuracy on test images of its own kind, and saves a plot of the means by round.
Takes one to two minutes on two cores.
"""

import argparse
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from plotting import Line, print_table, save_lines
from torch import nn

from client_sdk import (
    EvaluationReport,
    RoundSpec,
    RunSpec,
    Tensor,
    TrainedModel,
    Trainer,
    TrainingSpec,
    TrainingTask,
    partitioning,
    simulate,
)
from client_sdk.demo import mnist
from client_sdk.torch import (
    ImageDataset,
    TorchEvaluator,
    TorchTrainer,
    image_dataset,
    normalisation_patterns,
    tensors_of,
    use_threads,
)
from fl_protocol.specs.evaluation import EvaluationSpec
from fl_protocol.specs.parameters import ParametersSpec

NUM_ROUNDS = 20
NUM_EXAMPLES = {"shift": 200, "labels": 100}
NUM_CLIENTS_WITH_OWN_LABELS = 8
NUM_TEST_IMAGES = 1000
TRAINING = TrainingSpec(local_epochs=1, batch_size=16, learning_rate=0.05)
Images = NDArray[np.uint8]
Accuracies = dict[int, dict[int, float]]
"""By round, by client: its accuracy with the model that it would use, on test images of its own kind."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client: what tells it from the others, its few training images, and test images of the same kind."""

    name: str
    train: ImageDataset
    test: ImageDataset


SHIFTS: Mapping[str, Callable[[Images], Images]] = {
    "as they are": lambda images: images,
    "inverted": lambda images: 255 - images,
    "dark": lambda images: images // 5,
    "bright": lambda images: 155 + images // 5 * 2,
    "inverted, dark": lambda images: (255 - images) // 5,
    "faint on grey": lambda images: 120 + images // 8,
    "ink on half grey": lambda images: 128 - images // 2,
    "turned by 90°": lambda images: np.rot90(images, axes=(1, 2)),
}
"""How each client's scanner shows the images, uint8 [N, 28, 28] to the same."""


def network(num_classes: int) -> nn.Sequential:
    """Makes two convolutions with batch normalisation (`body`) and one linear layer (`head`)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Unflatten(1, (1, 28)),
            nn.Conv2d(1, 16, kernel_size=5, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=5, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
        )
        return nn.Sequential(OrderedDict(body=body, head=nn.Linear(512, num_classes)))


def shifted_clients(images: mnist.MnistSubset, *, num_examples: int) -> list[Client]:
    """Makes one client for each shift, each with other training images."""
    parts = partitioning.iid(len(images.train_labels), len(SHIFTS), seed=0)
    return [
        Client(
            name,
            image_dataset(shift(images.train_images[part[:num_examples]]), images.train_labels[part[:num_examples]]),
            image_dataset(shift(images.test_images[:NUM_TEST_IMAGES]), images.test_labels[:NUM_TEST_IMAGES]),
        )
        for part, (name, shift) in zip(parts, SHIFTS.items(), strict=True)
    ]


def clients_with_own_labels(images: mnist.MnistSubset, *, num_clients: int, num_examples: int) -> list[Client]:
    """Gives each client five digits, which it numbers 0 to 4 in an order of its own."""
    parts = partitioning.pathological(images.train_labels, num_clients, labels_per_client=5, seed=0)
    draw = np.random.default_rng(0)
    clients = []
    for part in parts:
        digits = draw.permutation(np.unique(images.train_labels[part]))
        own = np.zeros(10, dtype=np.int64)
        own[digits] = np.arange(len(digits))
        train = draw.permutation(part)[:num_examples]
        test = np.flatnonzero(np.isin(images.test_labels, digits))[:NUM_TEST_IMAGES]
        clients.append(
            Client(
                " ".join(map(str, digits)),
                image_dataset(images.train_images[train], own[images.train_labels[train]]),
                image_dataset(images.test_images[test], own[images.test_labels[test]]),
            )
        )
    return clients


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train: what is personal, and whether a client renews its statistics before it uses a new model."""

    personal: Sequence[str] = ()
    renews: bool = False


def renew_statistics(module: nn.Module, data: ImageDataset) -> None:
    """Sets the normalisation layers' running statistics to those of the data as the module's weights now show it."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    with torch.no_grad():
        module(data.tensors[0])


def federated(clients: Sequence[Client], arm: Arm, *, num_classes: int, num_rounds: int) -> Accuracies:
    """Trains with all clients in each round; after each, every client measures the model that it would use."""
    found: Accuracies = defaultdict(dict)

    def trainers(index: int) -> Trainer:
        return TorchTrainer(network(num_classes), clients[index].train, client=str(index))

    def evaluators(index: int) -> Callable[[TrainingTask], EvaluationReport]:
        evaluator = TorchEvaluator(network(num_classes), clients[index].test)

        def evaluate(task: TrainingTask) -> EvaluationReport:
            report = evaluator(task)
            if arm.renews:
                renew_statistics(evaluator.module, clients[index].train)
                report = evaluator.measure()
            found[task.round][index] = report.metrics["accuracy"]
            return report

        return evaluate

    spec = RunSpec(
        name="personalised",
        num_rounds=num_rounds,
        round=RoundSpec(quorum=len(clients)),
        training=TRAINING,
        parameters=ParametersSpec(personal=list(arm.personal)),
        evaluation=EvaluationSpec(every=1),
    )
    model = tensors_of(network(num_classes))
    simulate(spec, model, trainers, num_clients=len(clients), evaluators=evaluators)
    return found


def alone(clients: Sequence[Client], *, num_classes: int, num_rounds: int) -> Accuracies:
    """Lets every client train for as many epochs with nobody's help."""
    found: Accuracies = defaultdict(dict)
    for index, client in enumerate(clients):
        module = network(num_classes)
        trainer, evaluator = TorchTrainer(module, client.train, client=str(index)), TorchEvaluator(module, client.test)
        model: Mapping[str, Tensor] = tensors_of(module)
        for number in range(1, num_rounds + 1):
            task = TrainingTask(run_id="", round=number, attempt=1, base_version=0, model=model, training=TRAINING)
            trained = trainer(task)
            assert isinstance(trained, TrainedModel)
            model = trained.tensors
            found[number][index] = evaluator.measure().metrics["accuracy"]
    return found


def compare(
    clients: Sequence[Client], arms: Mapping[str, Arm], *, num_classes: int, num_rounds: int
) -> dict[str, Accuracies]:
    """Trains one global model, then in each other way, then every client alone."""
    found = {
        name: federated(clients, arm, num_classes=num_classes, num_rounds=num_rounds)
        for name, arm in {"one global model": Arm(), **arms}.items()
    }
    return found | {"alone": alone(clients, num_classes=num_classes, num_rounds=num_rounds)}


def show(title: str, clients: Sequence[Client], found: Mapping[str, Accuracies]) -> list[Line]:
    """Prints each client's accuracy after the last round; gives the means by round as curves."""
    last = max(found["alone"])
    rows = [
        [client.name, *(f"{accuracies[last][index]:.1%}" for accuracies in found.values())]
        for index, client in enumerate(clients)
    ]
    rows.append(["mean", *(f"{mean(accuracies[last].values()):.1%}" for accuracies in found.values())])
    rows.append(["lowest", *(f"{min(accuracies[last].values()):.1%}" for accuracies in found.values())])
    print_table([title, *found], rows)
    return [
        Line(f"{title}: {name}", [(number, 100 * mean(of.values())) for number, of in sorted(accuracies.items())])
        for name, accuracies in found.items()
    ]


def main() -> None:
    """Runs both federations."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--plot", default="personalised_layers.svg", metavar="FILE")
    given = parser.parse_args()
    use_threads(1)
    images = mnist.load()
    shifted = shifted_clients(images, num_examples=NUM_EXAMPLES["shift"])
    own_layers = normalisation_patterns(network(10))
    ways = {"FedBN": Arm(own_layers), "FedBN, renewed": Arm(own_layers, renews=True)}
    lines = show("shift", shifted, compare(shifted, ways, num_classes=10, num_rounds=given.rounds))
    own = clients_with_own_labels(images, num_clients=NUM_CLIENTS_WITH_OWN_LABELS, num_examples=NUM_EXAMPLES["labels"])
    ways = {"personal head": Arm(["head.*"])}
    lines += show("labels", own, compare(own, ways, num_classes=5, num_rounds=given.rounds))
    save_lines(given.plot, lines, title="Personal layers", x="round", y="mean accuracy of the clients, %")


if __name__ == "__main__":
    main()
