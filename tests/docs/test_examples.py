"""The examples, run as their page says against a real server."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.docs.pages import CHECKOUT, block
from tests.docs.test_readme import SECONDS, environment, small_server
from tests.support.participant import unpack
from tests.support.server import ServerProcess

__all__ = ["small_server"]

PAGE = CHECKOUT / "examples" / "README.md"


def test_the_command_line_trains_the_linear_regression(small_server: ServerProcess, tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash on the path")
    shutil.copytree(CHECKOUT / "examples", tmp_path / "examples")
    (tmp_path / "fedquorum").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{MAIN}" "$@"\n')
    (tmp_path / "fedquorum").chmod(0o755)
    plain = environment(FEDQUORUM_SERVER=small_server.url, COLUMNS="200", NO_COLOR="1")
    answer = subprocess.run(
        ["bash", "-c", block(PAGE, "command_line.sh")],
        cwd=tmp_path,
        env=plain | {"PATH": f"{tmp_path}:{plain['PATH']}"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "completed" in answer.stdout
    model = unpack((tmp_path / "examples" / "linear.safetensors").read_bytes())
    np.testing.assert_allclose(model["weights"], np.array([2.0, -1.0, 0.5]), atol=0.05)
    np.testing.assert_allclose(model["bias"], np.array(3.0), atol=0.05)


MAIN = "from client_sdk.cli import main; main()"


LONG = sorted(
    path.stem for path in (CHECKOUT / "examples").glob("*.py") if path.stem not in ("linear_regression", "plotting")
)


@pytest.mark.soak
@pytest.mark.parametrize("name", LONG)
def test_each_long_example_prints_a_table_and_saves_a_plot(name: str, tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, str(CHECKOUT / "examples" / f"{name}.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "\u2503" in answer.stdout or "\u2502" in answer.stdout
    assert list(tmp_path.glob("*.svg"))


def test_the_page_names_every_example() -> None:
    page = PAGE.read_text()
    assert [name for name in LONG if f"| [{name}.py]({name}.py) |" not in page] == []
