"""The example of attackers, small: from the refusal to the plot."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from client_sdk import TrainedModel, TrainingTask
from client_sdk.torch import classifier, image_dataset, tensors_of
from tests.docs.pages import CHECKOUT


@pytest.fixture(autouse=True)
def beside_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "examples"))


def test_the_mean_is_shown_to_be_lost_to_flipped_signs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    example = importlib.import_module("attackers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example, "NUM_IMAGES", 500)
    monkeypatch.setattr(example, "NUM_ROUNDS", 2)
    monkeypatch.setattr(example, "DEFENCES", example.DEFENCES[:1])
    monkeypatch.setattr(example, "EXPECTED_TO_HOLD", ("mean",))
    monkeypatch.setattr(example, "ATTACKS", {"honest": example.honest, "flipped signs": example.flipped_signs})
    example.main()
    told = capsys.readouterr().out
    assert "4 * num_byzantine + 3 = 15" in told
    assert "mean DOES NOT stay within 3% of the honest mean" in told
    assert (tmp_path / "attackers.svg").read_text().startswith("<svg")


def test_attackers_send_what_they_are_said_to_send() -> None:
    example = importlib.import_module("attackers")
    source = np.random.default_rng(0)
    labels = source.integers(0, 10, 64).astype(np.uint8)
    images = source.integers(0, 256, (64, 28, 28)).astype(np.uint8)
    task = TrainingTask(
        run_id="",
        round=1,
        attempt=1,
        base_version=0,
        model=tensors_of(classifier(example.SIZES, seed=0)),
        training=example.TRAINING,
    )

    def delta(trained: TrainedModel) -> dict[str, object]:
        return {name: trained.tensors[name] - start for name, start in task.model.items()}

    honest = delta(example.honest(image_dataset(images, labels), "c")(task))
    flipped = delta(example.flipped_signs(image_dataset(images, labels), "c")(task))
    wrong = delta(example.flipped_labels(image_dataset(images, labels), "c")(task))
    relabelled = delta(example.honest(image_dataset(images, 9 - labels), "c")(task))
    for name, values in honest.items():
        np.testing.assert_allclose(flipped[name], -4 * np.asarray(values), rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(wrong[name], relabelled[name])
