"""The page on presets: its table is what the code says, its specification what the command writes, its numbers true."""

import importlib.util
import itertools
import json
from types import ModuleType

from client_sdk.cli.promises import PresetName, fill_in
from fl_protocol.presets import Preset, matrix, preset_of
from fl_protocol.promises import colluders_of
from fl_protocol.runs import RunSpec
from tests.docs.pages import CHECKOUT, blocks

PAGE = CHECKOUT / "docs" / "privacy" / "presets.md"


def the_script() -> ModuleType:
    described = importlib.util.spec_from_file_location("presets_script", CHECKOUT / "scripts" / "make_preset_table.py")
    assert described is not None
    assert described.loader is not None
    script = importlib.util.module_from_spec(described)
    described.loader.exec_module(script)
    return script


def test_the_table_on_every_page_is_what_the_code_says() -> None:
    script = the_script()
    assert PAGE in script.pages()
    for page in script.pages():
        text = page.read_text()
        assert script.with_table(text) == text, f"{page.name}: run scripts/make_preset_table.py"
    for row in matrix():
        assert f"| `{row.preset}` |" in PAGE.read_text()


def test_the_specification_on_the_page_is_what_the_command_writes() -> None:
    (text,) = (each.text for each in blocks(PAGE) if each.language == "json")
    written: dict[str, object] = {}
    fill_in(written, PresetName.STRICT, {("privacy", "target_epsilon"): 8})
    shown = json.loads(text)
    assert shown["privacy"].pop("target_epsilon") == 8
    assert written == shown
    assert preset_of(RunSpec.model_validate_json(text)) is Preset.STRICT


def test_the_colluders_on_the_page_are_the_graphs() -> None:
    assert "with 5 to 10 members 1, with 20 or more at least 6" in PAGE.read_text()
    assert tolerated(5, 10) == 1
    assert min(tolerated(*sizes) for sizes in itertools.combinations((20, 21, 40, 100, 128), 2)) == 6


def tolerated(fewest: int, most: int) -> int:
    spec = {
        "round": {"quorum": most},
        "secure_aggregation": {"kind": "pairwise", "min_members": fewest, "target_members": most},
    }
    return colluders_of(RunSpec.model_validate(spec)).tolerated
