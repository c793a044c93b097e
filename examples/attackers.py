"""Three of ten clients attack: what each strategy makes of it on real MNIST (`python examples/attackers.py`).

Ten clients hold 2,000 digits of MNIST each. Three of them attack in every round, in one of two ways:

- flipped signs: they train honestly and send four times their delta, backwards;
- flipped labels: they train on wrong labels (9 - label) and send what comes of it as it is.

Each strategy runs with honest clients alone, with flipped signs and with flipped labels. Bulyan needs four updates for
each attacker and three more: with ten clients the server refuses it, so it runs with fifteen, of whom three attack.
Prints a table and saves a plot, in about five minutes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from plotting import Line, print_table, save_lines

from client_sdk import RunSpec, Tensor, TrainedModel, TrainingSpec, TrainingTask, simulate
from client_sdk.demo import mnist
from client_sdk.session.work import Trainer
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

NUM_ATTACKERS = 3
NUM_IMAGES = 20_000
NUM_ROUNDS = 10
SCALE = np.float32(4)
SIZES = (784, 64, 10)
TRAINING = TrainingSpec(local_epochs=1, batch_size=32, learning_rate=0.1, max_gradient_norm=1.0)
ALLOWED_LOSS = 0.03

Attack = Callable[[ImageDataset, str], Trainer]


@dataclass(frozen=True)
class Defence:
    """A strategy and how many clients it runs with."""

    name: str
    strategy: Mapping[str, object]
    num_clients: int = 10

    def spec(self) -> RunSpec:
        """Gives the run; one that cannot work is refused here, and by the server, with the field and the bound."""
        rounds = {"quorum": self.num_clients}
        told = {"name": "attackers", "num_rounds": NUM_ROUNDS, "round": rounds, "strategy": self.strategy}
        return RunSpec.model_validate(told | {"training": TRAINING.model_dump()})


DEFENCES = (
    Defence("mean", {"kind": "mean"}),
    Defence("mean, clipped", {"kind": "mean", "max_update_norm": {"kind": "clip", "norm": 1.5}}),
    Defence("median", {"kind": "median"}),
    Defence("trimmed mean", {"kind": "trimmed_mean", "trim_fraction": 0.3}),
    Defence("Krum", {"kind": "krum", "num_byzantine": NUM_ATTACKERS}),
    Defence("multi-Krum", {"kind": "multi_krum", "num_byzantine": NUM_ATTACKERS, "num_selected": 7}),
    Defence("geometric median (RFA)", {"kind": "geometric_median"}),
    Defence("mean, 15 clients", {"kind": "mean"}, num_clients=15),
    Defence("Bulyan, 15 clients", {"kind": "bulyan", "num_byzantine": NUM_ATTACKERS}, num_clients=15),
)
EXPECTED_TO_HOLD = ("median", "trimmed mean", "multi-Krum", "geometric median (RFA)", "Bulyan, 15 clients")


def honest(data: ImageDataset, client: str) -> TorchTrainer:
    """Makes the trainer of a client that does what it is asked."""
    return TorchTrainer(classifier(SIZES, seed=0), data, optimizer=sgd(momentum=0.9), client=client)


def flipped_signs(data: ImageDataset, client: str) -> Trainer:
    """Makes the trainer of a client that sends its delta times -SCALE."""
    trainer = honest(data, client)

    def train(task: TrainingTask) -> TrainedModel:
        trained = trainer(task)
        wrong = {name: start - SCALE * (trained.tensors[name] - start) for name, start in task.model.items()}
        return TrainedModel(tensors=wrong, num_examples=trained.num_examples, metrics=trained.metrics)

    return train


def flipped_labels(data: ImageDataset, client: str) -> TorchTrainer:
    """Makes the trainer of a client that takes each digit for nine less it."""
    images, labels = data.tensors
    return honest(ImageDataset(images, 9 - labels), client)


ATTACKS: Mapping[str, Attack] = {"honest": honest, "flipped signs": flipped_signs, "flipped labels": flipped_labels}


def train(defence: Defence, attack: Attack, images: mnist.MnistSubset) -> list[float]:
    """Runs a whole federation and gives the accuracy after each round, on images that no client has."""
    order = np.random.default_rng(0).permutation(NUM_IMAGES)
    shares = [
        image_dataset(images.train_images[mine], images.train_labels[mine])
        for mine in np.array_split(order, defence.num_clients)
    ]
    held_out = image_dataset(images.test_images, images.test_labels)

    def trainer(index: int) -> Trainer:
        kind = attack if index < NUM_ATTACKERS else honest
        return kind(shares[index], f"client-{index}")

    def accuracy(model: Mapping[str, Tensor]) -> Mapping[str, float]:
        module = classifier(SIZES, seed=0)
        load_into(module, model)
        return TorchEvaluator(module, held_out).measure().metrics

    model = tensors_of(classifier(SIZES, seed=0))
    done = simulate(defence.spec(), model, trainer, num_clients=defence.num_clients, measure=accuracy)
    return [one.measured["accuracy"] for one in done.rounds]


def show_refusal() -> None:
    """Shows what is said to Bulyan with ten clients."""
    try:
        Defence("Bulyan", {"kind": "bulyan", "num_byzantine": NUM_ATTACKERS}).spec()
    except ValueError as error:
        print(f"Bulyan with ten clients is refused:\n{error}\n")


def main() -> None:
    """Trains with every strategy and attack, and compares with the honest run."""
    use_threads(1)
    show_refusal()
    images = mnist.load()
    curves: dict[tuple[str, str], list[float]] = {}
    for defence in DEFENCES:
        for name, attack in ATTACKS.items():
            curves[defence.name, name] = train(defence, attack, images)
            print(f"{defence.name}, {name}: {curves[defence.name, name][-1]:.2%}", flush=True)
    report(curves)


def report(curves: Mapping[tuple[str, str], list[float]]) -> None:
    """Prints the last round's accuracy of each run, draws what flipped signs did, and says who held."""
    rows = [(defence.name, *(f"{curves[defence.name, attack][-1]:.2%}" for attack in ATTACKS)) for defence in DEFENCES]
    print_table(("strategy", *ATTACKS), rows)
    lines = [
        Line(defence.name, [(0.0, 0.1), *((float(at), value) for at, value in enumerate(curve, start=1))])
        for defence in DEFENCES
        for curve in [curves[defence.name, "flipped signs"]]
    ]
    save_lines(
        "attackers.svg",
        lines,
        title="Three attackers send -4 times their delta",
        x="round",
        y="accuracy on test images",
    )
    for name in EXPECTED_TO_HOLD:
        reference = curves["mean, 15 clients" if "15" in name else "mean", "honest"][-1]
        lost = reference - curves[name, "flipped signs"][-1]
        verdict = "stays within" if lost <= ALLOWED_LOSS else "DOES NOT stay within"
        print(f"{name} {verdict} {ALLOWED_LOSS:.0%} of the honest mean: {lost * 100:+.2f} points lost")


if __name__ == "__main__":
    main()
