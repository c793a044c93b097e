"""Five hospitals learn to tell malignant tumours from benign ones (`python examples/tabular_medical.py`).

569 patients with 30 measurements each (Wisconsin diagnostic breast cancer data, Street et al. 1993, packaged with
scikit-learn). The hospitals differ in size and in whom they treat: the specialised clinic gets the large tumours. A
quarter of the patients belongs to no hospital and is what everything is measured on.

First, federated standardisation: a run of two rounds in which the hospitals send the mean of each measurement, then the
mean squared distance to the common mean; the mean of what they send, weighted by patients, is the pooled mean and the
pooled variance. Then a small network is trained by FedAvg, and compared with one trained on each hospital's patients
alone and with one trained on all patients in one place. Three times, with other patients held out each time.
Needs scikit-learn: `pip install scikit-learn`. Prints a table and saves a plot, in about a minute.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from plotting import Line, print_table, save_lines
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from client_sdk import (
    RoundSpec,
    RunSpec,
    Tensor,
    TrainedModel,
    TrainingSpec,
    TrainingTask,
    partitioning,
    simulate,
)
from client_sdk.torch import TorchTrainer, classifier, load_into, sgd, tensors_of, use_threads
from fl_protocol.specs.strategies import MeanStrategy

Float64 = NDArray[np.float64]
Scores = Mapping[str, float]

SHARES = {"university": 0.40, "city": 0.28, "specialised clinic": 0.18, "county": 0.09, "village": 0.05}
TUMOUR_SIZE = {"university": 0.0, "city": -0.3, "specialised clinic": 1.5, "county": -0.6, "village": -1.2}
"""Whom a hospital gets: how much larger than usual the tumours are, in standard deviations."""

MEASUREMENTS = tuple(str(name) for name in load_breast_cancer().feature_names)
SIZES = (len(MEASUREMENTS), 16, 2)
SEEDS = (0, 1, 2)
ROUND = RoundSpec(quorum=len(SHARES))
MOMENTS = RunSpec(name="moments", num_rounds=2, round=ROUND, strategy=MeanStrategy(max_abs_delta=1e9))
TRAINING = RunSpec(
    name="tumours",
    num_rounds=20,
    round=ROUND,
    training=TrainingSpec(local_epochs=2, batch_size=16, learning_rate=0.1),
)


@dataclass(frozen=True)
class Patients:
    """Measurements, float64 [patients, 30], and diagnoses: 1 is malignant."""

    measured: Float64
    malignant: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.malignant)

    def some(self, which: NDArray[np.int64]) -> "Patients":
        return Patients(self.measured[which], self.malignant[which])


@dataclass(frozen=True)
class Scale:
    """What measurements are standardised with."""

    mean: Float64
    variance: Float64

    def dataset(self, patients: Patients) -> TensorDataset:
        standardised = (patients.measured - self.mean) / np.sqrt(np.maximum(self.variance, 1e-12))
        return TensorDataset(torch.from_numpy(standardised.astype(np.float32)), torch.from_numpy(patients.malignant))


@dataclass(frozen=True)
class Trial:
    """One split of the patients: the scores of each way to train, and those of the federation by round."""

    hospitals: Mapping[str, Patients]
    scores: Mapping[str, Scores]
    by_round: Sequence[Scores]
    scale_error: float


def everyone() -> Patients:
    """Loads all patients."""
    data = load_breast_cancer()
    return Patients(data.data.astype(np.float64), (data.target == 0).astype(np.int64))


def federation(patients: Patients, *, seed: int) -> dict[str, Patients]:
    """Sends each patient to a hospital: by its size, and by how well the tumour fits whom it treats."""
    random, names = np.random.default_rng(seed), list(SHARES)
    radius = patients.measured[:, 0]
    size = (radius - radius.mean()) / radius.std()
    fit = np.array([-0.5 * (size - TUMOUR_SIZE[name]) ** 2 + np.log(SHARES[name]) for name in names])
    # The largest of these is a draw by the softmax of `fit` (Gumbel's trick).
    chosen = np.array(names)[(fit + random.gumbel(size=fit.shape)).argmax(axis=0)]
    parts = partitioning.by_attribute(chosen, seed=seed)
    return {str(chosen[part[0]]): patients.some(part) for part in parts}


def pooled_scale(patients: Patients) -> Scale:
    """Computes the scale where all rows are in one place."""
    return Scale(patients.measured.mean(axis=0), patients.measured.var(axis=0))


def moments_trainer(patients: Patients) -> Callable[[TrainingTask], TrainedModel]:
    """Makes what a hospital answers with: means in round 1, mean squared distances to the common mean in round 2."""

    def moments(task: TrainingTask) -> TrainedModel:
        found = {}
        for name, values in zip(MEASUREMENTS, patients.measured.T, strict=True):
            mean = values.mean() if task.round == 1 else np.asarray(task.model[name])[0]
            variance = 0.0 if task.round == 1 else ((values - mean) ** 2).mean()
            found[name] = np.array([mean, variance])
        return TrainedModel(tensors=found, num_examples=len(patients))

    return moments


def federated_scale(hospitals: Sequence[Patients]) -> Scale:
    """Finds the pooled mean and variance; each hospital sends two numbers a measurement and no row.

    Each measurement has a tensor of its own, for the exact sum's grid is as fine as a tensor's largest value allows.
    """
    nothing = {name: np.zeros(2) for name in MEASUREMENTS}
    done = simulate(
        MOMENTS, nothing, lambda index: moments_trainer(hospitals[index]), num_clients=len(hospitals), seed=0
    )
    mean, variance = np.stack([np.asarray(done.model[name]) for name in MEASUREMENTS]).T
    return Scale(mean, variance)


def score(model: Mapping[str, Tensor], held_out: TensorDataset) -> Scores:
    """Measures a model on patients of no hospital."""
    module = classifier(SIZES, seed=0)
    load_into(module, model)
    inputs, malignant = held_out.tensors
    with torch.no_grad():
        probability = module(inputs).softmax(dim=1)[:, 1]
    right = (probability > 0.5).long() == malignant
    found = malignant == 1
    return {
        "accuracy": float(right.double().mean()),
        "sensitivity": float(right[found].double().mean()),
        "auc": float(roc_auc_score(malignant, probability)),
    }


def federated(hospitals: Sequence[Patients], scale: Scale, held_out: TensorDataset) -> list[Scores]:
    """Trains by FedAvg and gives the scores of each round's model."""

    def trainer(index: int) -> TorchTrainer:
        data = scale.dataset(hospitals[index])
        return TorchTrainer(classifier(SIZES, seed=0), data, optimizer=sgd(momentum=0.9), client=f"hospital-{index}")

    initial = tensors_of(classifier(SIZES, seed=0))
    done = simulate(
        TRAINING, initial, trainer, num_clients=len(hospitals), measure=lambda model: score(model, held_out)
    )
    return [one.measured for one in done.rounds]


def in_one_place(data: TensorDataset, held_out: TensorDataset) -> Scores:
    """Trains on some patients for as many epochs as a hospital of the federation does."""
    module = classifier(SIZES, seed=0)
    training = TRAINING.training.model_copy(
        update={"local_epochs": TRAINING.num_rounds * TRAINING.training.local_epochs}
    )
    task = TrainingTask(run_id="", round=1, attempt=1, base_version=0, model=tensors_of(module), training=training)
    return score(TorchTrainer(module, data, optimizer=sgd(momentum=0.9))(task).tensors, held_out)


def trial(seed: int) -> Trial:
    """Splits the patients and trains in every way; who trains alone standardises with what it has."""
    patients = everyone()
    known, held_out = train_test_split(
        np.arange(len(patients)), test_size=0.25, stratify=patients.malignant, random_state=seed
    )
    hospitals = federation(patients.some(known), seed=seed)
    scale, exact = federated_scale(list(hospitals.values())), pooled_scale(patients.some(known))
    by_round = federated(list(hospitals.values()), scale, scale.dataset(patients.some(held_out)))
    scores = {}
    for name, own in hospitals.items():
        alone = pooled_scale(own)
        scores[name] = in_one_place(alone.dataset(own), alone.dataset(patients.some(held_out)))
    scores["all hospitals, federated"] = by_round[-1]
    scores["all patients in one place"] = in_one_place(
        exact.dataset(patients.some(known)), exact.dataset(patients.some(held_out))
    )
    error = max(
        float(np.abs(scale.mean / exact.mean - 1).max()), float(np.abs(scale.variance / exact.variance - 1).max())
    )
    return Trial(hospitals, scores, by_round, error)


def row_of(name: str, trials: Sequence[Trial]) -> tuple[str, ...]:
    """Gives a way's row in the table: means over the trials."""
    own = [trial.hospitals[name] for trial in trials if name in trial.hospitals]
    means = {
        kind: np.mean([trial.scores[name][kind] for trial in trials]) for kind in ("accuracy", "sensitivity", "auc")
    }
    return (
        f"{name}, alone" if own else name,
        " ".join(str(len(patients)) for patients in own) or "all",
        f"{np.mean([patients.malignant.mean() for patients in own]):.0%}" if own else "-",
        f"{means['accuracy']:.1%}",
        f"{means['sensitivity']:.1%}",
        f"{means['auc']:.4f}",
    )


def report(trials: Sequence[Trial], *, plot: str) -> None:
    """Prints the table, and draws the federation's curve between what hospitals reach alone and what is possible."""
    names = [*SHARES, "all hospitals, federated", "all patients in one place"]
    head = ("trained by", "patients", "malignant", "accuracy", "sensitivity", "AUC")
    print_table(head, [row_of(name, trials) for name in names])
    last = len(trials[0].by_round)

    def mean_at(number: int) -> float:
        return float(np.mean([trial.by_round[number - 1]["accuracy"] for trial in trials]))

    lines = [Line("all hospitals, federated", [(number, mean_at(number)) for number in range(1, last + 1)])]
    for name in ("all patients in one place", *SHARES):
        level = float(np.mean([trial.scores[name]["accuracy"] for trial in trials]))
        lines.append(Line(name if name not in SHARES else f"{name}, alone", [(1, level), (last, level)]))
    save_lines(plot, lines, title="Tumours of five hospitals", x="round", y="accuracy on patients of no hospital")


def main() -> None:
    """Runs the trials and compares."""
    use_threads(1)
    trials = []
    for seed in SEEDS:
        trials.append(trial(seed))
        last = trials[-1]
        print(
            f"patients split with seed {seed}: federated mean and variance are within {last.scale_error:.0e} of those "
            f"of all rows; accuracy {last.by_round[-1]['accuracy']:.1%} after {len(last.by_round)} rounds",
            flush=True,
        )
    report(trials, plot="tabular_medical.svg")


if __name__ == "__main__":
    main()
