"""The README, word by word: its programs run against a real server, its commands and its links exist."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aggregator_service.settings import Settings
from client_sdk.cli.application import app
from tests.docs.pages import CHECKOUT, PAGES, anchors, block, blocks, links, typed_lines
from tests.support.server import OPERATOR_TOKEN, ServerProcess

README = CHECKOUT / "README.md"
ADDRESS = "http://127.0.0.1:8080"
PROGRAMS = ("start_run.py", "take_part.py", "take_part.sh", "make_update.py")
SECONDS = 300
PLACEHOLDERS = re.compile(r"NNNN|test_x\.py")


@pytest.fixture
def folder(tmp_path: Path, small_server: ServerProcess) -> Path:
    """A folder with the README's programs, as they would be pasted, but for the server's address."""
    for name in PROGRAMS:
        text = block(README, name)
        assert "8080" not in text.replace(ADDRESS, "")
        (tmp_path / name).write_text(text.replace(ADDRESS, small_server.url))
    return tmp_path


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server as the README starts it: on SQLite."""
    folder = tmp_path_factory.mktemp("server")
    process = ServerProcess(f"sqlite:///{folder}/fedquorum.db", folder).start()
    yield process
    process.kill()


def environment(**given: str) -> dict[str, str]:
    """A shell in which `python3` is this one; the folder of the checkout is found as an installed package is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEDQUORUM_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "FEDQUORUM_TOKEN": OPERATOR_TOKEN} | given


def exported(line: str) -> dict[str, str]:
    """Reads the variables of the line that start_run.py prints, as a shell would."""
    assert line.startswith("export "), line
    return dict(part.split("=", 1) for part in line.split()[1:])


def test_the_programs_of_the_readme_train_a_model_together(folder: Path) -> None:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("no curl or no bash on the path")
    operator = subprocess.Popen(
        [sys.executable, "start_run.py"], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    with operator:
        assert operator.stdout is not None
        given = exported(operator.stdout.readline())
        sdk = subprocess.Popen(
            [sys.executable, "take_part.py"], cwd=folder, env=environment(**given), stdout=subprocess.PIPE, text=True
        )
        with sdk:
            curl = subprocess.run(
                ["bash", "take_part.sh"],
                cwd=folder,
                env=environment(**given),
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            said, _ = sdk.communicate(timeout=SECONDS)
        result, _ = operator.communicate(timeout=SECONDS)
    assert curl.returncode == 0, curl.stderr
    assert curl.stdout.count('"update_id"') == 3
    assert sdk.returncode == 0
    assert said.startswith("3 updates were counted")
    assert operator.returncode == 0
    assert "tensor(" in result


def test_the_programs_are_as_short_as_the_readme_says() -> None:
    code = [line for name in PROGRAMS[:2] for line in block(README, name).splitlines() if line.strip()]
    imports = [line for line in code if line.startswith(("import ", "from ", "#"))]
    assert len(code) - len(imports) <= 20
    snippet = [line for line in block(README, "make_update.py").splitlines() if line.strip()]
    assert len(snippet) <= 18


def test_the_result_of_the_readmes_demo_is_a_demos() -> None:
    shown = next(each.text for each in blocks(README) if "held-out images" in each.text)
    assert re.search(r"reached 9[5-9]\.\d\d% after 10 rounds", shown)
    assert len(re.findall(r"^ +\d+ +10 +\d\.\d{4} +\d\.\d{4} +\d\d\.\d\d%", shown, re.MULTILINE)) == 10


def test_every_setting_of_the_server_is_in_the_readme() -> None:
    text = README.read_text()
    for name in Settings.model_fields.keys() - {"failpoint"}:
        assert f"`FEDQUORUM_{name.upper()}`" in text, name


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (page.name, found[1])
        for page in PAGES
        for line in typed_lines(page)
        if (found := re.match(r"make ([a-z-]+)", line))
    }
    assert {target for _, target in named} >= {"demo", "test"}
    assert {(page, target) for page, target in named if target not in targets} == set()


def named_commands() -> list[tuple[str, ...]]:
    """Lists every `fedquorum ...` command that a page names, with its options."""
    found: set[tuple[str, ...]] = set()
    for page in PAGES:
        for line in typed_lines(page):
            for words, rest in re.findall(r"(?<![\w./-])fedquorum ([a-z][a-z-]*(?: [a-z][a-z-]*)?)([^|&#)]*)", line):
                found.add((words, *re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)))
    return sorted(found)


def help_of(words: list[str]) -> str:
    """Asks a command for its help: in this process, unless the server's own command line takes the process over."""
    plain = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    if words[0] not in {"serve", "migrate"}:
        answer = CliRunner().invoke(app, [*words, "--help"], env=plain)
        assert answer.exit_code == 0, answer.output
        return answer.stdout
    call = [sys.executable, "-c", "from client_sdk.cli import main; main()", *words, "--help"]
    return subprocess.run(
        call, env=environment() | plain, capture_output=True, text=True, timeout=SECONDS, check=True
    ).stdout


@pytest.mark.parametrize("command", named_commands(), ids=" ".join)
def test_every_command_that_is_named_exists_with_its_options(command: tuple[str, ...]) -> None:
    words, options = command[0].split(), command[1:]
    shown = help_of(words)
    for option in options:
        assert option in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_link_inside_the_project_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("http://", "https://")) or PLACEHOLDERS.search(link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(CHECKOUT)
        if fragment:
            assert fragment in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    rooms = {entry.name for entry in CHECKOUT.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    named = [path for line in typed_lines(page) for path in re.findall(r"(?<![\w/.:~-])((?:[\w.-]+/)+[\w.-]*)", line)]
    for path in named:
        if path.split("/")[0] in rooms and not PLACEHOLDERS.search(path):
            assert (CHECKOUT / path).exists(), f"{page.name}: {path}"
