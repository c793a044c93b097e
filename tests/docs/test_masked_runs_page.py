"""The page for whoever takes part in masked runs: what it names is there."""

import re

import client_sdk
from client_sdk.cli.application import app
from client_sdk.masking import answered, identity, manifest_log, peers
from client_sdk.masking.terms import MANIFESTS_FOLDER
from fl_protocol.masking.graph import graph_of
from tests.docs.pages import CHECKOUT

PAGE = CHECKOUT / "docs" / "privacy" / "masked-runs-for-clients.md"


def test_the_files_errors_and_numbers_on_the_page_are_the_participants() -> None:
    text = PAGE.read_text()
    for name in (identity.FILE_NAME, manifest_log.SERVER_FILE, peers.PEERS_FILE, f"RUN_ID/{MANIFESTS_FOLDER}/"):
        assert f"`{name}`" in text
    assert answered.AnsweredRounds.__doc__ is not None
    assert "`RUN_ID/answered/`" in text
    for error in re.findall(r"`(\w+Error)`", text):
        assert issubclass(getattr(client_sdk, error), client_sdk.FedQuorumError)
    assert graph_of(10).tolerated_dropouts == 2
    assert graph_of(100).tolerated_dropouts == 32


def test_the_options_and_commands_on_the_page_exist() -> None:
    text = PAGE.read_text()
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert {"participate", "demo"} <= commands
    (group,) = (group for group in app.registered_groups if group.name == "identity")
    assert group.typer_instance is not None
    known = {command.callback.__name__ for command in group.typer_instance.registered_commands if command.callback}
    assert set(re.findall(r"fedquorum identity (\w+)", text)) == known
