"""TorchTrainer's SCAFFOLD steps against a float64 reference, and what it counts for FedNova."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from client_sdk import TrainingSpec, TrainingTask, UsageError
from client_sdk.session.controls import next_control
from client_sdk.torch import TorchTrainer, sgd, tensors_of
from fl_protocol.arrays import Tensor
from fl_protocol.specs.algorithms import FedNovaAlgorithm, ScaffoldAlgorithm
from fl_protocol.specs.parameters import ParametersSpec

torch.set_num_threads(1)

SOURCE = np.random.default_rng(5)
INPUTS, TARGETS = SOURCE.normal(size=(12, 3)).astype("f4"), SOURCE.normal(size=(12, 2)).astype("f4")
RATE, EPOCHS, BATCH = 0.05, 3, 12


class Model(nn.Module):
    """A linear layer whose weight has a second name, behind a normalisation that learns nothing but its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.linear = nn.Linear(3, 2)
        self.twin = self.linear
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.linear(self.norm(inputs))
        return outputs


def controls(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Makes a control variate: random for parameters (tied ones alike), zero for buffers, as it would come to be."""
    source = np.random.default_rng(seed)
    trained = dict(module.named_parameters())
    made: dict[str, Tensor] = {
        name: (source.normal(size=tensor.shape) * 0.1).astype("f4") if name in trained else np.zeros(tensor.shape, "f4")
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    for name in ("weight", "bias"):
        made[f"twin.{name}"] = made[f"linear.{name}"]
    return made


def task_of(module: nn.Module, **changes: object) -> TrainingTask:
    task = TrainingTask(
        run_id="run_1",
        round=1,
        attempt=1,
        base_version=0,
        model=tensors_of(module),
        training=TrainingSpec(local_epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE),
        algorithm=ScaffoldAlgorithm(num_clients=10),
        control=controls(module, 1),
        server_control=controls(module, 2),
    )
    return replace(task, **changes)  # type: ignore[arg-type]


def trainer(module: nn.Module, **options: object) -> TorchTrainer:
    data = TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(TARGETS))
    return TorchTrainer(module, data, loss_fn=nn.functional.mse_loss, **options)  # type: ignore[arg-type]


def test_each_step_is_corrected_and_the_control_is_option_two() -> None:
    module = Model()
    task = task_of(module)
    result = trainer(module)(task)
    assert result.local_steps == EPOCHS
    mean, spread = INPUTS.mean(axis=0, dtype="f8"), INPUTS.std(axis=0, dtype="f8")
    seen = (INPUTS - mean) / np.sqrt(spread**2 + 1e-5)
    own, server = task.control, task.server_control
    assert own is not None
    assert server is not None
    weight, bias = (np.asarray(task.model[f"linear.{name}"], dtype="f8") for name in ("weight", "bias"))
    idle = np.ones(2)
    for _ in range(EPOCHS):
        error = 2 * (seen @ weight.T + bias - TARGETS) / TARGETS.size
        weight = weight - RATE * (error.T @ seen - own["linear.weight"] + server["linear.weight"])
        bias = bias - RATE * (error.sum(axis=0) - own["linear.bias"] + server["linear.bias"])
        idle = idle - RATE * (server["idle"] - own["idle"])
    np.testing.assert_allclose(result.tensors["linear.weight"], weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.tensors["linear.bias"], bias, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.tensors["idle"], idle, rtol=1e-6)
    assert result.control is not None
    assert sorted(result.control) == sorted(own)
    for name, after in (("linear.weight", weight), ("linear.bias", bias), ("idle", idle)):
        moved = (np.asarray(task.model[name], dtype="f8") - after) / (EPOCHS * RATE)
        np.testing.assert_allclose(result.control[name], own[name] - server[name] + moved, rtol=1e-3, atol=2e-5)
        assert result.control[name].dtype == np.float32
    np.testing.assert_allclose(result.control["idle"], 0, atol=1e-6)
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(result.control[f"twin.{name}"], result.control[f"linear.{name}"])
    for name in ("norm.running_mean", "norm.running_var"):
        np.testing.assert_array_equal(result.control[name], 0)
    delta = {name: np.asarray(result.tensors[name]) - np.asarray(task.model[name]) for name in own}
    computed = next_control(task, delta, local_steps=EPOCHS)
    np.testing.assert_allclose(result.control["linear.weight"], computed["linear.weight"], rtol=1e-4, atol=1e-6)


def test_what_does_not_travel_is_not_corrected() -> None:
    module = Model()
    everything = task_of(module)
    assert everything.control is not None
    assert everything.server_control is not None
    travelling = ParametersSpec(trainable=["linear.*", "twin.*"], personal=["*.bias"])
    kept = {name: everything.control[name] for name in ("linear.weight", "twin.weight")}
    theirs = {name: everything.server_control[name] for name in kept}
    result = trainer(module)(replace(everything, parameters=travelling, control=kept, server_control=theirs))
    assert result.control is not None
    assert sorted(result.control) == ["linear.weight", "twin.weight"]
    assert "idle" not in result.tensors
    np.testing.assert_array_equal(module.idle.detach().numpy(), [1, 1])


@pytest.mark.parametrize("algorithm", [ScaffoldAlgorithm(num_clients=10), FedNovaAlgorithm()])
@pytest.mark.parametrize(
    "optimizer", [sgd(momentum=0.9), lambda parameters, rate: torch.optim.Adam(parameters, lr=rate)]
)
def test_an_optimizer_that_the_formulas_are_not_of_is_refused(algorithm: object, optimizer: object) -> None:
    module = Model()
    with pytest.raises(UsageError, match="plain SGD"):
        trainer(module, optimizer=optimizer)(task_of(module, algorithm=algorithm))


def test_steps_are_counted_and_fedavg_has_no_control() -> None:
    module = Model()
    plain = TrainingSpec(local_epochs=2, batch_size=5, learning_rate=RATE)
    task = task_of(module, training=plain, algorithm=FedNovaAlgorithm(), control=None, server_control=None)
    result = trainer(module)(task)
    assert (result.local_steps, result.control) == (6, None)
