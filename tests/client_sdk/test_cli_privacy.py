"""`fedquorum privacy plan`: what it tells is what a server would charge, and a loud noise is said aloud."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_sdk.cli import main
from fl_protocol.privacy.accounting import calibrated, epsilon_spent
from fl_protocol.runs import RunSpec

Run = Callable[..., tuple[int, str, str]]
LORA = {
    "num_rounds": 40,
    "round": {"quorum": 20},
    "selection": {"max_participations": 4, "min_separation": 9},
    "strategy": {"kind": "mean", "weighting": "uniform"},
    "privacy": {"kind": "central_blt", "target_epsilon": 4, "delta": 1e-5},
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process; it has no token and asks no server."""
    monkeypatch.delenv("FEDQUORUM_TOKEN", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedquorum", "privacy", "plan", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def told(run: Run, *arguments: str) -> dict[str, Any]:
    code, out, error = run(*arguments, "--json")
    assert (code, error, out.count("\n")) == (0, "", 1)
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_the_noise_for_a_budget(run: Run) -> None:
    plan = told(run, "--target-epsilon", "8", "--rounds", "50", "--participations", "5")
    assert (plan["noise_multiplier"], plan["kind"], plan["delta"]) == (1.46001, "central_gaussian", 1e-6)
    assert (plan["unit"], plan["adjacency"]) == ("client", "zero_out")
    assert plan["trusted"].startswith("the server, which sees every update")
    assert 7.9999 < plan["epsilon"] <= 8 < plan["epsilon_renyi"]
    assert (plan["noise_over_signal"], plan["warning"]) == (None, None)


@pytest.mark.parametrize(
    "kind", ["central_gaussian", "central_gaussian_adaptive", "central_blt", "local_laplace", "local_gaussian"]
)
def test_the_specification_that_it_prints_is_one_and_costs_what_it_says(kind: str, run: Run) -> None:
    plan = told(
        run, "--kind", kind, "--target-epsilon", "6", "--rounds", "9", "--participations", "3", "--clients", "60"
    )
    spec = RunSpec.model_validate(plan["spec"])
    assert calibrated(spec) == spec
    assert epsilon_spent(spec, num_participations=3, num_rounds=9) == plan["epsilon"] <= 6
    assert plan["trusted"].startswith("nobody" if kind.startswith("local") else "the server")


SHARED = ("--kind", "distributed_skellam", "--rounds", "20", "--participations", "5")


def test_noise_that_clients_share_is_planned_for_the_fewest_that_may_stay(run: Run) -> None:
    plan = told(run, *SHARED, "--target-epsilon", "8", "--clients", "100", "--min-survivors", "80")
    assert plan["trusted"].startswith("a share of the other clients")
    assert (plan["min_survivors"], plan["colluders_covered"], plan["bits_an_element"]) == (80, 8, 24)
    assert (plan["noise_multiplier"], plan["epsilon_renyi"]) == (1.55637, None)
    spec = RunSpec.model_validate(plan["spec"])
    assert calibrated(spec) == spec
    assert epsilon_spent(spec, num_participations=5, num_rounds=20) == plan["epsilon"] <= 8
    loud = told(
        run, *SHARED, "--target-epsilon", "8", "--clients", "100", "--min-survivors", "80", "--parameters", "110000"
    )
    central = told(run, *SHARED[2:], "--noise-multiplier", "1.55637", "--clients", "100", "--parameters", "110000")
    over_noise = (100 / (0.9 * 80)) ** 0.5
    assert loud["noise_over_signal"] == pytest.approx(over_noise * central["noise_over_signal"])
    assert "hardly learns" in loud["warning"]


def test_one_session_takes_all_clients_of_a_plan_and_a_chosen_noise_is_priced(run: Run) -> None:
    plan = told(run, "--kind", "distributed_skellam", "--noise-multiplier", "4", "--clients", "300")
    assert (plan["min_survivors"], plan["epsilon"]) == (300, pytest.approx(4.02023, rel=1e-5))
    assert plan["spec"]["secure_aggregation"] == {"kind": "pairwise", "min_members": 300, "target_members": 300}
    code, _, error = run("--kind", "distributed_skellam", "--target-epsilon", "0.01")
    assert code != 0
    assert "privacy.target_epsilon 0.01" in error
    assert "min_survivors" in run("--target-epsilon", "8", "--min-survivors", "7")[2]


def test_the_table_of_noise_that_clients_share(run: Run) -> None:
    rows = told(run, "--table", "--kind", "distributed_skellam")["rows"]
    assert {(row["epsilon"], row["participations"]): row["noise_multiplier"] for row in rows}[8, 5] == 1.55637
    assert "of noise that the clients share" in run("--table", "--kind", "distributed_skellam")[1]


def test_the_cost_of_a_noise_becomes_its_budget(run: Run) -> None:
    plan = told(run, "--noise-multiplier", "5", "--participations", "5", "--rounds", "500")
    assert plan["epsilon"] == pytest.approx(1.9945, abs=1e-4)
    target = plan["spec"]["privacy"]["target_epsilon"]
    assert plan["epsilon"] <= target < plan["epsilon"] + 1e-4
    assert calibrated(RunSpec.model_validate(plan["spec"])).privacy == RunSpec.model_validate(plan["spec"]).privacy


def test_a_specification_is_planned_and_options_change_it(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(LORA))
    plan = told(run, "--spec", str(file), "--parameters", "400")
    assert (plan["kind"], plan["rounds"], plan["participations"]) == ("central_blt", 40, 4)
    assert plan["spec"] == {"privacy": LORA["privacy"] | {"noise_multiplier": 1.08117, "clipping_norm": 1.0}}
    assert "later rounds take back a part" in plan["warning"]
    assert told(run, "--spec", str(file), "--kind", "central_gaussian")["noise_multiplier"] == 2.16233


def test_noise_that_drowns_the_signal_is_said_with_what_would_help(run: Run) -> None:
    plan = ("--noise-multiplier", "1", "--clients", "100")
    loud = told(run, *plan, "--parameters", "110000")
    assert loud["noise_over_signal"] == pytest.approx(3.3166, abs=1e-4)
    assert "332 clients a round" in loud["warning"]
    assert "at most 10,000 trained parameters (freeze layers, or train a LoRA adapter)" in loud["warning"]
    assert told(run, *plan, "--parameters", "10000")["warning"] is None
    drowned = told(run, "--noise-multiplier", "9", "--clients", "8", "--parameters", "9")
    assert "trained parameters" not in drowned["warning"]
    code, out, _ = run(*plan, "--parameters", "110000")
    assert (code, out.count("\nWarning: the noise in a round's mean is 3.32 times as long")) == (0, 1)


def test_people_see_every_digit_that_is_compared_with_a_budget(run: Run) -> None:
    code, out, _ = run("--target-epsilon", "8", "--rounds", "5")
    assert code == 0
    assert "epsilon            7.999986\n" in out
    assert "noise multiplier   1.46001\n" in out
    fragment = out.splitlines()[-1]
    assert RunSpec.model_validate(json.loads(fragment)).num_rounds == 5


def test_the_table_of_budgets(run: Run) -> None:
    rows = told(run, "--table")["rows"]
    found = {(row["epsilon"], row["participations"]): row["noise_multiplier"] for row in rows}
    assert found[1, 1] == 4.22468
    assert found[8, 5] == 1.46001
    _, out, _ = run("--table")
    assert [line.split() for line in out.splitlines() if line.strip().startswith("8")] == [
        ["8", "0.65294", "1.46001", "2.06477"]
    ]
    assert told(run, "--table", "--delta", "1e-5")["rows"][0]["noise_multiplier"] == 3.73064


def test_the_table_of_local_noise(run: Run) -> None:
    answer = told(run, "--local", "--delta", "1e-5")
    assert answer["rows"][0]["clients"]["100"] == 5567
    _, out, _ = run("--local", "--delta", "1e-5")
    assert ["1", "7.461", "5,567", "6,123,749", "556,704,496"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one of --target-epsilon"),
        (["--target-epsilon", "8", "--noise-multiplier", "1"], "give one of --target-epsilon"),
        (["--table", "--local"], "--table and --local exclude each other"),
        (["--target-epsilon", "0"], "privacy.target_epsilon: Input should be greater than 0"),
        (["--target-epsilon", "8", "--rounds", "0"], "num_rounds"),
        (["--target-epsilon", "8", "--delta", "1e-3", "--clients", "1000"], "privacy.delta 0.001 must be below 1 in"),
        (["--target-epsilon", "8", "--kind", "local_laplace", "--delta", "1e-6"], "privacy.delta"),
        (["--target-epsilon", "8", "--kind", "laplace"], "'laplace' is not one of"),
        (
            ["--target-epsilon", "8", "--kind", "central_gaussian_adaptive"],
            "the plan: privacy.count_stddev (quorum / 20)",
        ),
        (["--target-epsilon", "1e-3", "--rounds", "1000000"], "at most 10000 is offered"),
        (["--local", "--delta", "2"], "--delta 2 must be above 0 and below 1"),
        (["--table", "--delta", "0.5"], "privacy.delta"),
        (["--spec", "/no/such/file"], "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: list[str], says: str, run: Run) -> None:
    code, out, error = run(*arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert says in error


def test_a_specification_without_such_a_promise_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    for privacy in ({"kind": "none"}, {"kind": "example_dpsgd", "target_epsilon": 3, "delta": 1e-6}):
        file.write_text(json.dumps({"privacy": privacy}))
        code, _, error = run("--spec", str(file))
        assert code == 2
        assert f"privacy.kind '{privacy['kind']}' has no noise to be planned here; central_gaussian, " in error


def test_a_missing_accountant_is_said_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dp_accounting" else name)
    code, _, error = run("--table")
    assert (code, error.count("\n")) == (2, 1)
    assert "pip install 'fedquorum[privacy]'" in error
