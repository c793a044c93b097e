"""Frozen and personal tensors with PyTorch: who has a gradient, what is returned, which layers FedBN keeps."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from client_sdk import RoundSpec, RunSpec, TrainingSpec, TrainingTask, UsageError, participate
from client_sdk.testing import FakeAggregator
from client_sdk.torch import TorchTrainer, normalisation_patterns, tensors_of
from fl_protocol.specs.parameters import ParametersSpec, matches

torch.set_num_threads(1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def data(shift: float = 0.0) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, 3, generator=generator) + shift
    return TensorDataset(inputs, (inputs[:, 0] > shift).long())


def task(module: nn.Module, **patterns: list[str]) -> TrainingTask:
    return TrainingTask(
        run_id="run",
        round=1,
        attempt=1,
        base_version=0,
        model=tensors_of(module),
        training=TrainingSpec(local_epochs=2, batch_size=8, learning_rate=0.1),
        parameters=ParametersSpec(**patterns),
    )


def test_frozen_parameters_have_no_gradient_while_training_and_are_not_returned() -> None:
    module = network()
    module[3].bias.requires_grad = False
    during: list[dict[str, bool]] = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        during.append({name: parameter.requires_grad for name, parameter in module.named_parameters()})
        return nn.functional.cross_entropy(outputs, targets)

    def optimizer(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        # Weight decay would move a frozen parameter that it was given.
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.5)

    asked = task(module, trainable=["3.*"], personal=["1.weight"])
    result = TorchTrainer(module, data(), loss_fn=loss, optimizer=optimizer)(asked)
    expected = {
        "0.weight": False,
        "0.bias": False,
        "1.weight": True,
        "1.bias": False,
        "3.weight": True,
        "3.bias": False,
    }
    assert all(state == expected for state in during)
    assert [name for name, parameter in module.named_parameters() if not parameter.requires_grad] == ["3.bias"]
    assert set(result.tensors) == {"1.weight", "3.weight", "3.bias"}
    moved = {name for name, tensor in tensors_of(module).items() if not np.array_equal(tensor, asked.model[name])}
    assert moved == {"1.weight", "3.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_gradients_are_given_back_when_training_fails() -> None:
    module = network()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        TorchTrainer(module, data(), loss_fn=loss)(task(module, trainable=["3.*"]))
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_tied_tensors_must_be_treated_alike() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    trainer = TorchTrainer(module, TensorDataset(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)))
    with pytest.raises(UsageError, match=r"'0\.weight' and '1\.weight' are one in the module"):
        trainer(task(module, trainable=["0.*"]))
    trainer(task(module, trainable=["*.weight"]))


class Normalised(nn.Module):
    """One of each kind, nested, and one without anything to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict(
            {"batch": nn.BatchNorm2d(2), "group": nn.GroupNorm(1, 2), "conv": nn.Conv2d(2, 2, 1)}
        )
        self.layer = nn.LayerNorm(2)
        self.rms = nn.RMSNorm(2)
        self.plain = nn.LayerNorm(2, elementwise_affine=False)
        self.instance = nn.InstanceNorm1d(2, affine=True)


def test_normalisation_layers_are_named_and_nothing_else_is() -> None:
    module = Normalised()
    patterns = normalisation_patterns(module)
    assert patterns == ["block.batch.*", "block.group.*", "layer.*", "rms.*", "instance.*"]
    matched = {name for name in module.state_dict() if any(matches(pattern, name) for pattern in patterns)}
    assert set(module.state_dict()) - matched == {"block.conv.weight", "block.conv.bias"}
    assert normalisation_patterns(nn.BatchNorm1d(2)) == ["*"]
    with pytest.raises(UsageError, match="Linear has no normalisation layer"):
        normalisation_patterns(nn.Linear(1, 1))


async def test_fedbn_keeps_each_clients_own_statistics() -> None:
    fake = FakeAggregator()
    spec = RunSpec(
        num_rounds=3,
        round=RoundSpec(quorum=1),
        training=TrainingSpec(local_epochs=3, batch_size=16, learning_rate=0.1),
        parameters=ParametersSpec(personal=normalisation_patterns(network())),
    )
    initial = tensors_of(network())
    run = await fake.start_run(spec, initial)
    module = network()
    async with fake.enrolled("shifted") as client:
        await participate(client, run.run_id, TorchTrainer(module, data(shift=4.0)))
    final, own = fake.model(run.run_id), tensors_of(module)
    kept = [name for name in initial if name.startswith("1.")]
    assert all(np.array_equal(final[name], initial[name]) for name in kept)
    assert int(own["1.num_batches_tracked"]) == 3 * 3 * 2
    assert np.abs(own["1.running_mean"]).max() > 0.5
    assert all(not np.array_equal(final[name], initial[name]) for name in initial if name not in kept)
