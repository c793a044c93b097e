"""The demo trains real MNIST over HTTP to 95% within a minute of one core, and to the same model from the same seed."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SMALL = ("--clients", "3", "--rounds", "1")
MAX_CPU_SECONDS = 60.0
"""A minute of one core: on the two that are promised, the demo is over within a minute whatever else is noisy."""


def _demo(folder: Path, *options: str) -> Any:
    finished = subprocess.run(
        [str(Path(sys.executable).parent / "fedquorum"), "demo", "--json", "--folder", str(folder), *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_ten_clients_reach_95_percent_in_ten_rounds_within_a_minute_of_one_core(tmp_path: Path) -> None:
    before = _cpu_seconds()
    result = _demo(tmp_path / "demo")
    spent = _cpu_seconds() - before
    assert len(result["rounds"]) == 10
    assert [one["num_updates"] for one in result["rounds"]] == [10] * 10
    assert result["accuracy"] >= 0.95
    assert Path(result["model"]).is_file()
    assert spent < MAX_CPU_SECONDS


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the demo of one round says that others are held against."""
    return _demo(tmp_path_factory.mktemp("small") / "demo", *SMALL, "--seed", "7")


@pytest.mark.parametrize(("seed", "is_same"), [("7", True), pytest.param("8", False, marks=pytest.mark.soak)])
def test_the_same_seed_gives_the_same_model_and_another_seed_another(
    small: Any, tmp_path: Path, seed: str, is_same: bool
) -> None:
    again = _demo(tmp_path / "again", *SMALL, "--seed", seed)
    assert (again["digest"] == small["digest"]) is is_same


def test_masked_clients_learn_as_much_and_the_server_sees_none_of_them(small: Any, tmp_path: Path) -> None:
    masked = _demo(tmp_path / "masked", *SMALL, "--seed", "7", "--secure-aggregation")
    assert abs(small["accuracy"] - masked["accuracy"]) < 0.005
    (one,), (other,) = small["rounds"], masked["rounds"]
    assert one["num_updates"] == other["num_updates"] == 3
    # A metric travels in steps of 2^-16, and clients of equal size weigh the same.
    assert abs(one["train_loss"] - other["train_loss"]) < 0.001
