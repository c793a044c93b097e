"""The example of accuracy against epsilon: its runs keep their budgets, only the head travels, and it runs small."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from aggregator_service.domain.privacy.blt import Participation, choose
from client_sdk.demo import mnist
from client_sdk.torch import tensors_of
from fl_protocol.privacy.accounting import calibrated, epsilon_spent
from fl_protocol.runs import RunSpec
from tests.docs.pages import CHECKOUT, blocks

PAGE = CHECKOUT / "docs" / "privacy" / "accuracy-and-epsilon.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CHECKOUT / "examples"))
    return importlib.import_module("private_mnist")


def test_each_point_is_a_run_that_keeps_its_budget_for_everyones_participations(example: ModuleType) -> None:
    assert set(example.TUNED.values()) <= set(example.CLIPPING_NORMS)
    for kind in example.KINDS:
        for epsilon in example.TUNED:
            spec = calibrated(example.Plan(kind=kind, epsilon=epsilon).spec())
            assert (spec.num_rounds, spec.round.cohort_size) == (20, 20)
            assert spec.num_rounds * spec.round.cohort_size == example.NUM_CLIENTS * example.PARTICIPATIONS
            spent = epsilon_spent(spec, num_participations=example.PARTICIPATIONS, num_rounds=spec.num_rounds)
            assert 0.99 * epsilon <= spent <= epsilon


def test_correlated_noise_pays_for_these_participations(example: ModuleType) -> None:
    spec = example.Plan(kind="central_blt", epsilon=1.0).spec()
    separation = spec.selection.min_separation + 1
    noise = choose(
        Participation(num_rounds=spec.num_rounds, separation=separation, max_participations=example.PARTICIPATIONS)
    )
    assert noise.independent_error / noise.worst_error == pytest.approx(1.68, abs=0.01)


def test_the_features_look_at_edges_and_only_the_head_is_trained(example: ModuleType) -> None:
    assert {name: one.num_trained for name, one in example.NETWORKS.items()} == {
        "edges": 1290,
        "edges, common part left": 1290,
        "pixels": 7850,
        "two layers": 25450,
    }
    ramp = torch.arange(28.0).expand(28, 28)[None]
    edges = example.Edges().features(ramp).detach().reshape(8, 4, 4)[:, 1:3, 1:3].sum(dim=(1, 2))
    # Ink grows to the right: that is the first direction, in part that of its two neighbours, and no other.
    np.testing.assert_allclose(edges / edges[0], [1, 0.5**0.5, 0, 0, 0, 0, 0, 0.5**0.5], atol=1e-6)
    np.testing.assert_array_equal(tensors_of(example.Edges())["head.weight"], 0)


@pytest.mark.soak
def test_the_example_prints_a_table_and_saves_a_plot(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["private_mnist.py", "--quick"])
    example.main()
    told = capsys.readouterr().out
    assert [line.split()[1] for line in told.splitlines() if "\u2502" in line] == [*example.KINDS, "none"]
    assert "16.00" in told or "15.99" in told
    assert (tmp_path / "private_mnist.svg").read_text().startswith("<svg")


def test_a_lesson_changes_one_thing(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[object] = []

    def run(experiment: object, plan: object, *, seed: int) -> object:
        tried.append(plan)
        return example.Outcome(0.5, None, calibrated(plan.spec()))  # type: ignore[attr-defined]

    monkeypatch.setattr(example.Experiment, "run", run)
    example.lessons(example.Experiment(mnist.load(), 1), epsilon=8.0, repeats=1)
    assert len(tried) == len(set(tried))
    assert replace(example.Plan(epsilon=8.0), kind="central_gaussian") in tried
    assert "25,450" in capsys.readouterr().out


def test_the_run_that_the_page_shows_is_one_of_the_table(example: ModuleType) -> None:
    (shown,) = (each.text for each in blocks(PAGE) if each.language == "json")
    plan = example.Plan(kind="central_blt", epsilon=1.0, clipping_norm=example.TUNED[1.0])
    assert RunSpec.model_validate_json(shown) == plan.spec().model_copy(update={"name": RunSpec().name})
