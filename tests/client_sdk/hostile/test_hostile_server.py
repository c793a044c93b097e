"""The SDK against a server that lies: one clear error for each answer, the module unchanged, no code from data.

The corpus runs once, in a process of its own under an audit hook; each test reads what came of it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from client_sdk import errors
from tests.client_sdk.hostile.corpus import EXECUTED, Case, corpus, malformed_models
from tests.client_sdk.hostile.server import Bystander, HostileServer, Seen

ROOT: Final = Path(__file__).parents[3]
MAX_GROWTH_BYTES: Final = 64 << 20
MAX_SECONDS: Final = 12.0
WARM_UP, HONEST = (Case(name, "participate", {}, "", trains=True) for name in ("warm-up", "honest"))
CASES: Final = [*corpus("127.0.0.1:9"), *malformed_models()]


@dataclass
class Report:
    """What the victim said of all cases, and what both servers saw."""

    outcomes: dict[str, dict[str, Any]]
    growth_bytes: int
    noticed: list[str]
    noticed_misdeeds: list[str]
    peers: list[int]
    requests: dict[str, list[Seen]]
    port: int
    heard: list[bytes]


def _victim(folder: Path, server: HostileServer, cases: list[Case]) -> dict[str, Any]:
    orders = [
        {"name": case.name, "act": case.act, "url": f"{server.url}/{case.name}", "slow": case.slow} for case in cases
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.client_sdk.hostile.victim"],
        input=json.dumps({"cases": orders, "folder": str(folder)}),
        cwd=ROOT,
        env=os.environ | {"HOME": str(folder.parent / "home"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    folder = tmp_path_factory.mktemp("hostile") / "cache"
    folder.mkdir()
    with Bystander().listening() as bystander:
        cases = [WARM_UP, HONEST, *corpus(bystander.address), *malformed_models()]
        with HostileServer({case.name: case.route for case in cases}).serving() as server:
            said = _victim(folder, server, cases)
            yield Report(
                outcomes={outcome["name"]: outcome for outcome in said["outcomes"]},
                growth_bytes=said["growth_bytes"],
                noticed=said["noticed"],
                noticed_misdeeds=said["noticed_misdeeds"],
                peers=said["peers"],
                requests=server.requests,
                port=int(server.url.rpartition(":")[2]),
                heard=bystander.heard,
            )


def test_every_case_has_a_name_of_its_own_and_there_are_more_than_forty() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 40


def test_an_honest_server_gets_an_update(report: Report) -> None:
    outcome = report.outcomes[HONEST.name]
    assert outcome["error"] == [], outcome
    assert outcome["module_changed"]
    assert any(seen.path.endswith("/update") for seen in report.requests[HONEST.name])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_lie_gives_one_clear_error_in_time_and_leaves_the_module_alone(case: Case, report: Report) -> None:
    outcome = report.outcomes[case.name]
    if case.error:
        assert outcome["error"], "nothing was raised"
        assert outcome["error"][0] == case.error or (
            case.error in outcome["error"] and case.error == errors.FedQuorumError.__name__
        ), outcome
    else:
        assert outcome["error"] == [], outcome
    assert case.named in outcome["message"]
    assert outcome["message"].isprintable() or not outcome["message"]
    assert len(outcome["message"]) < 1000
    assert outcome["seconds"] < MAX_SECONDS
    assert outcome["module_changed"] is case.trains
    assert outcome["strangers"] == []
    assert report.requests[case.name], "the case's server was not asked"


def test_memory_stays_within_64_mib_over_the_whole_corpus(report: Report) -> None:
    greedy = {
        name: outcome["growth_bytes"] >> 20
        for name, outcome in report.outcomes.items()
        if outcome["growth_bytes"] > 4 << 20
    }
    assert report.growth_bytes <= MAX_GROWTH_BYTES, greedy


def test_nothing_is_executed_unpickled_or_written_outside_the_cache(report: Report) -> None:
    assert report.noticed == []
    assert not Path(f"/tmp/{EXECUTED}").exists()


def test_the_watch_notices_what_it_forbids(report: Report) -> None:
    events = {line.partition(":")[0] for line in report.noticed_misdeeds}
    assert events >= {"pickle.find_class", "subprocess.Popen", "compile", "exec"}
    assert events >= {"open", "os.mkdir", "os.remove", "os.rename"}


def test_no_other_host_hears_a_word(report: Report) -> None:
    assert report.heard == []
    assert report.peers == [report.port]


def test_no_cookie_is_kept_and_no_header_is_injected(report: Report) -> None:
    seen = [request for requests in report.requests.values() for request in requests]
    assert seen
    assert not [request for request in seen if {"cookie", "x-injected"} & request.headers.keys()]


def test_every_request_stays_below_the_contracts_paths(report: Report) -> None:
    paths = {request.path for requests in report.requests.values() for request in requests}
    assert all(path.startswith(("/v1/runs", "/v1/tasks/task_honest")) and ".." not in path for path in paths), paths
