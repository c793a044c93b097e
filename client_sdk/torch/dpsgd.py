"""A trainer that protects each of a client's examples with DP-SGD (Abadi et al. 2016), by Opacus."""

# Opacus takes seconds to import and is in the extra [dpsgd]: other trainers shall neither wait for it nor need it.
# ruff: noqa: PLC0415

import heapq
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from client_sdk.errors import PrivacyBudgetError, UsageError
from client_sdk.privacy.example_account import ExampleAccount, keep_account, load_account
from client_sdk.session.work import ExamplePrivacy, TrainedModel, TrainingTask
from client_sdk.torch.freezing import frozen
from client_sdk.torch.objective import Gradient
from client_sdk.torch.parameters import load_into, module_structure, tensors_of
from client_sdk.torch.trainer import Batch, LossFunction, OptimizerFactory, Tally, sgd
from fl_protocol.specs.privacy import ExampleDpsgdPrivacy
from fl_protocol.specs.training import local_epochs

_BITS: Final = 64


class DpsgdTrainer:
    """Trains a module with DP-SGD as a task's `training` and its `example_dpsgd` privacy say.

    Each step takes each example by a secret coin of probability 1 / ceil(N / batch_size), clips every gradient to
    `max_grad_norm` and adds noise; an epoch has ceil(N / batch_size) steps. At a run's first task the noise multiplier
    is calibrated to the run's target over as many rounds as the client may take part in, with their epochs. What was
    spent is kept in `state_dir` before the update can leave, so that a round that is trained again is paid for again;
    PrivacyBudgetError is raised before a round that would exceed the target. `loss_fn` must be a mean over examples.
    Needs the extra [dpsgd].
    """

    def __init__(
        self,
        module: nn.Module,
        data: Dataset[Any],
        *,
        state_dir: Path,
        loss_fn: LossFunction = nn.functional.cross_entropy,
        optimizer: OptimizerFactory | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        _check(module, data)
        self.module: Final = module.to(device)
        self.structure: Final = module_structure(module)
        self._data: Final = data
        self._num_examples: Final = len(data)  # type: ignore[arg-type]
        self._state_dir: Final = Path(state_dir)
        self._loss_fn: Final = loss_fn
        self._optimizer: Final = optimizer or sgd()
        self._device: Final = device

    def __call__(self, task: TrainingTask) -> TrainedModel:
        """Trains from the task's model; raises UsageError for a run that DP-SGD cannot serve."""
        privacy = _checked_privacy(task)
        load_into(self.module, task.model)
        batches = _PoissonBatches(self._data, self._num_examples, task.training.batch_size)
        account, spent = self._reserve(task, privacy, batches)
        with frozen(self.module, task.parameters):
            tally = self._train(task, privacy, batches=batches, noise_multiplier=account.noise_multiplier)
        return TrainedModel(
            tensors=tensors_of(self.module, where=lambda name: not task.parameters.is_frozen(name)),
            num_examples=self._num_examples,
            metrics=tally.metrics(),
            spent=spent,
        )

    def _reserve(
        self, task: TrainingTask, privacy: ExampleDpsgdPrivacy, batches: "_PoissonBatches"
    ) -> tuple[ExampleAccount, ExamplePrivacy]:
        """Charges the round's steps before the first of them is taken."""
        account = load_account(self._state_dir, task.run_id)
        if account is None:
            account = ExampleAccount(_calibrated(task, privacy, batches))
        account = account.after(batches.sample_rate, task.local_epochs * len(batches))
        epsilon = epsilon_of(account, delta=privacy.delta)
        if epsilon > privacy.target_epsilon:
            raise PrivacyBudgetError(
                f"after round {task.round} training would have spent epsilon {epsilon:.4g} of each example's privacy, "
                f"and the run promised target_epsilon {privacy.target_epsilon:g}",
                field="target_epsilon",
                value=epsilon,
                bound=privacy.target_epsilon,
            )
        keep_account(self._state_dir, task.run_id, account)
        return account, ExamplePrivacy(epsilon, privacy.delta)

    def _train(
        self, task: TrainingTask, privacy: ExampleDpsgdPrivacy, *, batches: "_PoissonBatches", noise_multiplier: float
    ) -> Tally:
        from opacus import GradSampleModule  # type: ignore[import-untyped]

        from client_sdk.torch.dp_optimizer import LatticeOptimizer

        _silence()
        self.module.train()
        _check_layers(self.module)
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        sampled = GradSampleModule(self.module, loss_reduction="mean")
        optimizer = LatticeOptimizer(
            self._optimizer(trained, task.learning_rate),
            noise_multiplier=noise_multiplier,
            max_grad_norm=privacy.max_grad_norm,
            expected_batch_size=self._num_examples * batches.sample_rate,
        )
        # What is done to the gradient after its noise has been added costs no privacy.
        gradient = Gradient.of(trained, task.training)
        tally = Tally()
        try:
            for _ in range(task.local_epochs):
                tally = Tally()
                for batch in batches:
                    optimizer.zero_grad(set_to_none=True)
                    self._gradients(sampled, batch, optimizer=optimizer, tally=tally)
                    optimizer.pre_step()
                    gradient.change()
                    optimizer.original_optimizer.step()
        finally:
            optimizer.zero_grad(set_to_none=True)
            sampled.to_standard_module()
            _forget_activations(self.module)
        return tally

    def _gradients(self, sampled: nn.Module, batch: Batch | None, *, optimizer: Any, tally: Tally) -> None:
        if batch is None:
            optimizer.without_examples()
            return
        inputs, targets = batch[0].to(self._device), batch[1].to(self._device)
        outputs = sampled(inputs)
        loss = self._loss_fn(outputs, targets)
        loss.backward()
        tally.add(loss, outputs=outputs, targets=targets)


@dataclass(frozen=True, slots=True)
class _PoissonBatches:
    """An epoch's batches: each example is in each of them by a coin of its own; None stands for an empty one."""

    data: Dataset[Any]
    num_examples: int
    batch_size: int

    def __len__(self) -> int:
        return math.ceil(self.num_examples / self.batch_size)

    @property
    def sample_rate(self) -> float:
        return 1 / len(self)

    def __iter__(self) -> Iterator[Batch | None]:
        threshold = min(int(self.sample_rate * 2**_BITS), 2**_BITS - 1)
        for _ in range(len(self)):
            coins = np.frombuffer(os.urandom(self.num_examples * _BITS // 8), dtype="<u8")
            chosen = np.flatnonzero(coins <= np.uint64(threshold))
            yield _take(self.data, chosen.tolist()) if chosen.size else None


def epsilon_of(account: ExampleAccount, *, delta: float) -> float:
    """Gives what the steps of an account have spent together, by Opacus' PRV accountant (Gopi et al. 2021)."""
    accountant = _accountants().PRVAccountant()
    accountant.history = list(account.history)
    _silence()
    return float(accountant.get_epsilon(delta))


def _calibrated(task: TrainingTask, privacy: ExampleDpsgdPrivacy, batches: _PoissonBatches) -> float:
    """Gives the least noise with which the rounds with the most epochs stay within the target together."""
    if not 1 <= task.max_participations <= task.num_rounds:
        raise UsageError(
            f"max_participations {task.max_participations} of num_rounds {task.num_rounds}: DP-SGD must know in how "
            "many rounds this client may take part; participate says so"
        )
    every_round = (local_epochs(task.training, number) for number in range(1, task.num_rounds + 1))
    num_epochs = sum(heapq.nlargest(task.max_participations, every_round))
    _silence()
    found = _accountants().utils.get_noise_multiplier(
        target_epsilon=privacy.target_epsilon,
        target_delta=privacy.delta,
        sample_rate=batches.sample_rate,
        steps=num_epochs * len(batches),
        accountant="prv",
        epsilon_tolerance=privacy.target_epsilon / 100,
    )
    return float(found)


def _silence() -> None:
    """Hides two warnings that ask nothing of anybody: of hooks without input gradients, and of a search's bounds.

    For the whole process, because filters for a while would be taken away from clients that train in other threads.
    """
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    warnings.filterwarnings("ignore", message="Optimal order is the")


def _accountants() -> Any:
    try:
        import opacus.accountants.utils  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise UsageError(f"DP-SGD needs {error.name}: install fedquorum[dpsgd]") from None
    return opacus.accountants


def _take(data: Dataset[Any], indices: Sequence[int]) -> Batch:
    if isinstance(data, TensorDataset):
        inputs, targets = data[indices]
    else:
        inputs, targets = default_collate([data[index] for index in indices])
    return inputs, targets


def _checked_privacy(task: TrainingTask) -> ExampleDpsgdPrivacy:
    if not isinstance(task.privacy, ExampleDpsgdPrivacy):
        raise UsageError(
            f"DpsgdTrainer is for runs whose privacy.kind is 'example_dpsgd', and this one's is {task.privacy.kind!r}; "
            "take TorchTrainer, or ask for another run"
        )
    if task.training.early_stop is not None:
        raise UsageError(
            "training.early_stop looks at the loss, for which DP-SGD has no budget: a run with privacy.kind "
            "'example_dpsgd' must leave it out"
        )
    return task.privacy


def _check(module: nn.Module, data: Dataset[Any]) -> None:
    if isinstance(data, DataLoader):
        raise UsageError(
            "give DpsgdTrainer the dataset itself: it draws its batches by secret coins, no DataLoader can"
        )
    if not hasattr(data, "__len__") or len(data) == 0:
        raise UsageError("DP-SGD needs a dataset of known length with at least one example")
    mixing = [name for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)]
    if mixing:
        raise UsageError(
            f"layer {mixing[0]!r} is batch normalisation, which computes each example's value from all others of its "
            "batch, so that no example's share can be clipped; use nn.GroupNorm, nn.LayerNorm or nn.InstanceNorm2d "
            "without running statistics (opacus.validators.ModuleValidator.fix replaces it by GroupNorm)"
        )


def _forget_activations(module: nn.Module) -> None:
    # Opacus leaves in the layers what a step that failed had not used up, and would take it for the next step's.
    for layer in module.modules():
        for name in ("activations", "max_batch_len"):
            vars(layer).pop(name, None)


def _check_layers(module: nn.Module) -> None:
    from opacus.validators import ModuleValidator  # type: ignore[import-untyped]

    errors = ModuleValidator.validate(module, strict=False)
    if errors:
        raise UsageError(f"the module cannot be trained with DP-SGD: {errors[0]}")
