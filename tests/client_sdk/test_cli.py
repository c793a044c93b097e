import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import client_sdk.client
from client_sdk import FedQuorumError, RoundSpec, RunSpec
from client_sdk.cli import main
from client_sdk.cli.budget import print_budget
from client_sdk.cli.failures import one_line
from client_sdk.cli.output import cell
from client_sdk.cli.strata import print_newest_strata
from client_sdk.demo.folder import prepare_folder
from client_sdk.errors import UsageError
from client_sdk.testing import FakeAggregator
from fl_protocol.arrays import decode, encode
from fl_protocol.presets import promise
from fl_protocol.privacy_reports import PrivacyReport
from fl_protocol.rounds import Round, RoundState, StratumEvaluation
from fl_protocol.specs.privacy import LocalLaplacePrivacy

MODEL = {"w": np.array([1.0, 2.0], dtype=np.float32)}
COMMANDS = [
    [], ["demo"], ["participate"], ["token"], ["token", "create"], ["clients"], ["clients", "list"],
    ["clients", "enrol"], ["clients", "revoke"], ["privacy"], ["privacy", "plan"], ["privacy", "presets"], ["model"],
    ["model", "download"],
    ["model", "list"], ["run"],
    *(["run", name] for name in ("create", "start", "pause", "resume", "stop", "list", "show", "watch", "rollback")),
    ["run", "privacy"],
]  # fmt: skip


def fedquorum(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FEDQUORUM_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "from client_sdk.cli import main; main()", *arguments],
        capture_output=True, text=True, timeout=30, env=clean | environment, check=False,
    )  # fmt: skip


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fake() -> FakeAggregator:
    return FakeAggregator()


@pytest.fixture
def run(fake: FakeAggregator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process against the fake."""

    def open_client(server: str, *, token: str, **options: Any) -> client_sdk.client.AggregatorClient:
        return fake.client(token)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedquorum", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    monkeypatch.setattr(client_sdk.client, "AggregatorClient", open_client)
    monkeypatch.setenv("FEDQUORUM_TOKEN", "operator-token")
    return run


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str], run: Run) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Usage" in out


def test_help_imports_neither_torch_nor_httpx() -> None:
    code = (
        "import sys; sys.argv = ['fedquorum', '--help']\nfrom client_sdk.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nassert not {'torch', 'httpx', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "list"], 2, "no token: put it into FEDQUORUM_TOKEN"),
        (["run", "nope"], 2, "see fedquorum run --help"),
        (["run", "list", "--nope"], 2, "see fedquorum run list --help"),
        (["run", "show"], 2, "run_id"),
        (["clients", "list", "--token-file", "/no/such/file"], 2, "token file cannot be read"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], code: int, says: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDQUORUM_TOKEN")
    ended, out, error = run(*arguments)
    assert (ended, out, error.count("\n")) == (code, "", 1)
    assert says.lower() in error.lower()


def test_a_server_that_is_not_there_is_one_line_and_exit_code_1() -> None:
    ended = fedquorum("run", "list", "--server", "http://127.0.0.1:9", FEDQUORUM_TOKEN="some-token")
    assert ended.returncode == 1
    assert ended.stderr.startswith("fedquorum: ")
    assert ended.stderr.count("\n") == 1
    assert "is the server running" in ended.stderr


def test_the_server_takes_the_place_of_the_command(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(os, "execv", lambda path, arguments: called.append(arguments))
    run("serve", "--port", "0", "--help")
    run("migrate", "--database-url", "sqlite:///x")
    assert called == [
        [sys.executable, "-m", "aggregator_service", "serve", "--port", "0", "--help"],
        [sys.executable, "-m", "aggregator_service", "migrate", "--database-url", "sqlite:///x"],
    ]


def test_a_missing_server_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else name)
    code, _, error = run("serve")
    assert code == 2
    assert error.count("\n") == 1
    assert "pip install 'fedquorum[server]'" in error


def test_a_run_from_creation_to_its_model(run: Run, fake: FakeAggregator, tmp_path: Path) -> None:
    initial, output = tmp_path / "initial.safetensors", tmp_path / "out.safetensors"
    initial.write_bytes(b"".join(encode(MODEL, {})))
    code, out, _ = run(
        "run", "create", "--model", str(initial), "--name", "cli", "--quorum", "1", "--rounds", "1", "--json"
    )
    created = json.loads(out)
    assert (code, created["state"], created["spec"]["round"]["cohort_size"]) == (0, "draft", 1)
    run_id = created["run_id"]
    assert run("run", "start", run_id)[0] == 0
    code, out, _ = run("run", "list")
    assert run_id in out
    assert "cli" in out
    assert json.loads(run("run", "show", run_id, "--json")[1])["rounds"][0]["state"] == "collecting"
    assert "collecting" in run("run", "show", run_id)[1]
    code, out, _ = run("model", "download", run_id, "--version", "0", "--output", str(output), "--json")
    assert json.loads(out)["version"] == 0
    np.testing.assert_array_equal(decode(output.read_bytes())["w"], MODEL["w"])
    assert run("model", "download", run_id, "--output", str(output))[0] == 2
    assert run("run", "stop", run_id)[0] == 0
    code, out, error = run("run", "watch", run_id)
    assert code == 1
    assert "stopped" in out
    assert "stopped" in error
    assert {path.name for path in tmp_path.iterdir()} == {"initial.safetensors", "out.safetensors"}


@pytest.mark.parametrize("change", [["--rounds", "0"], ["--quorum", "9", "--cohort-size", "2"], ["--name", "../x"]])
def test_a_wrong_specification_names_the_key(change: list[str], run: Run, tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.write_bytes(b"")
    code, _, error = run("run", "create", "--model", str(model), *change)
    assert (code, error.count("\n")) == (2, 1)
    assert "specification" in error


SPECIFICATION: dict[str, Any] = {
    "num_rounds": 10,
    "server_optimizer": {"kind": "adam", "tau": 0.01, "schedule": {"kind": "cosine", "num_rounds": 10}},
}


def test_a_file_gives_any_specification_and_options_change_it(run: Run, tmp_path: Path) -> None:
    initial, spec = tmp_path / "initial.safetensors", tmp_path / "spec.json"
    initial.write_bytes(b"".join(encode(MODEL, {})))
    spec.write_text(json.dumps(SPECIFICATION))
    create = ("run", "create", "--model", str(initial), "--spec", str(spec), "--json")
    code, out, _ = run(*create, "--rounds", "9")
    made = json.loads(out)["spec"]
    assert (code, made["num_rounds"]) == (0, 9)
    assert made["server_optimizer"] == {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99} | {
        **SPECIFICATION["server_optimizer"],
        "schedule": {"kind": "cosine", "num_rounds": 10, "final_factor": 0.0, "warmup_rounds": 0},
    }
    code, _, error = run(*create, "--rounds", "11")
    assert (code, error.count("\n")) == (2, 1)
    assert "the specification: server_optimizer.schedule.num_rounds 10 ends before num_rounds 11" in error
    spec.write_text(json.dumps({"server_optimizer": {"kind": "adam", "beta1": 1}}))
    assert "the specification: server_optimizer.beta1: Input should be less than 1" in run(*create)[2]


def test_a_run_goes_back_and_another_begins_with_its_model(run: Run, fake: FakeAggregator, tmp_path: Path) -> None:
    run_id = anyio.run(_start, fake)
    code, out, _ = run("run", "rollback", run_id, "0", "--json")
    assert (code, json.loads(out)["version"], json.loads(out)["restored_from"]) == (0, 1, 0)
    assert "restored from   1\n" in run("run", "rollback", run_id, "1")[1]
    output = tmp_path / "out.safetensors"
    assert run("model", "download", run_id, "--with-lineage", "--version", "1", "-o", str(output))[0] == 0
    assert b"fedquorum.lineage" in output.read_bytes()
    assert run("model", "download", run_id, "--best", "-o", str(tmp_path / "best"))[2].startswith("fedquorum: ")
    rows = run("model", "list", run_id)[1].splitlines()
    versions = json.loads(run("model", "list", run_id, "--json")[1])
    assert [line.split()[:4] for line in rows if "sha256:" in line] == [
        ["0", "0", "-", "-"],
        ["1", "0", "0", "0"],
        ["2", "0", "1", "1"],
    ]
    assert all(version["digest"][:19] in line for version, line in zip(versions, rows[-4:], strict=False))
    code, out, _ = run("run", "create", "--from-run", run_id, "--from-version", "1", "--json")
    assert (code, json.loads(out)["latest_version"]) == (0, 0)
    assert json.loads(out)["spec"]["initial_model"] == {"kind": "version", "run_id": run_id, "version": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "create"], "a run begins with --model FILE, or with --from-run RUN --from-version V"),
        (["run", "create", "--from-version", "3"], "--from-run and --from-version belong together"),
        (["run", "create", "--from-run", "run_1"], "`fedquorum model list RUN` shows the versions"),
        (["run", "create", "--from-run", "run_1", "--from-version", "3"], "the specification: initial_model.run_id: "),
        (
            ["run", "create", "--from-run", f"run_{'0' * 32}", "--from-version", "3", "--model", __file__],
            "give one of the two",
        ),
        (["run", "rollback", "run_1"], "version"),
        (["run", "rollback", "run_1", "latest"], "valid integer"),
        (["model", "download", "run_1", "--best", "--version", "1"], "--best and --version exclude each other"),
    ],
)
def test_what_is_asked_for_in_two_ways_or_in_none_is_said(arguments: list[str], says: str, run: Run) -> None:
    code, out, error = run(*arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert says in error


def test_the_newest_strata_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    strata = {
        "": StratumEvaluation(num_examples=5, num_reports=1, metrics={"loss": 2.0}),
        "north": StratumEvaluation(num_examples=40, num_reports=3, metrics={"loss": 0.25}),
    }
    now = datetime.now(UTC)
    done = Round(
        number=1, attempt=1, state=RoundState.COMPLETED, base_version=0, result_version=1, quorum=1, cohort_size=1,
        num_tasks=1, num_updates=1, num_examples=1, opened_at=now, deadline_at=now, closed_at=now, completed_at=now,
        metrics={}, evaluation={"loss": 0.4},
    )  # fmt: skip
    print_newest_strata([done], attribute="region")
    assert capsys.readouterr().out == ""
    evaluated = done.model_copy(update={"number": 2, "evaluation_by_stratum": strata})
    print_newest_strata([done, evaluated, done.model_copy(update={"number": 3})], attribute="region")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["evaluation", "of", "round", "2", "by", "region"] in lines
    assert ["(none)", "1", "5", "loss", "2"] in lines
    assert ["north", "3", "40", "loss", "0.25"] in lines


async def _start(fake: FakeAggregator) -> str:
    return (await fake.start_run(RunSpec(num_rounds=2, round=RoundSpec(quorum=1)), MODEL)).run_id


TRAINER = """
from client_sdk import TrainedModel
def train(task):
    return TrainedModel(tensors={"w": task.model["w"] + 1}, num_examples=4, metrics={"loss": 0.5})
NOT_CALLABLE = 1
"""


def test_taking_part_with_a_trainer_of_ones_own(
    run: Run, fake: FakeAggregator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = anyio.run(_start, fake)
    (tmp_path / "my_own_training.py").write_text(TRAINER)
    monkeypatch.chdir(tmp_path)
    fake.clients["a-client-token"] = "a"
    monkeypatch.setenv("FEDQUORUM_TOKEN", "a-client-token")
    code, out, _ = run("participate", run_id, "my_own_training:train")
    assert code == 0
    assert "round 2: trained on 4 examples, loss 0.5" in out
    assert out.count("what the run promises (preset open):") == 1
    assert "- Updates can reveal training data." in out
    assert "2 updates and 0 evaluations were accepted" in out
    code, out, _ = run("participate", run_id, "my_own_training:train", "--json")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["RunFinished"]
    for name in ("my_own_training", "my_own_training:nothing", "my_own_training:NOT_CALLABLE", "no_such_module:x"):
        code, _, error = run("participate", run_id, name)
        assert (code, error.count("\n")) == (2, 1)


def test_participation_is_held_to_a_policy_file_and_tells_what_it_spends(
    run: Run, fake: FakeAggregator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = LocalLaplacePrivacy(kind="local_laplace", target_epsilon=4.0)
    spec = RunSpec(num_rounds=2, round=RoundSpec(quorum=1), privacy=privacy)
    run_id = anyio.run(fake.start_run, spec, MODEL).run_id
    (tmp_path / "my_private_training.py").write_text(
        "from client_sdk import TrainedModel\ndef train(task):\n"
        "    return TrainedModel(tensors={'w': task.model['w'] + task.model['w'].dtype.type(1)}, num_examples=4)\n"
    )
    (tmp_path / "policy.toml").write_text("max_epsilon = 3.0\n")
    monkeypatch.chdir(tmp_path)
    fake.clients["a-client-token"] = "a"
    monkeypatch.setenv("FEDQUORUM_TOKEN", "a-client-token")
    arguments = ("participate", run_id, "my_private_training:train", "--policy", "policy.toml", "--state-dir", "state")
    code, out, error = run(*arguments)
    assert (code, error.count("\n")) == (1, 2)
    assert error.splitlines()[-1] == "fedquorum: policy.max_epsilon 3 is less than privacy.target_epsilon 4"
    (tmp_path / "policy.toml").write_text("max_epsilon = 4.0\n")
    code, out, error = run(*arguments)
    assert (code, error) == (0, "")
    assert "round 1: the update measured 2 before it was clipped" in out
    assert "round 2: one client has spent epsilon 4 at delta 0" in out
    (tmp_path / "policy.toml").write_text("max_epsylon = 4.0\n")
    code, _, error = run(*arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert "policy.toml: max_epsylon" in error


def test_an_enrolment_prints_the_token_alone(run: Run) -> None:
    code, out, error = run("clients", "enrol", "hospital-a", "--attribute", "region=north")
    assert (code, out.count("\n")) == (0, 1)
    assert out.startswith("token_")
    assert "hospital-a is client_" in error
    assert run("clients", "enrol", "hospital-a", "--attribute", "north")[0] == 2
    assert run("clients", "enrol", "../a")[0] == 2


def test_a_group_of_errors_is_said_by_its_first_expected_one() -> None:
    line = one_line(ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [FedQuorumError("why")])]))
    assert line is None or line.text == "why"
    line = one_line(ExceptionGroup("g", [ExceptionGroup("h", [FedQuorumError("why")])]))
    assert line is not None
    assert (line.text, line.exit_code) == ("why", 1)
    assert one_line(ValueError("a bug")) is None


def test_what_a_server_says_cannot_command_the_terminal() -> None:
    assert cell("\x1b]0;x\x07") == "]0;x"
    assert cell({"a\x1b": 0.123456}) == "a 0.1235"


def test_the_demo_leaves_folders_of_others_alone(tmp_path: Path) -> None:
    mine = prepare_folder(tmp_path / "demo")
    (mine / "model.safetensors").write_text("old")
    (mine / "notes.txt").write_text("mine")
    assert not (prepare_folder(mine) / "model.safetensors").exists()
    assert (mine / "notes.txt").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "fedquorum.db").write_text("production")
    with pytest.raises(UsageError, match="not the demo's"):
        prepare_folder(other)
    assert (other / "fedquorum.db").exists()


def test_a_preset_fills_in_a_specification_and_its_promise_is_told(run: Run, tmp_path: Path) -> None:
    initial, spec = tmp_path / "initial.safetensors", tmp_path / "spec.json"
    initial.write_bytes(b"".join(encode(MODEL, {})))
    create = ("run", "create", "--model", str(initial), "--preset", "private")
    code, out, _ = run(*create, "--target-epsilon", "8")
    assert code == 0
    assert "preset               private\n" in out
    assert "- The published models are (epsilon 8, delta 1e-06)-differentially private" in out
    run_id = out.split()[2]
    assert "it sees exact session sums" in run("run", "show", run_id)[1].replace("\n  ", " ")
    spec.write_text(json.dumps({"privacy": {"kind": "central_gaussian", "target_epsilon": 2.0, "delta": 1e-7}}))
    made = json.loads(run(*create, "--spec", str(spec), "--json")[1])
    assert made["promise"]["preset"] == "private"
    assert (made["spec"]["privacy"]["target_epsilon"], made["spec"]["privacy"]["delta"]) == (2.0, 1e-7)
    assert made["spec"]["strategy"]["weighting"] == "uniform"


@pytest.mark.parametrize(
    ("arguments", "document", "says"),
    [
        (["private"], {}, "--preset private needs --target-epsilon, the most that the whole run may cost a client"),
        (["local"], {"privacy": {"kind": "local_laplace"}}, "--preset local needs --target-epsilon"),
        (["shielded", "--target-epsilon", "4"], {}, "--preset shielded has no budget"),
        (["open"], {"secure_aggregation": {"kind": "pairwise"}}, "is the preset shielded, by its privacy.kind"),
        (
            ["strict", "--target-epsilon", "4"],
            {"secure_aggregation": {"kind": "pairwise", "identity_trust": "tofu"}},
            (
                "is none of the presets, by its privacy.kind 'distributed_skellam', secure_aggregation.kind "
                "'pairwise', secure_aggregation.identity_trust 'tofu'"
            ),
        ),
        (["strict", "--target-epsilon", "4"], {"strategy": {"weighting": "num_examples"}}, "strategy.weighting"),
        (["secret"], {}, "secret"),
    ],
)
def test_what_is_not_the_preset_or_has_no_budget_is_said(
    arguments: list[str], document: dict[str, Any], says: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(document))
    (tmp_path / "model").write_bytes(b"")
    given = ("--model", str(tmp_path / "model"), "--spec", str(tmp_path / "spec.json"))
    code, _, error = run("run", "create", *given, "--preset", *arguments)
    assert code == 2
    assert says in error


def test_the_presets_are_shown_with_their_sentences(run: Run) -> None:
    code, out, _ = run("privacy", "presets")
    assert code == 0
    assert "anyone with its database sees every update" in out
    assert "n_min: the fewest clients" in out
    shown = json.loads(run("privacy", "presets", "--json")[1])
    assert [(row["preset"], row["identity_trust"]) for row in shown] == [
        ("open", None), ("shielded", "server"), ("private", "server"), ("strict", "pinned"), ("local", None),
    ]  # fmt: skip
    assert shown[3]["spec"]["secure_aggregation"] == {"kind": "pairwise", "identity_trust": "pinned"}


def test_a_runs_budget_is_shown_behind_what_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"privacy": {"kind": "example_dpsgd", "target_epsilon": 4.0, "delta": 1e-6}}
    promised = promise(RunSpec.model_validate(spec))
    unknown = dict.fromkeys(PrivacyReport.model_fields)
    told = {"run_id": "run_1", "kind": "example_dpsgd", "sentence": "", "promise": promised, "ledger_length": 0}
    counts = dict.fromkeys(("num_rounds", "num_releases", "max_participations", "min_separation"), 1)
    print_budget(PrivacyReport.model_validate(unknown | told | counts), [], as_json=False)
    shown = capsys.readouterr().out
    assert "preset              none of them\n" in shown
    assert "- What was spent the client accounts for itself, and the server cannot check it." in shown
