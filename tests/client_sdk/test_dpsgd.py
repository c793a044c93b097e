"""DP-SGD inside a client: what it spends is what Opacus says, what it adds is the lattice's noise."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the extra [dpsgd]")
pytest.importorskip("opacus", reason="the extra [dpsgd]")

from opacus.accountants import PRVAccountant  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset, TensorDataset  # noqa: E402

from client_sdk import (  # noqa: E402
    PrivacyBudgetError,
    PrivacyPolicy,
    Progress,
    RoundSpec,
    RunSpec,
    TrainingSpec,
    TrainingTask,
    UsageError,
    participate,
    simulate,
)
from client_sdk.privacy.example_account import FILE_NAME, ExampleAccount, keep_account, load_account  # noqa: E402
from client_sdk.session.progress import PrivacySpent, TrainingFinished  # noqa: E402
from client_sdk.testing import FakeAggregator  # noqa: E402
from client_sdk.torch import DpsgdTrainer, tensors_of  # noqa: E402
from client_sdk.torch.dp_optimizer import LatticeOptimizer  # noqa: E402
from fl_protocol.arrays import decode  # noqa: E402
from fl_protocol.specs.parameters import ParametersSpec  # noqa: E402
from fl_protocol.specs.privacy import ExampleDpsgdPrivacy  # noqa: E402
from fl_protocol.specs.protection import NoPrivacy  # noqa: E402
from fl_protocol.specs.training import EarlyStop  # noqa: E402
from tests.support.audits import clopper_pearson  # noqa: E402

RUN = "run_" + 32 * "0"
PRIVACY = ExampleDpsgdPrivacy(kind="example_dpsgd", target_epsilon=2.0, delta=1e-4)
TRAINING = TrainingSpec(learning_rate=0.5, batch_size=40, local_epochs=2)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def examples(count: int = 400) -> TensorDataset:
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 5, generator=source)
    return TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())


def module() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 2))


def task(model: nn.Module, **fields: Any) -> TrainingTask:
    given = {
        "run_id": RUN,
        "round": 1,
        "attempt": 1,
        "base_version": 0,
        "model": tensors_of(model),
        "training": TRAINING,
        "privacy": PRIVACY,
        "num_rounds": 2,
        "max_participations": 2,
    }
    return TrainingTask(**(given | fields))


def opacus_epsilon(noise_multiplier: float, *, sample_rate: float, steps: int) -> float:
    """Steps one by one, as Opacus' own engine accounts."""
    accountant = PRVAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise_multiplier, sample_rate=sample_rate)
    return float(accountant.get_epsilon(PRIVACY.delta))


async def test_a_small_model_learns_and_spends_what_opacus_says(tmp_path: Path) -> None:
    model, data, told = module(), examples(), list[Progress]()
    fake = FakeAggregator()
    spec = RunSpec(num_rounds=2, round=RoundSpec(quorum=1), training=TRAINING, privacy=PRIVACY)
    run = await fake.start_run(spec, tensors_of(model))
    trainer = DpsgdTrainer(model, data, state_dir=tmp_path)
    async with fake.enrolled("a") as client:
        policy = PrivacyPolicy(max_epsilon=2.0, max_delta=1e-4, unit="example", trusted=("nobody",))
        await participate(client, run.run_id, trainer, state_dir=tmp_path, policy=policy, on_event=told.append)
    account = load_account(tmp_path, run.run_id)
    assert account is not None
    ((multiplier, sample_rate, steps),) = account.history
    assert (sample_rate, steps) == (1 / 10, 2 * 2 * 10)
    spent = [event for event in told if isinstance(event, PrivacySpent)]
    assert [event.epsilon for event in spent] == pytest.approx(
        [opacus_epsilon(multiplier, sample_rate=0.1, steps=count) for count in (20, 40)], rel=1e-9
    )
    assert 0.98 * 2.0 <= spent[-1].epsilon <= 2.0
    assert {(event.delta, event.unit) for event in spent} == {(1e-4, "example")}
    learned = [event.metrics["accuracy"] for event in told if isinstance(event, TrainingFinished)]
    assert learned[-1] > 0.85
    # Nothing but the delta left, and the module is the caller's again.
    assert [(done.num_examples, done.metrics) for done in fake.runs[run.run_id].rounds] == [(1, {}), (1, {})]
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())
    for held in fake.runs[run.run_id].tasks.values():
        assert set(decode(held.update or b"")) == set(tensors_of(model))


def test_clients_of_a_real_server_train_with_dpsgd(tmp_path: Path) -> None:
    spec = RunSpec(num_rounds=1, round=RoundSpec(quorum=2), training=TRAINING, privacy=PRIVACY)

    def trainer(index: int) -> DpsgdTrainer:
        folder = tmp_path / str(index)
        folder.mkdir()
        return DpsgdTrainer(module(), examples(), state_dir=folder)

    done = simulate(spec, tensors_of(module()), trainer, num_clients=2)
    assert [one.round.num_updates for one in done.rounds] == [2]
    before = tensors_of(module())
    assert all(np.any(np.asarray(tensor) != np.asarray(before[name])) for name, tensor in done.model.items())
    spent = [account.history for index in "01" if (account := load_account(tmp_path / index, done.run.run_id))]
    assert [[steps for _, _, steps in history] for history in spent] == [[20], [20]]


def known_account(folder: Path, *history: tuple[float, float, int], multiplier: float = 4.0) -> None:
    keep_account(folder, RUN, ExampleAccount(multiplier, history))


def test_a_round_that_would_exceed_the_target_is_not_trained(tmp_path: Path) -> None:
    model = module()
    known_account(tmp_path, (1.0, 0.1, 200))
    before = tensors_of(model)
    with pytest.raises(PrivacyBudgetError, match=r"round 1 .* target_epsilon 2") as refused:
        DpsgdTrainer(model, examples(), state_dir=tmp_path)(task(model))
    assert (refused.value.field, refused.value.bound) == ("target_epsilon", 2.0)
    for name, tensor in tensors_of(model).items():
        np.testing.assert_array_equal(tensor, before[name])
    assert load_account(tmp_path, RUN) == ExampleAccount(4.0, ((1.0, 0.1, 200),))


def test_a_round_is_charged_before_its_first_step_and_again_when_it_is_repeated(tmp_path: Path) -> None:
    model = module()
    known_account(tmp_path)

    def broken(outputs: Any, targets: Any) -> Any:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        DpsgdTrainer(model, examples(), state_dir=tmp_path, loss_fn=broken)(task(model))
    assert load_account(tmp_path, RUN) == ExampleAccount(4.0, ((4.0, 0.1, 20),))
    DpsgdTrainer(model, examples(), state_dir=tmp_path)(task(model))
    assert load_account(tmp_path, RUN) == ExampleAccount(4.0, ((4.0, 0.1, 40),))
    # Another number of examples is another sampling probability, and an entry of its own.
    DpsgdTrainer(model, examples(200), state_dir=tmp_path)(task(model))
    assert load_account(tmp_path, RUN) == ExampleAccount(4.0, ((4.0, 0.1, 40), (4.0, 0.2, 10)))


def test_a_damaged_account_is_refused_by_name(tmp_path: Path) -> None:
    known_account(tmp_path)
    (tmp_path / RUN / FILE_NAME).write_text(json.dumps({"history": []}))
    model = module()
    with pytest.raises(UsageError, match=r"dpsgd\.json is damaged"):
        DpsgdTrainer(model, examples(), state_dir=tmp_path)(task(model))


class Listed(Dataset[Any]):
    """A dataset that knows one example at a time."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


def test_one_example_a_step_and_empty_batches_are_trained_with_noise_all_the_same(tmp_path: Path) -> None:
    model = module()
    known_account(tmp_path)
    one = task(model, training=TrainingSpec(learning_rate=0.1, batch_size=1, local_epochs=1))
    result = DpsgdTrainer(model, Listed(examples(12)), state_dir=tmp_path)(one)
    assert all(np.isfinite(tensor).all() for tensor in result.tensors.values())
    # Of 12 batches that expect one example 4 are empty on average; every parameter moved, by noise if by nothing else.
    assert all((result.tensors[name] != start).any() for name, start in one.model.items())
    assert load_account(tmp_path, RUN) == ExampleAccount(4.0, ((4.0, 1 / 12, 12),))


def test_what_is_frozen_has_no_noise(tmp_path: Path) -> None:
    model = module()
    known_account(tmp_path)
    result = DpsgdTrainer(model, examples(), state_dir=tmp_path)(
        task(model, parameters=ParametersSpec(trainable=["3.*"]))
    )
    assert set(result.tensors) == {"3.weight", "3.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def optimizer_of(parameters: list[nn.Parameter], *, noise: float, batch: int = 1) -> LatticeOptimizer:
    return LatticeOptimizer(
        torch.optim.SGD(parameters, lr=1.0),
        noise_multiplier=noise,
        max_grad_norm=2.0,
        expected_batch_size=batch,
        loss_reduction="mean",
    )


def test_a_gradient_is_clipped_and_one_that_is_not_finite_counts_as_zero() -> None:
    """Opacus' own clip turns one NaN into a sum of NaN, which would tell that the example is there."""
    weights, bias = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = optimizer_of([weights, bias], noise=1e-12)
    weights.grad_sample = torch.tensor([[3.0, 0.0], [1.0, 1.0], [math.inf, 0.0], [0.5, 0.0]])
    bias.grad_sample = torch.tensor([[4.0], [math.nan], [0.0], [0.5]])
    optimizer.step()
    expected = 2 / 5 * np.array([3, 0, 4]) + np.array([0.5, 0, 0.5])
    np.testing.assert_allclose(-weights.detach().numpy(), expected[:2], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(-bias.detach().numpy(), expected[2:], rtol=1e-6)


def test_the_noise_is_the_multiplier_times_the_clip_and_no_seed_repeats_it() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        weights = nn.Parameter(torch.zeros(100_000))
        optimizer = optimizer_of([weights], noise=1.5)
        optimizer.without_examples()
        optimizer.step()
        drawn.append(weights.detach().numpy())
    # 100,000 coordinates: a standard deviation is known to 0.2%; the grid's rounding adds 2e-5 of it.
    assert abs(drawn[0].std() / (1.5 * 2.0) - 1) < 0.01
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.02


def noised_gradients(gradient: float, *, count: int) -> NDArray[Any]:
    """Clips the one example's gradient of one parameter, and noises what is left of it many times at once."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad_sample = torch.tensor([[gradient]])
    clipping = optimizer_of([weight], noise=1.0)
    clipping.clip_and_accumulate()
    noised = nn.Parameter(torch.zeros(count))
    noising = optimizer_of([noised], noise=1.0)
    noised.summed_grad = weight.summed_grad.expand(count)
    noising.add_noise()
    assert noised.grad is not None
    return noised.grad.numpy()


def test_an_audit_of_one_step_finds_no_more_than_is_claimed_and_at_least_half() -> None:
    """D10 for DP-SGD: a 95% lower bound of epsilon from gradients with an example and with one that counts as zero.

    The noise comes from the system's generator, so the bound differs from run to run: by 0.03 with a million samples.
    """
    claimed, delta, count, threshold = 4.377178, 1e-5, 1_000_000, 6.0
    likely = int((noised_gradients(1e3, count=count) > threshold).sum())
    unlikely = int((noised_gradients(math.nan, count=count) > threshold).sum())
    bound = math.log((clopper_pearson(likely, count)[0] - delta) / clopper_pearson(unlikely, count)[1])
    assert claimed / 2 <= bound <= claimed, bound


def refusing(change: Callable[[nn.Module], nn.Module] | None, fields: dict[str, Any], message: str) -> Any:
    return pytest.param(change, fields, message, id=message[:30])


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        refusing(None, {"privacy": NoPrivacy()}, r"privacy\.kind is 'example_dpsgd', and this one's is 'none'"),
        refusing(
            None,
            {"training": TrainingSpec(local_epochs=3, early_stop=EarlyStop(patience=1))},
            r"training\.early_stop looks at the loss",
        ),
        refusing(None, {"num_rounds": 0, "max_participations": 0}, r"max_participations 0 of num_rounds 0"),
    ],
)
def test_a_task_that_dpsgd_cannot_serve_is_refused(
    change: None, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = module()
    with pytest.raises(UsageError, match=message):
        DpsgdTrainer(model, examples(), state_dir=tmp_path)(task(model, **fields))


def test_batch_normalisation_is_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    mixing = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with pytest.raises(UsageError, match=r"layer '1' is batch normalisation.* use nn\.GroupNorm, nn\.LayerNorm"):
        DpsgdTrainer(mixing, examples(), state_dir=tmp_path)
    with pytest.raises(UsageError, match="give DpsgdTrainer the dataset itself"):
        DpsgdTrainer(module(), DataLoader(examples()), state_dir=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least one example"):
        DpsgdTrainer(module(), examples(0), state_dir=tmp_path)
    known_account(tmp_path)
    statistics = nn.Sequential(
        nn.Unflatten(1, (1, 5)),
        nn.InstanceNorm1d(1, affine=True, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(5, 2),
    )
    with pytest.raises(UsageError, match="cannot be trained with DP-SGD"):
        DpsgdTrainer(statistics, examples(), state_dir=tmp_path)(task(statistics))
