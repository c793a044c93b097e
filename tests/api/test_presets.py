"""What the table of presets says a server does is what a real server does in a run of each preset (X7)."""

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fl_protocol.presets import BUDGETED, EXPANSIONS, Row, matrix, promise
from fl_protocol.problems import ProblemType, problem_uri
from fl_protocol.runs import RunSpec
from tests.support.masked import MaskedClient
from tests.support.participant import Participant, create_run, enrol, small_model, update_body

_numbers: Iterator[int] = itertools.count()


def fields_of(row: Row) -> dict[str, Any]:
    """Gives the specification of a run of three clients that a preset expands to, with a budget where it needs one."""
    parts: dict[str, dict[str, Any]] = {part: dict(fields) for part, fields in EXPANSIONS[row.preset].items()}
    if row.preset in BUDGETED:
        parts["privacy"]["target_epsilon"] = 4.0
    if not row.takes_single_updates:
        parts["secure_aggregation"]["min_members"] = 3
    return parts | {"round": {"quorum": 3}}


def an_update(participant: Participant, task: dict[str, Any]) -> bytes:
    """Makes an update without masks."""
    return update_body({name: 0 * values for name, values in participant.model(task).items()}, num_examples=1)


@pytest.mark.parametrize("row", matrix(), ids=lambda row: str(row.preset))
def test_a_run_of_a_preset_is_held_to_what_the_table_says(row: Row, shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, small_model(), **fields_of(row))
    participant = enrol(shared_operator, f"preset-{next(_numbers)}")
    run = shared_operator.get(f"/v1/runs/{run_id}").json()
    report = shared_operator.get(f"/v1/runs/{run_id}/privacy").json()
    ledger = participant.http.get(f"/v1/runs/{run_id}/privacy/ledger").json()["items"]

    assert run["promise"]["preset"] == row.preset
    assert run["promise"]["identity_trust"] == row.identity_trust
    assert run["promise"] == promise(RunSpec.model_validate(run["spec"])).model_dump(mode="json")
    assert report["promise"] == run["promise"]
    assert report["sentence"] == " ".join(run["promise"]["sentences"])
    assert bool(ledger) == row.has_ledger
    assert participant.http.get(f"/v1/runs/{run_id}").json()["promise"] == run["promise"]

    task = participant.claim(run_id, wait=20).json()
    answer = participant.put(task["task_id"], an_update(participant, task))
    assert (answer.status_code == 201) == row.takes_single_updates, answer.text
    seat = participant.http.put(f"/v1/tasks/{task['task_id']}/seat", content=b"", headers=OCTETS)
    if row.takes_single_updates:
        assert (task["manifest"], seat.json()["type"]) == (None, problem_uri(ProblemType.STATE_CONFLICT))
        return
    assert answer.json()["type"] == problem_uri(ProblemType.STATE_CONFLICT)
    manifest = participant.http.get(task["manifest"]["url"]).json()
    assert manifest["spec"]["secure_aggregation"]["identity_trust"] == row.identity_trust
    assert manifest["secure_aggregation"]["min_members"] == run["promise"]["min_members"] == 3
    client = MaskedClient(participant)
    client.task, client.manifest = task, participant.http.get(task["manifest"]["url"]).content
    client.ask_for_seat()
    assert client.seat().json()["state"] == "waiting"


OCTETS = {"Content-Type": "application/octet-stream"}


def test_the_sentences_of_a_runs_promise_name_its_numbers(shared_operator: httpx.Client) -> None:
    rows = {str(row.preset): row for row in matrix()}
    strict = {"secure_aggregation": {"min_members": 7, "kind": "pairwise", "identity_trust": "pinned"}}
    spec = fields_of(rows["strict"]) | strict | {"round": {"quorum": 8, "min_updates": 7}}
    run_id = create_run(shared_operator, small_model(), start=False, **spec)
    told = shared_operator.get(f"/v1/runs/{run_id}/privacy").json()
    assert (told["promise"]["min_members"], told["promise"]["tolerated_colluders"]) == (7, 2)
    assert "at least 7 clients" in told["sentence"]
    assert "(epsilon 4, delta 1e-06)-differentially private" in told["sentence"]


def test_the_docs_page_describes_the_promise(shared_operator: httpx.Client) -> None:
    schemas = shared_operator.get("/openapi.json").json()["components"]["schemas"]
    assert set(schemas["Promise"]["properties"]) == {
        "preset", "sentences", "min_members", "tolerated_colluders", "identity_trust",
    }  # fmt: skip
    for name in ("Run", "PrivacyReport"):
        assert "Promise" in str(schemas[name]["properties"]["promise"])
