"""The pages on privacy: their RunSpecs can be created, and their commands print what the pages say they print."""

import contextlib
import io
import json
import shlex
import sys
from pathlib import Path

import pytest

from client_sdk.cli import main
from fl_protocol.privacy.accounting import calibrated, epsilon_spent
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import num_participations
from tests.docs.pages import CHECKOUT, block, blocks

FOLDER = CHECKOUT / "docs" / "privacy"
PAGES = [FOLDER / "differential-privacy.md", FOLDER / "naive-noise.md"]
SPECS = [
    pytest.param(each.text, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, each in enumerate(each for each in blocks(page) if each.language == "json")
]
COMMANDS = [
    pytest.param(page, *each.text.split("\n", 1), id=f"{page.stem}-{number}")
    for page in PAGES
    for number, each in enumerate(each for each in blocks(page) if each.language == "console")
]


@pytest.mark.parametrize("text", SPECS)
def test_a_specification_on_a_page_keeps_its_budget(text: str) -> None:
    spec = calibrated(RunSpec.model_validate_json(text))
    spent = epsilon_spent(spec, num_participations=num_participations(spec), num_rounds=spec.num_rounds)
    assert 0 < spent <= json.loads(text)["privacy"]["target_epsilon"]


@pytest.mark.parametrize(("page", "command", "shown"), COMMANDS)
def test_a_command_prints_what_the_page_shows(
    page: Path, command: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *arguments = shlex.split(command.removeprefix("$ "))
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        if program == "python":
            exec(block(page, arguments[0]), {})
        else:
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code
    assert without_padding(told.getvalue()) == without_padding(shown)


def without_padding(text: str) -> list[str]:
    """Gives the lines that say something; tables are padded to their right and framed by empty lines."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]
