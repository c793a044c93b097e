"""Every refusal of the contract: its status and type, what its detail names, and that nothing of it is stored."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from aggregator_service.api.problems import render
from fl_protocol.problems import ProblemError, ProblemType
from tests.support.participant import (
    MEDIA_TYPE,
    Participant,
    Tensors,
    create_run,
    enrol,
    pack,
    small_model,
    update_body,
    wait_for_run,
)
from tests.support.refusals import RETRYABLE, STATUS, assert_refused
from tests.support.server import ServerProcess
from tests.support.stored import Stored

UNKNOWN = "0" * 32
_names = itertools.count()


@pytest.fixture(scope="module")
def stored(shared_server: ServerProcess) -> Iterator[Stored]:
    with Stored(shared_server.database_url) as database:
        yield database


@dataclass
class Asked:
    """A client that was asked for an update of a run, and a second one that was not."""

    operator: httpx.Client
    stored: Stored
    run_id: str
    client: Participant
    task: Mapping[str, Any]

    @property
    def task_id(self) -> str:
        return str(self.task["task_id"])

    def body(self, value: float = 1.0, changes: Mapping[str, np.ndarray[Any, Any]] | None = None) -> bytes:
        """Makes an update of this run's model, right but for the changes."""
        delta: Tensors = {name: np.full_like(values, value) for name, values in small_model().items()}
        return update_body(delta | dict(changes or {}), num_examples=3)

    def put(self, body: bytes, **headers: str) -> httpx.Response:
        return self.client.put(self.task_id, body, **headers)

    def assert_nothing_stored(self) -> None:
        listed = self.operator.get(f"/v1/runs/{self.run_id}/rounds/1/updates")
        assert listed.json() == {"items": [], "next_cursor": None}
        assert self.operator.get(f"/v1/runs/{self.run_id}/rounds/1").json()["num_updates"] == 0


def _ask(operator: httpx.Client, run_id: str) -> tuple[Participant, Mapping[str, Any]]:
    client = enrol(operator, f"client-{next(_names)}")
    claimed = client.claim(run_id)
    assert claimed.status_code == 201, claimed.text
    return client, claimed.json()


@pytest.fixture
def asked(shared_operator: httpx.Client, stored: Stored) -> Asked:
    """A run whose round stays open, with one client that holds a task."""
    run_id = create_run(shared_operator, small_model(), round={"quorum": 2, "cohort_size": 3})
    client, task = _ask(shared_operator, run_id)
    return Asked(shared_operator, stored, run_id, client, task)


@pytest.fixture(scope="module")
def idle(shared_operator: httpx.Client, stored: Stored, shared_server: ServerProcess) -> Iterator[Asked]:
    """The same for requests that change nothing."""
    run_id = create_run(shared_operator, small_model(), round={"quorum": 2, "cohort_size": 3})
    client, task = _ask(shared_operator, run_id)
    # A test's end closes what it enrolled: this one's connection is to last.
    with shared_server.http(client.token) as http:
        yield Asked(shared_operator, stored, run_id, Participant(http, client.client_id, client.token), task)


def _digest_header(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


# The contract's table, row by row.


@pytest.mark.parametrize(
    ("slug", "change", "named"),
    [
        ("malformed-update", lambda body: body[:-1], ["ends after", "bytes"]),
        ("malformed-update", lambda body: body + b"\0", ["follow the last tensor"]),
        ("malformed-update", lambda body: (1 << 62).to_bytes(8, "little") + body[8:], ["header", str(1 << 62)]),
        ("malformed-update", lambda body: body.replace(b"[0, 140]", b"[4, 144]", 1), ["'layer.weight'", "hole"]),
        ("malformed-update", lambda body: body.replace(b"[140, 168]", b"[100, 128]", 1), ["'layer.bias'", "overlaps"]),
        ("structure-mismatch", lambda body: body.replace(b"layer.bias", b"layer.bits", 1), ["'layer.bits'"]),
        ("structure-mismatch", lambda body: body.replace(b"[5, 7]", b"[7, 5]", 1), ["'layer.weight'", "[5, 7]"]),
        ("invalid-metadata", lambda body: body.replace(b'"3"', b'"x"', 1), ["num_examples", "'x'"]),
    ],
    ids=["cut", "longer", "giant-header", "hole", "overlap", "unknown-tensor", "shape", "num-examples"],
)
def test_update_with_a_fault_is_refused_and_not_stored(
    asked: Asked, slug: str, change: Callable[[bytes], bytes], named: list[str]
) -> None:
    before = asked.stored.counts()
    body = change(asked.body())
    assert body != asked.body()
    assert_refused(asked.put(body), slug, *named)
    assert asked.stored.counts() == before
    asked.assert_nothing_stored()


@pytest.mark.parametrize(
    ("slug", "tensor", "value", "named"),
    [
        ("non-finite", "layer.bias", np.nan, ["'layer.bias'", "element 0"]),
        ("non-finite", "layer.weight", -np.inf, ["'layer.weight'"]),
        ("value-out-of-range", "scale", 1025.0, ["'scale'", "1025.0", "1024.0"]),
    ],
)
def test_update_with_a_bad_number_is_refused_by_its_tensor(
    asked: Asked, slug: str, tensor: str, value: float, named: list[str]
) -> None:
    before = asked.stored.counts()
    changed = np.full_like(small_model()[tensor], value)
    assert_refused(asked.put(asked.body(changes={tensor: changed})), slug, *named)
    assert asked.stored.counts() == before
    asked.assert_nothing_stored()


def test_update_within_the_bound_that_its_run_declared_is_accepted(shared_operator: httpx.Client) -> None:
    run_id = create_run(
        shared_operator, small_model(), round={"quorum": 2}, strategy={"kind": "mean", "max_abs_delta": 0.5}
    )
    client, task = _ask(shared_operator, run_id)
    half = {name: np.full_like(values, 0.5) for name, values in small_model().items()}
    above = half | {"scale": np.nextafter(np.float32(0.5), np.float32(1)).reshape(())}
    refused = client.put(task["task_id"], update_body(above, num_examples=1))
    assert_refused(refused, "value-out-of-range", "'scale'", "0.5")
    assert client.put(task["task_id"], update_body(half, num_examples=1)).status_code == 201


def test_update_longer_than_its_run_accepts_is_refused_with_its_norm(shared_operator: httpx.Client) -> None:
    bound = {"kind": "reject", "norm": 4.0}
    run_id = create_run(shared_operator, small_model(), round={"quorum": 2}, strategy={"max_update_norm": bound})
    client, task = _ask(shared_operator, run_id)
    # 16 elements of 1.0, all others zero: an L2 norm of 4.
    delta = {name: np.zeros_like(values) for name, values in small_model().items()}
    delta["layer.weight"].reshape(-1)[:9] = 1.0
    delta["layer.bias"][:] = -1.0
    above = delta | {"scale": np.array(1.5, dtype=np.float32)}
    refused = client.put(task["task_id"], update_body(above, num_examples=1))
    assert_refused(refused, "value-out-of-range", "L2 norm", "4.27", "strategy.max_update_norm", "4.0")
    assert client.put(task["task_id"], update_body(delta, num_examples=1)).status_code == 201


def test_missing_tensor_is_named(asked: Asked) -> None:
    delta = {name: values for name, values in small_model().items() if name != "scale"}
    refused = asked.put(update_body(delta, num_examples=1))
    assert_refused(refused, "structure-mismatch", "'scale'", "F32")
    asked.assert_nothing_stored()


def test_digest_of_other_bytes_is_refused_as_worth_a_retry(asked: Asked) -> None:
    body = asked.body()
    before = asked.stored.counts()
    refused = asked.put(body, **{"Content-Digest": _digest_header(body + b"x")})
    assert_refused(refused, "digest-mismatch", f"sha256:{hashlib.sha256(body).hexdigest()}")
    assert asked.stored.counts() == before
    assert asked.put(body, **{"Content-Digest": _digest_header(body)}).status_code == 201


def test_request_without_a_token_is_unauthenticated(asked: Asked) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic b3A6b3A="},
        {"Authorization": "Bearer x"},
    ):
        with httpx.Client(base_url=asked.operator.base_url, trust_env=False) as http:
            url = f"/v1/tasks/{asked.task_id}/update"
            answer = http.put(url, content=asked.body(), headers={"Content-Type": MEDIA_TYPE} | headers)
        assert_refused(answer, "unauthenticated", "token")
    asked.assert_nothing_stored()


def test_another_clients_task_is_forbidden(asked: Asked) -> None:
    other = enrol(asked.operator, "other")
    assert_refused(other.put(asked.task_id, asked.body()), "forbidden", "another client")
    assert_refused(other.http.delete(f"/v1/tasks/{asked.task_id}"), "forbidden", "another client")
    report = {"num_examples": 1, "metrics": {}}
    assert_refused(other.http.put(f"/v1/tasks/{asked.task_id}/evaluation", json=report), "forbidden", "another client")
    asked.assert_nothing_stored()
    assert asked.put(asked.body()).status_code == 201


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/runs/run_{UNKNOWN}",
        f"/v1/runs/run_{UNKNOWN}/rounds",
        f"/v1/runs/run_{UNKNOWN}/rounds/1",
        f"/v1/runs/run_{UNKNOWN}/rounds/1/updates",
        f"/v1/runs/run_{UNKNOWN}/models",
        f"/v1/runs/run_{UNKNOWN}/models/0",
        f"/v1/runs/run_{UNKNOWN}/models/latest",
        f"/v1/runs/run_{UNKNOWN}/models/latest?wait=30",
        f"/v1/runs/run_{UNKNOWN}/events",
        "/v1/runs/no-such-run",
        f"/v1/runs/RUN_{UNKNOWN}",
        f"/v1/runs/task_{UNKNOWN}",
        "/v1/nothing",
        "/",
        "/v1/runs/",
    ],
)
def test_unknown_thing_is_not_found(shared_operator: httpx.Client, path: str) -> None:
    assert_refused(shared_operator.get(path), "not-found")


def test_unknown_round_version_and_task_are_not_found(idle: Asked) -> None:
    for path in (
        "rounds/0",
        "rounds/2",
        "rounds/9007199254740991",
        "models/1",
        "models/9007199254740991",
        "rounds/2/updates",
    ):
        assert_refused(idle.operator.get(f"/v1/runs/{idle.run_id}/{path}"), "not-found")
    for task_id in (f"task_{UNKNOWN}", "nonsense", idle.run_id):
        assert_refused(idle.client.put(task_id, idle.body()), "not-found")
        assert_refused(idle.client.http.delete(f"/v1/tasks/{task_id}"), "not-found")
    assert_refused(idle.client.claim(f"run_{UNKNOWN}", wait=30), "not-found")
    assert_refused(idle.operator.delete(f"/v1/clients/client_{UNKNOWN}"), "not-found")


def test_other_bytes_for_an_answered_task_are_refused_and_the_first_ones_stay(asked: Asked) -> None:
    first = asked.put(asked.body(1.0))
    before = asked.stored.counts()
    refused = asked.put(asked.body(2.0))
    assert_refused(refused, "already-submitted", first.json()["digest"])
    assert_refused(asked.put(b"not safetensors at all"), "already-submitted")
    assert asked.stored.counts() == before
    again = asked.put(asked.body(1.0))
    assert (again.status_code, again.json()) == (200, first.json())
    listed = asked.operator.get(f"/v1/runs/{asked.run_id}/rounds/1/updates").json()["items"]
    assert [update["digest"] for update in listed] == [first.json()["digest"]]
    assert_refused(asked.client.http.delete(f"/v1/tasks/{asked.task_id}"), "already-submitted")


def test_late_update_is_told_that_its_round_closed_and_an_accepted_one_never_is(asked: Asked) -> None:
    others = [_ask(asked.operator, asked.run_id) for _ in range(2)]
    receipts = [client.put(task["task_id"], asked.body()) for client, task in others]
    assert [receipt.status_code for receipt in receipts] == [201, 201]
    wait_for_run(asked.operator, asked.run_id, version=1)
    before = asked.stored.counts("updates")
    assert_refused(asked.put(asked.body()), "round-closed", "round 1")
    assert asked.stored.counts("updates") == before
    for (client, task), receipt in zip(others, receipts, strict=True):
        again = client.put(task["task_id"], asked.body())
        assert (again.status_code, again.json()) == (200, receipt.json())


def test_task_that_was_given_up_takes_no_update(asked: Asked) -> None:
    assert asked.client.http.delete(f"/v1/tasks/{asked.task_id}").status_code == 204
    assert asked.client.http.delete(f"/v1/tasks/{asked.task_id}").status_code == 204
    assert_refused(asked.put(asked.body()), "round-closed", "given up")
    asked.assert_nothing_stored()


def test_stopped_run_takes_no_update_and_hands_out_no_task(asked: Asked) -> None:
    assert asked.operator.post(f"/v1/runs/{asked.run_id}/stop").json()["state"] == "stopped"
    assert_refused(asked.put(asked.body()), "round-closed")
    assert_refused(asked.client.claim(asked.run_id, wait=30), "run-finished", "stopped")
    asked.assert_nothing_stored()


def test_body_of_exactly_max_num_bytes_is_accepted_and_one_byte_more_is_not(asked: Asked) -> None:
    limit = asked.task["max_num_bytes"]
    body = asked.body()
    length = int.from_bytes(body[:8], "little")
    padding = limit - len(body)
    padded = (length + padding).to_bytes(8, "little") + body[8 : 8 + length] + b" " * padding + body[8 + length :]
    for content in (padded + b"\0", iter([padded, b"\0"])):
        refused = asked.client.http.put(
            f"/v1/tasks/{asked.task_id}/update", content=content, headers={"Content-Type": MEDIA_TYPE}
        )
        assert_refused(refused, "too-large", str(limit))
    asked.assert_nothing_stored()
    assert asked.put(padded).status_code == 201


def test_other_media_type_or_coding_is_refused_and_both_tensor_types_are_taken(asked: Asked) -> None:
    assert_refused(
        asked.put(asked.body(), **{"Content-Type": "application/json"}), "unsupported-media-type", "safetensors"
    )
    assert_refused(asked.put(asked.body(), **{"Content-Encoding": "gzip"}), "unsupported-media-type", "'gzip'", "zstd")
    asked.assert_nothing_stored()
    taken = asked.put(asked.body(), **{"Content-Type": "Application/Octet-Stream; x=y", "Content-Encoding": "identity"})
    assert taken.status_code == 201, taken.text


@pytest.mark.parametrize("problem_type", list(ProblemType))
def test_every_problem_has_the_contracts_status_and_says_whether_to_retry(problem_type: ProblemType) -> None:
    """Some problems (a full disk, a lost database) no request can cause: their form is checked here."""
    made = render(ProblemError(problem_type, "what was wrong", retry_after_seconds=2.5))
    answer = httpx.Response(made.status_code, headers=made.raw_headers, content=bytes(made.body))
    assert_refused(answer, problem_type.value, "what was wrong")
    if answer.status_code in (429, 503, 507):
        assert answer.headers["retry-after"] == "3"
    assert {slug.value for slug in ProblemType} == STATUS.keys() >= RETRYABLE


# A run's life.


def test_run_without_a_model_cannot_start(shared_operator: httpx.Client) -> None:
    run = shared_operator.post("/v1/runs", json={"name": "empty"}).json()
    url = f"/v1/runs/{run['run_id']}"
    assert_refused(shared_operator.post(f"{url}/start"), "state-conflict", f"{url}/models/0")
    assert shared_operator.get(url).json()["state"] == "draft"
    assert_refused(shared_operator.get(f"{url}/models/latest"), "not-found")


@pytest.mark.parametrize(
    ("steps", "refused"),
    [
        ([], "pause"),
        ([], "resume"),
        (["start", "pause"], "start"),
        (["start", "stop"], "start"),
        (["start", "stop"], "pause"),
        (["start", "stop"], "resume"),
        (["stop"], "start"),
    ],
)
def test_step_that_a_runs_state_does_not_allow_conflicts(
    shared_operator: httpx.Client, steps: list[str], refused: str
) -> None:
    run_id = create_run(shared_operator, small_model(), start=False)
    for step in steps:
        assert shared_operator.post(f"/v1/runs/{run_id}/{step}").status_code == 200
    before = shared_operator.get(f"/v1/runs/{run_id}").json()
    assert_refused(shared_operator.post(f"/v1/runs/{run_id}/{refused}"), "state-conflict", before["state"])
    assert shared_operator.get(f"/v1/runs/{run_id}").json() == before


@pytest.mark.parametrize(
    "steps", [["start", "start"], ["start", "pause", "pause"], ["start", "resume"], ["stop", "stop"]]
)
def test_step_to_the_state_that_a_run_is_in_changes_nothing(shared_operator: httpx.Client, steps: list[str]) -> None:
    run_id = create_run(shared_operator, small_model(), start=False)
    answers = [shared_operator.post(f"/v1/runs/{run_id}/{step}") for step in steps]
    assert [answer.status_code for answer in answers] == [200] * len(steps)
    assert answers[-1].json() == answers[-2].json()


def test_initial_model_is_put_once(shared_operator: httpx.Client, stored: Stored) -> None:
    run_id = create_run(shared_operator, small_model(), start=False)
    url, headers = f"/v1/runs/{run_id}/models/0", {"Content-Type": MEDIA_TYPE}
    before = stored.counts("models", "blobs", "blob_chunks")
    assert shared_operator.put(url, content=pack(small_model()), headers=headers).status_code == 200
    assert_refused(shared_operator.put(url, content=pack(small_model(1)), headers=headers), "state-conflict", "sha256:")
    assert stored.counts("models", "blobs", "blob_chunks") == before
    stopped = shared_operator.post("/v1/runs", json={}).json()["run_id"]
    shared_operator.post(f"/v1/runs/{stopped}/stop")
    refused = shared_operator.put(f"/v1/runs/{stopped}/models/0", content=pack(small_model()), headers=headers)
    assert_refused(refused, "state-conflict", "stopped")


@pytest.mark.parametrize(
    ("model", "slug", "named"),
    [
        ({"w": np.array([1.0, np.nan], dtype=np.float32)}, "non-finite", "'w'"),
        ({"counter": np.arange(3)}, "structure-mismatch", "floating-point"),
        ({"w": np.zeros(0, dtype=np.float32)}, "structure-mismatch", "floating-point"),
        ({}, "structure-mismatch", "floating-point"),
    ],
    ids=["nan", "integers", "no-elements", "no-tensors"],
)
def test_initial_model_that_cannot_be_trained_is_refused(
    shared_operator: httpx.Client, model: Tensors, slug: str, named: str
) -> None:
    run_id = shared_operator.post("/v1/runs", json={}).json()["run_id"]
    url = f"/v1/runs/{run_id}/models/0"
    assert_refused(shared_operator.put(url, content=pack(model), headers={"Content-Type": MEDIA_TYPE}), slug, named)
    assert shared_operator.get(f"/v1/runs/{run_id}").json()["latest_version"] is None


def test_answer_of_the_wrong_kind_conflicts(asked: Asked) -> None:
    report = {"num_examples": 1, "metrics": {"loss": 1.0}}
    url = f"/v1/tasks/{asked.task_id}/evaluation"
    assert_refused(asked.client.http.put(url, json=report), "state-conflict", "train", "update")
    run_id = create_run(asked.operator, small_model(), num_rounds=2, round={"quorum": 1}, evaluation={"every": 1})
    client, task = _ask(asked.operator, run_id)
    assert client.put(task["task_id"], asked.body()).status_code == 201
    evaluated = client.claim(run_id, wait=20).json()
    assert evaluated["kind"] == "evaluate"
    assert_refused(client.put(evaluated["task_id"], asked.body()), "state-conflict", "evaluate", "evaluation")


def _ask_to_evaluate(operator: httpx.Client) -> tuple[Participant, str]:
    """Makes a client that holds an evaluation task."""
    round_ = {"quorum": 1, "cohort_size": 1}
    run_id = create_run(operator, small_model(), num_rounds=2, round=round_, evaluation={"every": 1})
    client, task = _ask(operator, run_id)
    delta = {name: values * 0 for name, values in small_model().items()}
    assert client.put(task["task_id"], update_body(delta, num_examples=1)).status_code == 201
    evaluated = client.claim(run_id, wait=20).json()
    assert evaluated["kind"] == "evaluate", evaluated
    return client, f"/v1/tasks/{evaluated['task_id']}/evaluation"


@pytest.fixture(scope="module")
def evaluator(shared_operator: httpx.Client) -> tuple[str, str]:
    """The token of a client whose evaluation is refused again and again, and where it sends it."""
    client, url = _ask_to_evaluate(shared_operator)
    return client.token, url


@pytest.mark.parametrize(
    ("report", "slug", "named"),
    [
        ({"num_examples": 0, "metrics": {}}, "invalid-request", "num_examples"),
        ({"num_examples": -1, "metrics": {}}, "invalid-request", "num_examples"),
        ({"num_examples": 2**53, "metrics": {}}, "invalid-request", "num_examples"),
        ({"num_examples": 10**400, "metrics": {}}, "invalid-request", "num_examples"),
        ({"num_examples": True, "metrics": {}}, "invalid-request", "num_examples"),
        ({"num_examples": "5", "metrics": {}}, "invalid-request", "num_examples"),
        ({"num_examples": 5.0, "metrics": {}}, "invalid-request", "num_examples"),
        ({"num_examples": 5}, "invalid-request", "metrics"),
        ({"metrics": {}}, "invalid-request", "num_examples"),
        ({"num_examples": 5, "metrics": []}, "invalid-request", "metrics"),
        ({"num_examples": 5, "metrics": {"loss": True}}, "invalid-request", "loss"),
        ({"num_examples": 5, "metrics": {"loss": "0.5"}}, "invalid-request", "loss"),
        ({"num_examples": 5, "metrics": {"loss": None}}, "invalid-request", "loss"),
        ({"num_examples": 5, "metrics": {"loss": 1e301}}, "invalid-request", "loss"),
        ({"num_examples": 5, "metrics": {"my loss": 1}}, "invalid-request", "my loss"),
        ({"num_examples": 5, "metrics": {f"m{index}": 1 for index in range(65)}}, "invalid-request", "64"),
        ({"num_examples": 5, "metrics": {}, "weight": 1}, "invalid-request", "weight"),
        (b'{"num_examples": 5, "metrics": {"loss": NaN}}', "invalid-request", "loss"),
        (b'{"num_examples": 5, "metrics": {"loss": 1e999}}', "invalid-request", "loss"),
        (b'{"num_examples": 5, "metrics": {"loss": -Infinity}}', "invalid-request", "loss"),
        (b'{"num_examples": 5, "metrics": {"loss": ', "malformed-request", "JSON"),
        (b'{"num_examples": ' + b"9" * 5000 + b', "metrics": {}}', "malformed-request", ""),
        (b"[" * 60_000, "malformed-request", ""),
        (b"\xff\xfe", "malformed-request", ""),
        (b"", "invalid-request", ""),
        (b"null", "invalid-request", ""),
        (b"5", "invalid-request", ""),
    ],
)
def test_bad_evaluation_report_is_refused_by_its_field(
    shared_operator: httpx.Client, evaluator: tuple[str, str], stored: Stored, report: Any, slug: str, named: str
) -> None:
    token, url = evaluator
    before = stored.counts("evaluations")
    content = report if isinstance(report, bytes) else json.dumps(report).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    refused = shared_operator.put(url, content=content, headers=headers)
    assert_refused(refused, slug, named)
    assert stored.counts("evaluations") == before


def test_evaluation_is_answered_once(shared_operator: httpx.Client) -> None:
    client, url = _ask_to_evaluate(shared_operator)
    report = {"num_examples": 5, "metrics": {"loss": 0.5}}
    first = client.http.put(url, json=report)
    assert first.status_code == 201, first.text
    again = client.http.put(url, json=report)
    assert (again.status_code, again.json()) == (200, first.json())
    assert_refused(client.http.put(url, json=report | {"num_examples": 6}), "already-submitted")


# What a RunSpec may say.


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"quorum": 5}, ["quorum"]),
        ({"round": {"qourum": 5}}, ["round.qourum"]),
        ({"strategy": {"kind": "mean", "trim": 0.1}}, ["trim"]),
        ({"secure_aggregation": {"kind": "none", "threshold": 3}}, ["threshold"]),
        ({"round": {"quorum": 5, "cohort_size": 4}}, ["round", "cohort_size 4", "quorum 5"]),
        ({"round": {"quorum": 5, "min_updates": 6}}, ["round", "min_updates 6", "quorum 5"]),
        ({"round": {"quorum": 0}}, ["round.quorum"]),
        ({"round": {"quorum": 4097}}, ["round.quorum", "4096"]),
        ({"round": {"quorum": "8"}}, ["round.quorum"]),
        ({"round": {"quorum": True}}, ["round.quorum"]),
        ({"round": {"quorum": 2.5}}, ["round.quorum"]),
        ({"round": {"quorum": None}}, ["round.quorum"]),
        ({"round": {"quorum": [8]}}, ["round.quorum"]),
        ({"round": {"deadline_seconds": 0}}, ["round.deadline_seconds"]),
        ({"round": {"deadline_seconds": 1e300}}, ["round.deadline_seconds"]),
        ({"round": {"max_attempts": 0}}, ["round.max_attempts"]),
        ({"round": []}, ["round"]),
        ({"round": None}, ["round"]),
        ({"num_rounds": 0}, ["num_rounds"]),
        ({"num_rounds": 2**63}, ["num_rounds"]),
        ({"num_rounds": 10**400}, ["num_rounds"]),
        ({"num_rounds": "10"}, ["num_rounds"]),
        ({"name": ""}, ["name"]),
        ({"name": "1st"}, ["name"]),
        ({"name": "a b"}, ["name"]),
        ({"name": "a\x00"}, ["name"]),
        ({"name": "a\r\nb"}, ["name"]),
        ({"name": "run\n"}, ["name"]),
        ({"name": "../../etc"}, ["name"]),
        ({"name": "a" * 65}, ["name"]),
        ({"name": "a" * 50_000}, ["name"]),
        ({"name": "Ünï"}, ["name"]),
        ({"name": 5}, ["name"]),
        ({"strategy": {"kind": "mode"}}, ["strategy.kind", "'mode'", "'trimmed_mean'"]),
        ({"strategy": {"kind": "trimmed_mean", "trim_fraction": 0.5}}, ["strategy.trim_fraction", "0.5"]),
        (
            {"strategy": {"kind": "trimmed_mean", "trim_fraction": 0.12}},
            ["strategy.trim_fraction 0.12", "none of the 8", "round.min_updates"],
        ),
        ({"strategy": {"kind": "krum"}}, ["strategy.num_byzantine"]),
        (
            {"strategy": {"kind": "krum", "num_byzantine": 3}},
            ["strategy.num_byzantine 3", "2 * num_byzantine + 3 = 9", "with 8 (round.min_updates)", "at most 2"],
        ),
        (
            {"strategy": {"kind": "multi_krum", "num_byzantine": 3, "num_selected": 2}},
            ["strategy.num_byzantine 3", "= 9", "at most 2"],
        ),
        (
            {"strategy": {"kind": "multi_krum", "num_byzantine": 2, "num_selected": 7}},
            ["strategy.num_selected 7", "at most 6"],
        ),
        (
            {"round": {"quorum": 10}, "strategy": {"kind": "bulyan", "num_byzantine": 3}},
            ["strategy.num_byzantine 3", "4 * num_byzantine + 3 = 15", "with 10", "at most 1"],
        ),
        (
            {"round": {"quorum": 2}, "strategy": {"kind": "krum", "num_byzantine": 0}},
            ["strategy.num_byzantine 0", "= 3", "no num_byzantine"],
        ),
        (
            {"round": {"quorum": 12, "min_updates": 6}, "strategy": {"kind": "krum", "num_byzantine": 2}},
            ["with 6 (round.min_updates)"],
        ),
        (
            {"round": {"quorum": 1025}, "strategy": {"kind": "geometric_median"}},
            ["strategy.kind geometric_median", "1025", "at most 1024"],
        ),
        ({"strategy": {"kind": "geometric_median", "smoothing": 0}}, ["strategy.smoothing"]),
        ({"strategy": {"kind": "geometric_median", "num_iterations": 0}}, ["strategy.num_iterations"]),
        ({"strategy": {"kind": "median", "weighting": "uniform"}}, ["strategy.weighting"]),
        ({"strategy": {"max_update_norm": {"kind": "clip", "norm": 0}}}, ["strategy.max_update_norm.norm"]),
        ({"strategy": {"max_update_norm": {"kind": "cut", "norm": 1}}}, ["strategy.max_update_norm.kind"]),
        ({"strategy": "mean"}, ["strategy"]),
        ({"strategy": {"weighting": "size"}}, ["strategy.weighting"]),
        ({"strategy": {"max_weight": 0}}, ["strategy.max_weight"]),
        ({"strategy": {"max_weight": 2**29 + 1}}, ["strategy.max_weight"]),
        ({"strategy": {"max_abs_delta": 0}}, ["strategy.max_abs_delta"]),
        ({"strategy": {"max_abs_delta": -1}}, ["strategy.max_abs_delta"]),
        ({"strategy": {"max_abs_delta": 1e31}}, ["strategy.max_abs_delta"]),
        ({"server_optimizer": {"momentum": 1}}, ["server_optimizer.momentum"]),
        ({"server_optimizer": {"learning_rate": 0}}, ["server_optimizer.learning_rate"]),
        ({"server_optimizer": {"learning_rate": "1"}}, ["server_optimizer.learning_rate"]),
        ({"server_optimizer": {"learning_rate": True}}, ["server_optimizer.learning_rate"]),
        ({"training": {"local_epochs": 0}}, ["training.local_epochs"]),
        ({"training": {"batch_size": 1.5}}, ["training.batch_size"]),
        ({"training": {"note": "x" * 20_000}}, ["training", "16384"]),
        ({"evaluation": {"every": -1}}, ["evaluation.every"]),
        ({"encoding": {"kind": "int9"}}, ["encoding", "int9"]),
        ({"privacy": {"kind": "gaussian"}}, ["privacy.kind"]),
        ({"selection": {"kind": "closed"}}, ["selection.kind"]),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_bad_run_spec_is_refused_by_its_field(
    shared_operator: httpx.Client, stored: Stored, spec: dict[str, Any], named: list[str]
) -> None:
    before = stored.counts("runs", "events")
    assert_refused(shared_operator.post("/v1/runs", json=spec), "invalid-request", *named)
    assert stored.counts("runs", "events") == before


@pytest.mark.parametrize(
    ("content", "slug"),
    [
        (b"", "invalid-request"),
        (b"null", "invalid-request"),
        (b"[]", "invalid-request"),
        (b'"run"', "invalid-request"),
        (b"{", "malformed-request"),
        (b"{'name': 'a'}", "malformed-request"),
        (b'{"name": "a",}', "malformed-request"),
        (b"\xff", "malformed-request"),
        (b"[" * 60_000, "malformed-request"),
        (b'{"a":' * 10_000, "malformed-request"),
        (b'{"training": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001, "malformed-request"),
        (b'{"num_rounds": ' + b"1" * 5_000 + b"}", "malformed-request"),
        (b'{"training": {"note": NaN}}', "invalid-request"),
        (b'{"training": {"note": 1e999}}', "invalid-request"),
        (b'{"round": {"deadline_seconds": NaN}}', "invalid-request"),
        (b'{"round": {"deadline_seconds": Infinity}}', "invalid-request"),
        (b'{"training": {"note": "\\ud800"}}', "invalid-request"),
    ],
)
def test_body_that_is_no_run_spec_is_refused(
    shared_operator: httpx.Client, stored: Stored, content: bytes, slug: str
) -> None:
    before = stored.counts("runs")
    answer = shared_operator.post("/v1/runs", content=content, headers={"Content-Type": "application/json"})
    assert_refused(answer, slug)
    assert stored.counts("runs") == before


def test_training_keys_of_any_kind_come_back_as_they_were(shared_operator: httpx.Client) -> None:
    """JSON that one database might store and the other might not: NUL, astral characters, control characters."""
    further = {"note": "\0\x1b[31m\r\n\U0001f600\u202e'\"; DROP TABLE runs; --", "a\0b": [None, True, {"": -1e-300}]}
    made = shared_operator.post("/v1/runs", json={"training": further})
    assert made.status_code == 201, made.text
    read = shared_operator.get(f"/v1/runs/{made.json()['run_id']}").json()["spec"]["training"]
    assert {key: read[key] for key in further} == further


def test_json_of_another_media_type_is_refused(shared_operator: httpx.Client) -> None:
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream", ""):
        answer = shared_operator.post("/v1/runs", content=b"{}", headers={"Content-Type": media_type})
        assert_refused(answer, "unsupported-media-type", "application/json")


# Enrolment.


@pytest.mark.parametrize(
    ("request_body", "named"),
    [
        ({"max_uses": 0}, "max_uses"),
        ({"max_uses": 1_000_001}, "max_uses"),
        ({"max_uses": "5"}, "max_uses"),
        ({"expires_in_seconds": 0}, "expires_in_seconds"),
        ({"expires_in_seconds": 1e12}, "expires_in_seconds"),
        ({"expires_in_seconds": "1"}, "expires_in_seconds"),
        ({"uses": 5}, "uses"),
    ],
)
def test_bad_enrolment_token_request_is_refused(
    shared_operator: httpx.Client, stored: Stored, request_body: dict[str, Any], named: str
) -> None:
    before = stored.counts("tokens")
    assert_refused(shared_operator.post("/v1/enrolment-tokens", json=request_body), "invalid-request", named)
    assert stored.counts("tokens") == before


@pytest.mark.parametrize(
    ("request_body", "named"),
    [
        ({}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "client\n"}, "name"),
        ({"name": "a" * 50_000}, "name"),
        ({"name": "a", "attributes": []}, "attributes"),
        ({"name": "a", "attributes": {"region": 5}}, "attributes.region"),
        ({"name": "a", "attributes": {"region": "x" * 257}}, "attributes.region"),
        ({"name": "a", "attributes": {"region": "a\r\nb"}}, "attributes.region"),
        ({"name": "a", "attributes": {"region": "north\n"}}, "attributes.region"),
        ({"name": "a", "attributes": {"region": "a\0b"}}, "attributes.region"),
        ({"name": "a", "attributes": {"re gion": "x"}}, "attributes.re gion"),
        ({"name": "a", "attributes": {f"a{index}": "" for index in range(65)}}, "64"),
        ({"name": "a", "token": "mine"}, "token"),
        ({"name": "a", "client_id": "mine"}, "client_id"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_bad_client_request_is_refused_by_its_field(
    shared_operator: httpx.Client, stored: Stored, request_body: dict[str, Any], named: str
) -> None:
    before = stored.counts("clients", "tokens")
    assert_refused(shared_operator.post("/v1/clients", json=request_body), "invalid-request", named)
    assert stored.counts("clients", "tokens") == before


def test_enrolment_token_enrols_as_often_as_it_says(
    shared_server: ServerProcess, shared_operator: httpx.Client
) -> None:
    token = shared_operator.post("/v1/enrolment-tokens", json={"max_uses": 2}).json()["token"]
    with shared_server.http(token) as enrolling:
        for name in ("one", "two"):
            assert enrolling.post("/v1/clients", json={"name": name}).status_code == 201
        assert_refused(enrolling.post("/v1/clients", json={"name": "three"}), "forbidden", "spent")


# Idempotency keys.


CREATES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/v1/runs", {"name": "keyed"}, {"name": "other"}),
    ("/v1/clients", {"name": "keyed"}, {"name": "other"}),
    ("/v1/enrolment-tokens", {"max_uses": 1}, {"max_uses": 2}),
]


@pytest.mark.parametrize(("path", "request_body", "other"), CREATES)
def test_create_with_a_key_is_done_once(
    shared_operator: httpx.Client, stored: Stored, path: str, request_body: dict[str, Any], other: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": f"key-of-{path}"}
    first = shared_operator.post(path, json=request_body, headers=headers)
    before = stored.counts("runs", "clients", "tokens", "idempotency_keys")
    again = shared_operator.post(path, json=request_body, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    refused = shared_operator.post(path, json=other, headers=headers)
    assert_refused(refused, "idempotency-key-reused", "Idempotency-Key")
    assert stored.counts("runs", "clients", "tokens", "idempotency_keys") == before


def test_one_key_means_something_else_on_another_path_and_for_another_caller(
    shared_server: ServerProcess, shared_operator: httpx.Client
) -> None:
    headers = {"Idempotency-Key": "shared-key"}
    token = shared_operator.post("/v1/enrolment-tokens", json={}, headers=headers).json()["token"]
    mine = shared_operator.post("/v1/clients", json={"name": "same"}, headers=headers).json()
    with shared_server.http(token) as enrolling:
        theirs = enrolling.post("/v1/clients", json={"name": "same"}, headers=headers).json()
        assert theirs["client_id"] != mine["client_id"]
        assert theirs["token"] != mine["token"]
        again = enrolling.post("/v1/clients", json={"name": "same"}, headers=headers)
        assert (again.status_code, again.json()) == (201, theirs)


@pytest.mark.parametrize("key", ["", "a b", "k" * 256, "schlüssel".encode().decode("latin-1"), "tab\there"])
def test_unusable_key_is_refused_by_the_headers_name(shared_operator: httpx.Client, stored: Stored, key: str) -> None:
    before = stored.counts("runs")
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    assert_refused(shared_operator.post("/v1/runs", json={}, headers=headers), "invalid-request", "Idempotency-Key")
    assert stored.counts("runs") == before


# Pages and waits.

_LISTS = [
    "/v1/runs",
    "/v1/clients",
    "/v1/runs/{run_id}/rounds",
    "/v1/runs/{run_id}/models",
    "/v1/runs/{run_id}/rounds/1/updates",
]


@pytest.mark.parametrize("path", _LISTS)
def test_unusable_page_is_refused_by_its_parameter(idle: Asked, path: str) -> None:
    url = path.format(run_id=idle.run_id)
    for limit in ("0", "1001", "-1", "x", "", "1.5", "1e3", "NaN", str(2**63), str(2**64), "9" * 5000):
        assert_refused(idle.operator.get(url, params={"limit": limit}), "invalid-request", "limit")
    cursors = [
        "x",
        "*",
        "é",
        "null",
        "A" * 512,
        _cursor({}),
        _cursor([]),
        _cursor([1, 2, 3]),
        _cursor([True]),
        _cursor([-1]),
        _cursor([2**53]),
        _cursor([2**63, 2**63]),
        _cursor([10**300, "run_x"]),
        _cursor([1.5, "x"]),
        _cursor([None, None]),
        _cursor([1, "a\0b"]),
        _cursor(["a\0b"]),
        _cursor(["x" * 129]),
        _cursor([["x"]]),
        base64.urlsafe_b64encode(b"[" * 300).decode(),
        base64.urlsafe_b64encode(b"[" + b"9" * 370 + b"]").decode(),
        "A" * 513,
    ]
    for cursor in cursors:
        assert_refused(idle.operator.get(url, params={"cursor": cursor}), "invalid-request", "cursor")


def _cursor(position: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def test_pages_of_one_give_every_item_once(asked: Asked) -> None:
    for value, (client, task) in enumerate([(asked.client, asked.task), _ask(asked.operator, asked.run_id)]):
        assert client.put(task["task_id"], asked.body(float(value))).status_code == 201
    wait_for_run(asked.operator, asked.run_id, version=1)
    for path in _LISTS:
        url = path.format(run_id=asked.run_id)
        whole = asked.operator.get(url, params={"limit": 1000}).json()
        assert whole["next_cursor"] is None
        seen: list[Any] = []
        cursor = None
        while True:
            page = asked.operator.get(url, params={"limit": 1} | ({} if cursor is None else {"cursor": cursor})).json()
            seen += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
            assert len(page["items"]) == 1
        assert seen == whole["items"]
        assert len(seen) >= 1, url


@pytest.mark.parametrize("wait", ["-1", "61", "1e9", "nan", "inf", "-inf", "x", "", "1s", "9" * 5000])
def test_unusable_wait_is_refused_at_once(idle: Asked, wait: str) -> None:
    claimed = idle.client.http.post(f"/v1/runs/{idle.run_id}/tasks", params={"wait": wait})
    assert_refused(claimed, "invalid-request", "wait")
    latest = idle.operator.get(f"/v1/runs/{idle.run_id}/models/latest", params={"wait": wait, "after": 5})
    assert_refused(latest, "invalid-request", "wait")


@pytest.mark.parametrize("after", ["-2", "x", "", "1.5", str(2**53), str(2**63), str(2**64), "9" * 5000])
def test_unusable_after_is_refused(idle: Asked, after: str) -> None:
    answer = idle.operator.get(f"/v1/runs/{idle.run_id}/models/latest", params={"after": after})
    assert_refused(answer, "invalid-request", "after")


def test_wait_that_ends_without_an_answer_says_when_to_come_back(asked: Asked) -> None:
    others = [_ask(asked.operator, asked.run_id) for _ in range(2)]
    assert len(others) == 2
    idle = enrol(asked.operator, "idle").claim(asked.run_id, wait=0.2)
    assert (idle.status_code, idle.content) == (204, b"")
    assert int(idle.headers["retry-after"]) >= 1
    newest = asked.operator.get(f"/v1/runs/{asked.run_id}/models/latest", params={"after": 0, "wait": 0.2})
    assert (newest.status_code, newest.content) == (204, b"")


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "", "9" * 16, "9" * 5000])
def test_unusable_last_event_id_is_refused(idle: Asked, last: str) -> None:
    answer = idle.operator.get(f"/v1/runs/{idle.run_id}/events", headers={"Last-Event-ID": last})
    assert_refused(answer, "invalid-request", "Last-Event-ID")


def test_other_method_is_refused_and_told_which_are_right(idle: Asked) -> None:
    for method, path in (
        ("PATCH", "/v1/runs"),
        ("DELETE", f"/v1/runs/{idle.run_id}"),
        ("POST", f"/v1/tasks/{idle.task_id}/update"),
        ("GET", f"/v1/tasks/{idle.task_id}"),
        ("TRACE", "/v1/runs"),
    ):
        answer = idle.operator.request(method, path)
        assert_refused(answer, "method-not-allowed", method)
        assert answer.headers["allow"]
