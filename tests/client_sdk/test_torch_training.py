"""TorchTrainer follows the run's local training: rates and epochs by round, clipping, early stop."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from client_sdk import TrainingSpec, TrainingTask
from client_sdk.torch import TorchTrainer, classifier, sgd, tensors_of
from client_sdk.torch.objective import Budget, Patience
from fl_protocol.specs.training import EarlyStop

torch.set_num_threads(1)

GENERATOR = torch.Generator().manual_seed(0)
DATA = TensorDataset(torch.randn(40, 6, generator=GENERATOR), torch.randint(0, 3, (40,), generator=GENERATOR))
SIZES = (6, 3)


def task(*, at: int = 1, **training: object) -> TrainingTask:
    return TrainingTask(
        run_id="run",
        round=at,
        attempt=1,
        base_version=0,
        model=tensors_of(classifier(SIZES, seed=1)),
        training=TrainingSpec.model_validate({"batch_size": 8, "learning_rate": 0.1} | training),
    )


def test_the_optimizer_gets_the_rounds_rate_and_epochs_change_by_round() -> None:
    rates: list[float] = []
    losses: list[float] = []

    def optimizer(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        rates.append(learning_rate)
        return torch.optim.SGD(parameters, lr=learning_rate)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses.append(0.0)
        return nn.functional.cross_entropy(outputs, targets)

    trainer = TorchTrainer(classifier(SIZES, seed=1), DATA, loss_fn=loss, optimizer=optimizer)
    spec = {
        "schedule": {"kind": "exponential", "factor": 0.5},
        "local_epochs_by_round": [{"from_round": 2, "local_epochs": 3}],
    }
    steps = []
    for at in (1, 2, 3):
        losses.clear()
        trainer(task(at=at, **spec))
        steps.append(len(losses))
    assert rates == [0.1, 0.05, 0.025]
    assert steps == [5, 15, 15]


@pytest.mark.parametrize("mu", [0.0, 5.0])
def test_clipped_steps_are_those_written_by_hand(mu: float) -> None:
    module = classifier(SIZES, seed=1)
    loader = DataLoader(DATA, batch_size=8)
    asked = task(max_gradient_norm=0.2, proximal_mu=mu, local_epochs=2, learning_rate=0.5)
    result = TorchTrainer(classifier(SIZES, seed=2), loader)(asked)
    origin = [parameter.detach().clone() for parameter in module.parameters()]
    clipped = 0
    for _ in range(2):
        for inputs, targets in loader:
            loss = nn.functional.cross_entropy(module(inputs), targets)
            distance = sum(((p - o) ** 2).sum() for p, o in zip(module.parameters(), origin, strict=True))
            gradients = torch.autograd.grad(loss + mu / 2 * distance, list(module.parameters()))
            norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
            clipped += norm > 0.2
            with torch.no_grad():
                for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                    parameter.sub_(0.5 * gradient * min(1.0, 0.2 / norm))
    assert clipped > 0
    for name, tensor in tensors_of(module).items():
        np.testing.assert_allclose(result.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def epochs_of(**training: object) -> int:
    calls: list[int] = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return nn.functional.cross_entropy(outputs, targets)

    TorchTrainer(classifier(SIZES, seed=1), DATA, loss_fn=loss, optimizer=sgd())(task(**training))
    return len(calls) // 5


def test_training_ends_early_once_the_loss_stays_where_it_is() -> None:
    assert epochs_of(local_epochs=9, learning_rate=1e-12, early_stop={"patience": 2, "min_delta": 0.01}) == 3
    assert epochs_of(local_epochs=9, learning_rate=0.1, early_stop={"patience": 1}) == 9
    assert epochs_of(local_epochs=4, learning_rate=1e-12) == 4


def test_patience_counts_epochs_in_a_row_and_a_loss_that_is_no_number_is_no_progress() -> None:
    patience = Patience(EarlyStop(patience=2, min_delta=0.1))
    losses = [1.0, 0.95, 0.85, 0.8, float("nan")]
    assert [patience.is_over(loss) for loss in losses] == [False, False, False, False, True]


@pytest.mark.parametrize(("steps", "num_examples"), [(3, 24), (5, 40), (13, 40)])
def test_a_budget_of_steps_is_kept_exactly_within_an_epoch_or_over_several(steps: int, num_examples: int) -> None:
    result = TorchTrainer(classifier(SIZES, seed=1), DATA)(task(local_steps=steps))
    assert (result.local_steps, result.num_examples) == (steps, num_examples)
    again = TorchTrainer(classifier(SIZES, seed=2), DATA)(task(local_steps=steps))
    for name, tensor in result.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    if steps == 5:
        epoch = TorchTrainer(classifier(SIZES, seed=3), DATA)(task(local_epochs=1))
        for name, tensor in result.tensors.items():
            np.testing.assert_array_equal(epoch.tensors[name], tensor)


def test_a_budget_of_time_ends_with_the_step_that_is_under_way() -> None:
    seconds = iter((10.0, 11.0, 12.0, 12.5, 13.0))
    budget = Budget.of(task(max_seconds=2.5, local_epochs=9), clock=lambda: next(seconds))
    assert [budget.is_spent(steps) for steps in (1, 2, 3)] == [False, False, True]
    result = TorchTrainer(classifier(SIZES, seed=1), DATA)(task(max_seconds=1e-9, local_epochs=9))
    assert (result.local_steps, result.num_examples) == (1, 8)


def test_a_budget_of_steps_needs_data() -> None:
    empty = DataLoader([], batch_size=8)
    assert TorchTrainer(classifier(SIZES, seed=1), empty)(task(local_steps=5)).local_steps == 0
