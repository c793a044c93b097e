import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from client_sdk import RawTensor, TrainingSpec, TrainingTask, UntrustedAnswerError, UsageError
from client_sdk.torch import TorchEvaluator, TorchTrainer, classifier, load_into, sgd, tensors_of
from client_sdk.torch.trainer import round_seed
from fl_protocol.arrays import Tensor, decode, encode

torch.set_num_threads(1)


class Mixed(nn.Module):
    """Every kind of state: normalisation with a counter, bfloat16, float16, flags, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.brain = nn.Parameter(torch.randn(2, 2).to(torch.bfloat16))
        self.small = nn.Parameter(torch.randn(3).to(torch.float16))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.encoder = nn.Linear(4, 3, bias=False)
        self.decoder = nn.Linear(4, 3, bias=False)
        self.decoder.weight = self.encoder.weight


def bits(module: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        for name, tensor in (
            (n, t.to(torch.uint8) if t.dtype is torch.bool else t) for n, t in module.state_dict().items()
        )
    }


def test_a_module_survives_the_way_over_the_wire() -> None:
    source, target = Mixed(), Mixed()
    arrived = decode(b"".join(encode(tensors_of(source), {})))
    load_into(target, arrived)
    assert bits(target) == bits(source)
    assert target.decoder.weight is target.encoder.weight


def test_tensors_are_copies() -> None:
    module = nn.Linear(2, 2)
    tensors = tensors_of(module)
    before = np.array(tensors["weight"])
    with torch.no_grad():
        module.weight.zero_()
    np.testing.assert_array_equal(tensors["weight"], before)


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    tensors = tensors_of(Mixed())
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    return tensors


BAD_MODELS = {
    "missing": lambda: changed(small=None),
    "unknown": lambda: changed(stranger=np.zeros(1, np.float32)),
    "another shape": lambda: changed(norm__weight=np.zeros(4, np.float32)),
    "another type": lambda: changed(norm__weight=np.zeros(3, np.float64)),
    "bits of another type": lambda: changed(small=RawTensor("BF16", np.zeros(3, np.uint16))),
    "NaN": lambda: changed(norm__bias=np.array([0, np.nan, 0], np.float32)),
    "infinity in bfloat16": lambda: changed(brain=RawTensor("BF16", np.full((2, 2), 0x7F80, np.uint16))),
    "tied tensors that differ": lambda: changed(decoder__weight=np.zeros((3, 4), np.float32)),
    "the last one wrong": lambda: changed(encoder__weight=np.zeros((4, 3), np.float32)),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_all_or_nothing_is_copied(kind: str) -> None:
    module = Mixed()
    before = bits(module)
    with pytest.raises(UntrustedAnswerError):
        load_into(module, BAD_MODELS[kind]())
    assert bits(module) == before


def test_state_that_cannot_travel_is_named() -> None:
    module = nn.Module()
    module.register_buffer("waves", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(UsageError, match="waves"):
        tensors_of(module)


DATA = TensorDataset(torch.randn(70, 6, generator=torch.Generator().manual_seed(1)), torch.arange(70) % 3)


def a_task(module: nn.Module, *, round_number: int = 1, **training: float) -> TrainingTask:
    return TrainingTask(
        run_id="run",
        round=round_number,
        attempt=1,
        base_version=0,
        model=tensors_of(module),
        training=TrainingSpec.model_validate({"batch_size": 16, **training}),
    )


def trained(task: TrainingTask, *, seed: int = 0, client: str = "a", data: object = DATA) -> dict[str, Tensor]:
    trainer = TorchTrainer(classifier((6, 5, 3), seed=9), data, seed=seed, client=client)  # type: ignore[arg-type]
    return dict(trainer(task).tensors)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_training_depends_on_seed_client_and_round_alone() -> None:
    task = a_task(classifier((6, 5, 3), seed=1), local_epochs=2)
    first = trained(task)
    torch.manual_seed(5)
    assert same(first, trained(task))
    assert not same(first, trained(task, seed=1))
    assert not same(first, trained(task, client="b"))
    later = a_task(classifier((6, 5, 3), seed=1), round_number=2, local_epochs=2)
    assert not same(first, trained(later))


def test_training_leaves_the_process_wide_generator_alone() -> None:
    before = torch.get_rng_state()
    trained(a_task(classifier((6, 5, 3), seed=1)))
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_differ() -> None:
    seeds = {round_seed(s, client=c, round_number=r) for s in range(3) for c in ("a", "b", "") for r in range(3)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)


class Pairs(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The same examples, one by one."""

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return DATA[index]  # type: ignore[return-value]


def test_any_dataset_gives_what_the_quick_way_gives() -> None:
    task = a_task(classifier((6, 5, 3), seed=1))
    assert same(trained(task), trained(task, data=Pairs()))


def test_a_data_loader_decides_and_its_generator_is_seeded() -> None:
    task = a_task(classifier((6, 5, 3), seed=1))
    loader = DataLoader(DATA, batch_size=7, shuffle=True, generator=torch.Generator())
    assert same(trained(task, data=loader), trained(task, data=loader))
    assert not same(trained(task), trained(task, data=loader))


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_fedprox_steps_are_those_written_by_hand(mu: float) -> None:
    module = classifier((6, 5, 3), seed=1)
    loader = DataLoader(DATA, batch_size=35)
    task = a_task(module, local_epochs=2, learning_rate=0.3, proximal_mu=mu)
    result = TorchTrainer(classifier((6, 5, 3), seed=2), loader)(task)
    origin = [parameter.detach().clone() for parameter in module.parameters()]
    for _ in range(2):
        for inputs, targets in loader:
            loss = nn.functional.cross_entropy(module(inputs), targets)
            distance = sum(((p - o) ** 2).sum() for p, o in zip(module.parameters(), origin, strict=True))
            gradients = torch.autograd.grad(loss + mu / 2 * distance, list(module.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                    parameter.sub_(0.3 * gradient)
    for name, tensor in tensors_of(module).items():
        np.testing.assert_allclose(result.tensors[name], tensor, rtol=1e-5, atol=1e-6)
    assert result.num_examples == 70


def test_metrics_are_those_of_the_last_epoch() -> None:
    module = classifier((6, 5, 3), seed=1)
    result = TorchTrainer(copy.deepcopy(module), DATA)(a_task(module, learning_rate=1e-12))
    report = TorchEvaluator(copy.deepcopy(module), DATA)(a_task(module))
    assert result.metrics == pytest.approx(report.metrics, rel=1e-5)
    assert report.num_examples == 70
    assert 0 <= report.metrics["accuracy"] <= 1


def test_another_loss_and_optimizer_may_be_given() -> None:
    data = TensorDataset(torch.randn(20, 6), torch.randn(20, 3))
    trainer = TorchTrainer(
        classifier((6, 3), seed=1), data, loss_fn=nn.functional.mse_loss, optimizer=sgd(momentum=0.9)
    )
    result = trainer(a_task(classifier((6, 3), seed=1)))
    assert set(result.metrics) == {"loss"}


def test_a_model_that_does_not_fit_leaves_the_trainer_as_it_was() -> None:
    trainer = TorchTrainer(classifier((6, 5, 3), seed=1), DATA)
    before = bits(trainer.module)
    with pytest.raises(UntrustedAnswerError):
        trainer(a_task(classifier((6, 4, 3), seed=1)))
    assert bits(trainer.module) == before
