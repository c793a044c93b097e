"""The page for a client's owner: its policy is one, its refusals are the participant's, its trainer trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk import PolicyError, PrivacyPolicy, TrainedModel, TrainingSpec, TrainingTask, load_policy
from client_sdk.privacy.example_account import ExampleAccount, keep_account
from client_sdk.privacy.policy import check_policy
from client_sdk.torch import tensors_of
from fl_protocol.privacy_claims import Trust
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import ExampleDpsgdPrivacy
from tests.docs.pages import CHECKOUT, block, blocks

PAGE = CHECKOUT / "docs" / "privacy" / "client-policy.md"
UNIFORM = {"kind": "mean", "weighting": "uniform"}
GAUSSIAN = {"kind": "central_gaussian", "target_epsilon": 4.0, "delta": 1e-6}
MASKED = {"kind": "pairwise", "min_members": 10, "identity_trust": "pinned"}
DPSGD = {"kind": "example_dpsgd", "target_epsilon": 4.0, "delta": 1e-6}


def the_policy(folder: Path) -> PrivacyPolicy:
    path = folder / "policy.toml"
    path.write_text(block(PAGE, "policy.toml"))
    return load_policy(path)


def test_the_policy_on_the_page_is_one_and_allows_a_run_like_it(tmp_path: Path) -> None:
    policy = the_policy(tmp_path)
    assert policy.model_fields_set == set(PrivacyPolicy.model_fields)
    spec = {"privacy": GAUSSIAN, "strategy": UNIFORM, "round": {"quorum": 20}, "secure_aggregation": MASKED}
    check_policy(policy, RunSpec.model_validate(spec), epsilon=4.0)


def test_every_demand_is_in_the_table() -> None:
    assert [name for name in PrivacyPolicy.model_fields if f"| `{name}` |" not in PAGE.read_text()] == []


def test_the_refusals_on_the_page_are_the_participants(tmp_path: Path) -> None:
    policy = the_policy(tmp_path)
    told = next(each.text for each in blocks(PAGE) if each.text.startswith("policy.max_epsilon")).splitlines()
    masked = {"privacy": GAUSSIAN, "strategy": UNIFORM, "round": {"quorum": 20}, "secure_aggregation": MASKED}
    narrow = {"round": {"quorum": 10, "min_updates": 8}}
    refused: list[tuple[PrivacyPolicy, dict[str, Any]]] = [
        (policy, masked | {"privacy": GAUSSIAN | {"target_epsilon": 8.0}}),
        (policy, {"privacy": {"kind": "none"}}),
        (policy, masked | narrow),
        (policy.model_copy(update={"allowed_kinds": ("example_dpsgd",)}), {"privacy": DPSGD}),
        (policy.model_copy(update={"trusted": (Trust.NOBODY,)}), masked),
        (policy, masked | {"secure_aggregation": {"kind": "none"}}),
        (policy, masked | {"secure_aggregation": MASKED | {"min_members": 5}}),
    ]
    assert [refusal(*each) for each in refused] == told


def refusal(policy: PrivacyPolicy, spec: dict[str, Any]) -> str:
    with pytest.raises(PolicyError) as refused:
        check_policy(policy, RunSpec.model_validate(spec), epsilon=1.0)
    return str(refused.value)


def test_the_trainer_on_the_page_trains(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra [dpsgd]")
    pytest.importorskip("opacus", reason="the extra [dpsgd]")
    names: dict[str, Any] = {}
    exec(block(PAGE, "dpsgd_training.py"), names)
    data = torch.utils.data.TensorDataset(torch.ones(8, 30), torch.zeros(8, dtype=torch.long))
    trainer, run_id = names["trainer_for"](data, tmp_path), "run_" + 32 * "0"
    keep_account(tmp_path, run_id, ExampleAccount(20.0))
    task = TrainingTask(
        run_id=run_id,
        round=1,
        attempt=1,
        base_version=0,
        model=tensors_of(trainer.module),
        training=TrainingSpec(batch_size=4),
        privacy=ExampleDpsgdPrivacy.model_validate(DPSGD),
        num_rounds=1,
        max_participations=1,
    )
    trained = trainer(task)
    assert isinstance(trained, TrainedModel)
    assert trained.spent is not None
    assert all(np.isfinite(tensor).all() for tensor in trained.tensors.values())
