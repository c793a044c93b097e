"""`fedquorum identity`: a key that is made once, what others need to know of it, and an authority's certificates."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_sdk.cli import main
from client_sdk.masking.trust import load_roster
from fl_protocol.masking.certificates import is_certified
from fl_protocol.masking.keys import fingerprint

Run = Callable[..., tuple[int, str, str]]
CLIENT = "client_" + "0a" * 16


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process; it asks no server."""
    monkeypatch.delenv("FEDQUORUM_CLIENT_ID", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedquorum", "identity", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def told(run: Run, *arguments: str) -> dict[str, Any]:
    code, out, error = run(*arguments, "--json")
    assert (code, error) == (0, "")
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_an_identity_is_made_once_and_shown_without_its_secret(run: Run, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    made = told(run, "create", "--state-dir", state, "--client-id", CLIENT)
    assert told(run, "show", "--state-dir", state) == made
    public_key = bytes.fromhex(made["public_key"])
    assert made["fingerprint"] == fingerprint(public_key).hex()
    (tmp_path / "roster").write_text(made["roster_line"] + "\n")
    assert load_roster(tmp_path / "roster") == {b"\n" * 16: public_key}
    secret = json.loads((tmp_path / "state" / "identity.json").read_text())["private_key"]
    code, out, _ = run("show", "--state-dir", state)
    assert code == 0
    assert secret not in out
    code, _, error = run("create", "--state-dir", state, "--client-id", CLIENT)
    assert code == 2
    assert "already" in error


def test_an_authority_certifies_a_client_that_asks_for_it(run: Run, tmp_path: Path) -> None:
    state, authority = str(tmp_path / "state"), str(tmp_path / "authority")
    made = told(run, "create", "--state-dir", state, "--client-id", CLIENT)
    signed = told(run, "certify", CLIENT, made["public_key"], "--authority-dir", authority)
    certified = told(run, "accept", signed["certificate"], "--state-dir", state)
    assert certified["certificate"] == signed["certificate"]
    assert is_certified(
        bytes.fromhex(signed["authority"]),
        bytes.fromhex(signed["certificate"]),
        client_id=b"\n" * 16,
        identity_key=bytes.fromhex(made["public_key"]),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show",), "no identity"),
        (("create", "--client-id", "me"), "no client's identifier"),
        (("accept", "abc"), "128 hexadecimal digits"),
        (("accept", "00"), "no identity"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: tuple[str, ...], message: str, run: Run, tmp_path: Path) -> None:
    code, out, error = run(*arguments, "--state-dir", str(tmp_path / "none"))
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert message in error
