"""The examples of personal layers and of an adapter, small; the program and the RunSpecs of the pages on learning."""

import contextlib
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from client_sdk.demo import mnist
from fl_protocol.runs import RunSpec
from tests.docs.pages import CHECKOUT, block, blocks

LEARNING = CHECKOUT / "docs" / "learning"


@pytest.fixture(autouse=True)
def beside_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "examples"))


def test_each_client_measures_the_normalisation_layers_that_are_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = importlib.import_module("personalised_layers")
    monkeypatch.setattr(example, "SHIFTS", dict(list(example.SHIFTS.items())[:2]))
    monkeypatch.setattr(example, "NUM_TEST_IMAGES", 50)
    clients = example.shifted_clients(mnist.load(), num_examples=16)
    arm = example.Arm(example.normalisation_patterns(example.network(10)), renews=True)
    fedbn = example.federated(clients, arm, num_classes=10, num_rounds=2)
    assert {number: set(found) for number, found in fedbn.items()} == {1: {0, 1}, 2: {0, 1}}
    lines = example.show(
        "shift", clients, {"FedBN": fedbn, "alone": example.alone(clients, num_classes=10, num_rounds=2)}
    )
    assert [len(line.points) for line in lines] == [2, 2]
    assert "inverted" in capsys.readouterr().out


def test_an_adapters_update_has_few_of_the_models_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example, images = importlib.import_module("lora_adapter"), mnist.load()
    few = images.train_images[:32], images.train_labels[:32]
    arm = example.arms_from(example.pretrained(example.image_dataset(*few), num_epochs=1))[1]
    clients = example.clients_of(*few, num_clients=2)
    outcome = example.federate(arm, clients, example.upside_down(*few), num_rounds=1)
    assert (outcome.num_parameters, outcome.num_bytes) == (11_402, 48_080)
    example.show({arm.name: outcome}, plot=str(tmp_path / "plot.svg"))
    assert "48,080" in capsys.readouterr().out
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")


def test_the_simulations_program_comes_to_the_weights_that_its_data_hide() -> None:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(block(LEARNING / "simulation.md", "simulate_clients.py"), {})
    *rounds, digest = told.getvalue().splitlines()
    assert [line.split()[:2] for line in rounds] == [[str(number), "10"] for number in range(1, 6)]
    errors = [float(line.split()[-1].rstrip("}")) for line in rounds]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1
    assert digest.startswith("sha256:")


def test_the_run_specs_that_the_pages_show_can_be_created() -> None:
    for page in ("local-training.md", "parameters.md", "server-optimizers.md"):
        shown = [each.text for each in blocks(LEARNING / page) if each.language == "json"]
        assert shown, page
        for text in shown:
            RunSpec.model_validate(json.loads(text))


def test_hospitals_find_the_scale_of_all_rows() -> None:
    pytest.importorskip("sklearn", reason="the extra [examples]")
    example = importlib.import_module("tabular_medical")
    patients = example.everyone()
    hospitals = example.federation(patients, seed=0)
    assert set(hospitals) == set(example.SHARES)
    found, pooled = example.federated_scale(list(hospitals.values())), example.pooled_scale(patients)
    np.testing.assert_allclose(found.mean, pooled.mean, rtol=1e-13)
    np.testing.assert_allclose(found.variance, pooled.variance, rtol=1e-13)
    scores = example.in_one_place(found.dataset(hospitals["county"]), found.dataset(patients))
    assert scores["auc"] > 0.9
