"""A client's policy file: what it can say, and that nothing is trained for a run that it does not allow (D24)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk import (
    PolicyError,
    PrivacyPolicy,
    RunSpec,
    TrainedModel,
    TrainingTask,
    UsageError,
    load_policy,
    participate,
)
from client_sdk.errors import FedQuorumError
from client_sdk.testing import FakeAggregator
from fl_protocol.privacy_claims import PrivacyUnit, Trust
from tests.client_sdk.wire import names_in

MODEL = {"w": np.zeros(4, dtype=np.float32)}
GAUSSIAN = {"kind": "central_gaussian", "target_epsilon": 4.0, "delta": 1e-6}
UNIFORM = {"kind": "mean", "weighting": "uniform"}


def private(privacy: dict[str, Any], **fields: Any) -> RunSpec:
    given = {"num_rounds": 2, "round": {"quorum": 1}, "strategy": UNIFORM, "privacy": privacy}
    return RunSpec.model_validate(given | fields)


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def test_a_policy_says_what_the_file_says(tmp_path: Path) -> None:
    text = """
        max_epsilon = 4
        max_delta = 1e-6
        allowed_kinds = ["central_gaussian", "local_laplace"]
        min_cohort = 20
        unit = "client"
        trusted = ["nobody"]
    """
    policy = load_policy(written(tmp_path, text))
    assert policy == PrivacyPolicy(
        max_epsilon=4.0,
        max_delta=1e-6,
        allowed_kinds=("central_gaussian", "local_laplace"),
        min_cohort=20,
        unit=PrivacyUnit.CLIENT,
        trusted=(Trust.NOBODY,),
    )


def test_an_empty_policy_allows_every_kind_but_none(tmp_path: Path) -> None:
    policy = load_policy(written(tmp_path, ""))
    assert set(policy.allowed_kinds) == {
        "central_gaussian",
        "central_gaussian_adaptive",
        "central_blt",
        "local_laplace",
        "local_gaussian",
        "distributed_skellam",
        "example_dpsgd",
    }
    assert policy.max_epsilon is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_epsilon = 0", "max_epsilon: Input should be greater than 0, and it is 0"),
        ("max_epsilon = nan", "max_epsilon: Input should be a finite number"),
        ("max_epsilon = inf", "max_epsilon: Input should be a finite number"),
        ("max_epsilon = '4'", "max_epsilon: Input should be a valid number"),
        ("max_delta = 1", "max_delta: Input should be less than 1, and it is 1"),
        ("max_epsylon = 4", "max_epsylon: Extra inputs are not permitted"),
        ("allowed_kinds = ['gaussian']", "allowed_kinds.0: Input should be 'none', 'central_gaussian'"),
        ("allowed_kinds = []", "allowed_kinds: "),
        ("unit = 'hospital'", "unit: Input should be 'client' or 'example'"),
        ("trusted = ['us']", "trusted.0: Input should be 'server', 'clients' or 'nobody'"),
        ("min_cohort = 0", "min_cohort: Input should be greater than or equal to 1"),
        ("max_epsilon 4", "is not TOML"),
        ("\udc80".encode("utf-8", "surrogateescape").decode("latin-1") + "=", "is not TOML"),
    ],
)
def test_a_file_that_is_no_policy_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_policy(written(tmp_path, text))
    assert message in str(refused.value)
    assert "policy.toml" in str(refused.value)


def test_a_policy_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_policy(tmp_path / "policy.toml")
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        load_policy(tmp_path / "policy.toml")
    (tmp_path / "policy.toml").write_bytes(b"#" * (65 << 10))
    with pytest.raises(UsageError, match="more than 65536 bytes"):
        load_policy(tmp_path / "policy.toml")


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, object, object]] = [
    (GAUSSIAN, {"max_epsilon": 3.9}, "max_epsilon", 4.0, 3.9),
    (GAUSSIAN, {"max_delta": 1e-7}, "max_delta", 1e-6, 1e-7),
    (GAUSSIAN, {"allowed_kinds": ("central_blt",)}, "allowed_kinds", "central_gaussian", ("central_blt",)),
    (GAUSSIAN, {"min_cohort": 2}, "min_cohort", 1, 2),
    (GAUSSIAN, {"unit": PrivacyUnit.EXAMPLE}, "unit", PrivacyUnit.CLIENT, PrivacyUnit.EXAMPLE),
    (GAUSSIAN, {"trusted": (Trust.NOBODY,)}, "trusted", Trust.SERVER, (Trust.NOBODY,)),
    ({"kind": "none"}, {"unit": PrivacyUnit.CLIENT, "allowed_kinds": ("none",)}, "unit", None, PrivacyUnit.CLIENT),
    ({"kind": "none"}, {"min_cohort": 3, "allowed_kinds": ("none",)}, "min_cohort", 1, 3),
]


@pytest.mark.parametrize(("privacy", "policy", "field", "value", "bound"), REFUSED)
async def test_a_run_that_the_policy_does_not_allow_is_refused_before_anything_is_pulled_or_trained(
    tmp_path: Path, privacy: dict[str, Any], policy: dict[str, Any], field: str, value: object, bound: object
) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private(privacy), MODEL)
    pulled: list[str] = []
    fake.intercept = lambda request: pulled.append(request.url.path) if "/models/" in request.url.path else None

    def train(task: TrainingTask) -> TrainedModel:
        raise AssertionError("nothing may be trained")

    async with fake.enrolled("a") as client:
        with pytest.raises(PolicyError) as refused:
            await participate(client, run.run_id, train, state_dir=tmp_path, policy=PrivacyPolicy(**policy))
    assert (refused.value.field, refused.value.value, refused.value.bound) == (field, value, bound)
    assert f"policy.{field}" in str(refused.value)
    assert isinstance(refused.value, FedQuorumError)
    (held,) = fake.runs[run.run_id].tasks.values()
    assert held.given_up
    assert held.update is None
    assert pulled == []
    assert names_in(tmp_path) == []


async def test_a_run_without_privacy_is_refused_by_every_policy_that_does_not_name_it(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private({"kind": "none"}), MODEL)

    def train(task: TrainingTask) -> TrainedModel:
        return TrainedModel(tensors=dict(task.model), num_examples=1)

    async with fake.enrolled("a") as client:
        with pytest.raises(PolicyError, match=r"policy\.allowed_kinds .* does not hold the run's privacy\.kind 'none'"):
            await participate(client, run.run_id, train, policy=PrivacyPolicy())
        done = await participate(client, run.run_id, train, policy=PrivacyPolicy(allowed_kinds=("none",)))
    assert done.num_updates == 2


async def test_a_policy_needs_a_folder_because_its_count_must_outlive_restarts() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(private(GAUSSIAN), MODEL)
    async with fake.enrolled("a") as client:
        with pytest.raises(UsageError, match="state_dir"):
            await participate(client, run.run_id, lambda task: None, policy=PrivacyPolicy())  # type: ignore[arg-type, return-value]


async def test_a_policy_bounds_what_the_client_itself_counts(tmp_path: Path) -> None:
    """The run promises 4.0 over 2 rounds; the policy of 4.0 lets both be sent, one of 3.9 refuses at the first."""
    fake = FakeAggregator()
    run = await fake.start_run(private(GAUSSIAN), MODEL)

    def train(task: TrainingTask) -> TrainedModel:
        return TrainedModel(tensors={"w": task.model["w"] + np.float32(1)}, num_examples=1)

    async with fake.enrolled("a") as client:
        done = await participate(client, run.run_id, train, state_dir=tmp_path, policy=PrivacyPolicy(max_epsilon=4.0))
    assert done.num_updates == 2
