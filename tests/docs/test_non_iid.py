"""The example that compares algorithms, small; the refusals and the trainer on the page about algorithms."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from client_sdk import TrainedModel, TrainingSpec, TrainingTask
from client_sdk.demo import mnist
from fl_protocol.faults import describe_fault
from fl_protocol.runs import RunSpec
from tests.docs.pages import CHECKOUT, blocks

PAGE = CHECKOUT / "docs" / "learning" / "algorithms.md"
SCAFFOLD = {"kind": "scaffold", "num_clients": 7}
REFUSED: list[dict[str, Any]] = [
    {"round": {"quorum": 8}, "algorithm": SCAFFOLD},
    {"round": {"quorum": 5}, "algorithm": SCAFFOLD, "strategy": {"kind": "median"}},
    {"round": {"quorum": 5}, "algorithm": SCAFFOLD, "training": {"proximal_mu": 0.1}},
    {"algorithm": {"kind": "fednova"}, "training": {"proximal_mu": 0.5, "learning_rate": 2}},
]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CHECKOUT / "examples"))
    return importlib.import_module("non_iid_mnist")


def test_each_algorithm_of_the_example_is_a_run_at_all_its_rates(example: ModuleType) -> None:
    for name, algorithm in example.ALGORITHMS.items():
        for key, setting in example.SETTINGS.items():
            assert algorithm.tuned[key] in algorithm.grid
            for rates in algorithm.grid:
                spec = example.spec_of(name, rates, setting=setting, batch_size=50, num_rounds=20)
                assert spec.training.learning_rate == rates[0]
                assert spec.training.proximal_mu == (rates[1] if name == "FedProx" else 0)


def test_the_example_prints_a_table_and_saves_a_plot(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = example.Experiment(mnist.load(), 400, 50, 2)
    example.compare(experiment, "two-labels", {"SCAFFOLD": (0.1, 0)}, num_seeds=1)
    assert "Two digits a client, 5 local epochs; seed 0" in capsys.readouterr().out
    assert (tmp_path / "non_iid_mnist_two_labels.svg").read_text().count("SCAFFOLD") == 1


def test_the_refusals_on_the_page_are_the_servers() -> None:
    told = next(each.text for each in blocks(PAGE) if each.text.startswith("algorithm.num_clients")).splitlines()
    assert [refusal(document) for document in REFUSED] == told


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as refused:
        RunSpec.model_validate(document)
    return describe_fault(refused.value.errors()[0], document)


def test_the_trainer_on_the_page_takes_corrected_steps() -> None:
    (program,) = (each.text for each in blocks(PAGE) if each.language == "python")
    names: dict[str, Any] = {"TrainedModel": TrainedModel, "TrainingTask": TrainingTask, "gradient": lambda w: w}
    exec(program, names)
    one = {"w": np.ones(1, dtype=np.float32)}
    task = TrainingTask(
        run_id="",
        round=1,
        attempt=1,
        base_version=0,
        model=one,
        training=TrainingSpec(learning_rate=0.1),
        control={"w": np.full(1, 3, dtype=np.float32)},
        server_control=one,
    )
    result = names["trainer"](task)
    assert result.local_steps == 5
    np.testing.assert_allclose(result.tensors["w"], 2 + (1 - 2) * 0.9**5, rtol=1e-6)
