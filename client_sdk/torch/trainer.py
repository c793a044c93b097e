"""A trainer and an evaluator around any nn.Module."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, TensorDataset

from client_sdk.session.work import TrainedModel, TrainingTask
from client_sdk.torch.freezing import frozen
from client_sdk.torch.objective import Budget, Gradient, Patience
from client_sdk.torch.parameters import load_into, module_structure, tensors_of
from client_sdk.torch.scaffold import LocalSteps
from fl_protocol.tasks import EvaluationReport

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
Batch = tuple[torch.Tensor, torch.Tensor]

EVALUATION_BATCH: Final = 512


def sgd(*, momentum: float = 0.0) -> OptimizerFactory:
    """Makes stochastic gradient descent the local optimizer, as in FedAvg (McMahan et al. 2017)."""
    return lambda parameters, learning_rate: torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)


class TorchTrainer:
    """Trains a module on local data as a task's `training` says, with all that TrainingSpec knows.

    `data` is a Dataset of (input, target) pairs, shuffled and batched here, or a DataLoader, which then decides both.
    `optimizer` (plain SGD by default) is called for each task with the trained parameters and the round's learning
    rate. What is drawn here depends on `seed`, `client` and the round alone, so a repeated round gives the same bits;
    give a DataLoader a `generator` and it is seeded likewise; a budget of time
    (`training.max_seconds`) gives what the machine can do in it. Dropout draws from PyTorch's process-wide generator,
    which is left alone. An update stands for the examples of the longest pass over the data: all of them, unless the
    task's budget ends before. Metrics: mean `loss` of the last pass (without the proximal term), and `accuracy` if the
    output is [N, classes] and the target [N] integers.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Dataset[Any] | DataLoader[Any],
        *,
        loss_fn: LossFunction = nn.functional.cross_entropy,
        optimizer: OptimizerFactory | None = None,
        seed: int = 0,
        client: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        self.module: Final = module.to(device)
        self.structure: Final = module_structure(module)
        self._data: Final = data
        self._loss_fn: Final = loss_fn
        self._optimizer: Final = optimizer or sgd()
        self._seed: Final = seed
        self._client: Final = client
        self._device: Final = device

    def __call__(self, task: TrainingTask) -> TrainedModel:
        """Trains from the task's model; raises UntrustedAnswerError, the module unchanged, if that does not fit.

        What the task's `parameters` freezes has no gradient meanwhile and is not part of the result.
        """
        load_into(self.module, task.model)
        with frozen(self.module, task.parameters):
            tally, steps, num_examples = self._train(task)
        return TrainedModel(
            tensors=tensors_of(self.module, where=lambda name: not task.parameters.is_frozen(name)),
            num_examples=num_examples,
            metrics=tally.metrics(),
            local_steps=steps.count,
            control=steps.control(),
        )

    def _train(self, task: TrainingTask) -> "tuple[Tally, LocalSteps, int]":
        training = task.training
        generator = torch.Generator().manual_seed(round_seed(self._seed, client=self._client, round_number=task.round))
        batches = _shuffled(self._data, batch_size=training.batch_size, generator=generator)
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        optimizer = self._optimizer(trained, task.learning_rate)
        gradient, patience = Gradient.of(trained, training), Patience(training.early_stop)
        steps = LocalSteps(self.module, task, optimizer)
        self.module.train()
        budget, tally, num_examples, is_over = Budget.of(task), Tally(), 0, False
        for _ in budget.epochs():
            tally = Tally()
            for inputs, targets in batches:
                batch = (inputs.to(self._device), targets.to(self._device))
                self._step(batch, optimizer, gradient=gradient, steps=steps, tally=tally)
                is_over = budget.is_spent(steps.count)
                if is_over:
                    break
            num_examples = max(num_examples, tally.num_examples)
            # Without any data there is no step to be counted.
            if is_over or not tally.num_examples or patience.is_over(tally.mean_loss):
                break
        return tally, steps, num_examples

    def _step(
        self,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        *,
        gradient: Gradient,
        steps: LocalSteps,
        tally: "Tally",
    ) -> None:
        inputs, targets = batch
        optimizer.zero_grad(set_to_none=True)
        outputs = self.module(inputs)
        loss = self._loss_fn(outputs, targets)
        loss.backward()
        gradient.change()
        steps.correct()
        optimizer.step()
        tally.add(loss, outputs=outputs, targets=targets)


class TorchEvaluator:
    """Measures a task's model on local data: mean `loss`, and `accuracy` as TorchTrainer has it.

    `module` is overwritten with the task's model; give it another one than the trainer's.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Dataset[Any] | DataLoader[Any],
        *,
        loss_fn: LossFunction = nn.functional.cross_entropy,
        device: torch.device | str = "cpu",
    ) -> None:
        self.module: Final = module.to(device)
        self._data: Final = data
        self._loss_fn: Final = loss_fn
        self._device: Final = device

    def __call__(self, task: TrainingTask) -> EvaluationReport:
        load_into(self.module, task.model)
        return self.measure()

    def measure(self) -> EvaluationReport:
        """Measures the module as it stands."""
        tally = Tally()
        self.module.eval()
        with torch.no_grad():
            for inputs, targets in _in_order(self._data):
                outputs = self.module(inputs.to(self._device))
                there = targets.to(self._device)
                tally.add(self._loss_fn(outputs, there), outputs=outputs, targets=there)
        return EvaluationReport(num_examples=tally.num_examples, metrics=tally.metrics())


@dataclass(slots=True)
class Tally:
    """Sums of what was seen: examples, loss by example, and right answers where that has a meaning."""

    num_examples: int = 0
    loss: float = 0.0
    num_correct: int | None = 0

    def add(self, loss: torch.Tensor, *, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        count = len(targets)
        self.num_examples += count
        self.loss += float(loss.detach()) * count
        if self.num_correct is None or outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
            self.num_correct = None
        else:
            self.num_correct += int((outputs.detach().argmax(dim=1) == targets).sum())

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.num_examples, 1)

    def metrics(self) -> dict[str, float]:
        if self.num_examples == 0:
            return {}
        metrics = {"loss": self.mean_loss}
        if self.num_correct is not None:
            metrics["accuracy"] = self.num_correct / self.num_examples
        return metrics


def round_seed(seed: int, *, client: str, round_number: int) -> int:
    """Derives the seed of one client's round: 63 bits that differ between seeds, clients and rounds.

    The run is left out, so that the same experiment, run again, gives the same model.
    """
    text = f"{seed}\n{round_number}\n{client}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _shuffled(data: Dataset[Any] | DataLoader[Any], *, batch_size: int, generator: torch.Generator) -> Iterable[Batch]:
    if isinstance(data, DataLoader):
        if data.generator is not None:
            data.generator.manual_seed(generator.initial_seed())
        return data
    sampler = RandomSampler(data, generator=generator)  # type: ignore[arg-type]
    return _batches(data, BatchSampler(sampler, batch_size, drop_last=False), generator=generator)


def _in_order(data: Dataset[Any] | DataLoader[Any]) -> Iterable[Batch]:
    if isinstance(data, DataLoader):
        return data
    sampler = SequentialSampler(data)  # type: ignore[arg-type]
    return _batches(data, BatchSampler(sampler, EVALUATION_BATCH, drop_last=False), generator=None)


def _batches(data: Dataset[Any], sampler: BatchSampler, *, generator: torch.Generator | None) -> Iterable[Batch]:
    if isinstance(data, TensorDataset):
        return _Indexed(data, sampler)
    # A loader draws a seed for its workers at each epoch; from the sampler's generator it would change the shuffling.
    workers = None if generator is None else torch.Generator().manual_seed(generator.initial_seed())
    return DataLoader(data, batch_sampler=sampler, generator=workers)


@dataclass(frozen=True, slots=True)
class _Indexed:
    """Takes each batch out of a TensorDataset with one index, ten times faster than example by example."""

    data: TensorDataset
    sampler: BatchSampler

    def __iter__(self) -> Iterator[Batch]:
        for indices in self.sampler:
            yield self.data[indices]
