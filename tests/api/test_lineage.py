"""Where a model comes from: a run that begins with another one's model, and a file that says how it was made."""

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors import safe_open

from tests.support.learning import Course, begin, flat_body, flat_model
from tests.support.participant import MEDIA_TYPE, Tensors, pack, wait_for_run
from tests.support.refusals import assert_refused

ADAM = {"kind": "adam", "learning_rate": 0.5}
KEY = "fedquorum.lineage"


def follow(operator: httpx.Client, source: Course, version: int, **spec: Any) -> Course:
    """Starts a run from a version of another one's model."""
    initial = {"kind": "version", "run_id": source.run_id, "version": version}
    made = operator.post("/v1/runs", json={"round": {"quorum": 1}, "num_rounds": 5, "initial_model": initial} | spec)
    assert made.status_code == 201, made.text
    assert (made.json()["state"], made.json()["latest_version"]) == ("draft", 0)
    course = Course(operator, made.json()["run_id"], source.clients)
    assert course.post("/start").status_code == 200
    return course


def export(operator: httpx.Client, run_id: str, version: int, **headers: str) -> httpx.Response:
    return operator.get(f"/v1/runs/{run_id}/models/{version}/export", headers=headers)


def metadata_of(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return found


def lineage_of(operator: httpx.Client, run_id: str, version: int) -> dict[str, Any]:
    answer = export(operator, run_id, version)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = json.loads(metadata_of(answer.content)[KEY])
    return found


@pytest.fixture(scope="module")
def source(shared_operator: httpx.Client) -> Course:
    """A run with three versions, of which the third is the first again."""
    course = begin(shared_operator, server_optimizer=ADAM)
    course.train(1.0)
    course.train(1.0)
    assert course.post("/rollback", json={"version": 1}).status_code == 201
    return course


@pytest.fixture(scope="module")
def follower(shared_operator: httpx.Client, source: Course) -> Course:
    """A run that began with the second version of the other one."""
    return follow(shared_operator, source, 2, server_optimizer=ADAM)


def test_a_run_begins_with_a_version_of_another(
    shared_operator: httpx.Client, source: Course, follower: Course
) -> None:
    taken, origin = follower.models()[0], source.models()[2]
    assert taken["digest"] == origin["digest"]
    assert (taken["version"], taken["round"], taken["parent_version"]) == (0, 0, None)
    initial = {"kind": "version", "run_id": source.run_id, "version": 2}
    assert follower.run["spec"]["initial_model"] == initial
    # The optimizer starts afresh: the first step is the first step of any run with this delta.
    follower.train(1.0)
    first, moved = source.values(1)[0], follower.values(1)[0] - source.values(2)[0]
    assert moved == pytest.approx(first, rel=1e-6)
    assert source.values(2)[0] - source.values(1)[0] != pytest.approx(first, rel=1e-2)
    # Nothing else may take the place of what was taken over; the same bytes are no contradiction.
    path = f"/v1/runs/{follower.run_id}/models/0"
    same = shared_operator.get(path).content
    assert shared_operator.put(path, content=same, headers={"Content-Type": MEDIA_TYPE}).status_code == 200
    other = shared_operator.put(path, content=pack(flat_model()), headers={"Content-Type": MEDIA_TYPE})
    assert_refused(other, "state-conflict", "another initial model")


@pytest.mark.parametrize(
    ("initial", "named"),
    [
        ({"run_id": f"run_{'0' * 32}", "version": 0}, f"initial_model.run_id: there is no run 'run_{'0' * 32}'"),
        ({"version": 9}, "has no model version 9; its newest is 3"),
        ({"version": -1}, "initial_model.version: Input should be greater than or equal to 0"),
        ({"run_id": "mnist"}, "initial_model.run_id: String should match pattern"),
        ({"version": None}, "initial_model.version: Input should be a valid integer"),
        ({"kind": "upload"}, "initial_model.run_id: Extra inputs are not permitted"),
        ({"kind": "run"}, "initial_model.kind: 'run' is none of 'upload', 'version'"),
        ({"tag": "best"}, "initial_model.tag: Extra inputs are not permitted"),
    ],
)
def test_a_model_that_is_not_there_is_refused(
    shared_operator: httpx.Client, source: Course, initial: dict[str, Any], named: str
) -> None:
    whole = {"kind": "version", "run_id": source.run_id, "version": 0} | initial
    assert_refused(shared_operator.post("/v1/runs", json={"initial_model": whole}), "invalid-request", named)


def test_a_model_that_the_spec_cannot_train_is_refused(shared_operator: httpx.Client, source: Course) -> None:
    initial = {"kind": "version", "run_id": source.run_id, "version": 0}
    spec = {"initial_model": initial, "parameters": {"trainable": ["adapter.*"]}}
    assert_refused(shared_operator.post("/v1/runs", json=spec), "structure-mismatch", "adapter.*", "value")
    draft = shared_operator.post("/v1/runs", json={}).json()["run_id"]
    spec = {"initial_model": {"kind": "version", "run_id": draft, "version": 0}}
    assert_refused(shared_operator.post("/v1/runs", json=spec), "invalid-request", "it has none yet")


def test_an_exported_file_says_how_it_was_made(shared_operator: httpx.Client, tmp_path: Path) -> None:
    course = begin(shared_operator, num_clients=3, round={"quorum": 3}, strategy={"kind": "mean", "max_weight": 5})
    tasks = [course.claim(client) for client in course.clients]
    for client, task, number in zip(course.clients, tasks, (2, 5, 9), strict=True):
        assert client.put(task["task_id"], flat_body(1.0, num_examples=number)).status_code == 201
    wait_for_run(shared_operator, course.run_id, version=1)

    answer = export(shared_operator, course.run_id, 1)
    path = tmp_path / "model.safetensors"
    path.write_bytes(answer.content)
    with safe_open(path, framework="numpy") as file:
        assert list(file.keys()) == ["value"]
        np.testing.assert_array_equal(file.get_tensor("value"), np.ones(3, "f4"))
        found = json.loads(file.metadata()[KEY])

    model, parent = course.models()[1], course.models()[0]
    spec = json.dumps(course.run["spec"], sort_keys=True, separators=(",", ":"))
    accepted = course.get("/rounds/1/updates")["items"]
    counted = sorted((one["digest"], one["num_examples"], one["weight"]) for one in accepted)
    assert [(one["digest"], one["num_examples"], one["weight"]) for one in found.pop("updates")] == counted
    assert {weight for *_, weight in counted} == {2, 5}
    assert found == {
        "format": 1,
        "run_id": course.run_id,
        "run_name": "test",
        "spec_digest": f"sha256:{hashlib.sha256(spec.encode()).hexdigest()}",
        "initial_model": {"kind": "upload", "digest": parent["digest"], "run_id": None, "version": None},
        "version": 1,
        "round": 1,
        "digest": model["digest"],
        "parent_version": 0,
        "parent_digest": parent["digest"],
        "restored_from": None,
        "num_updates": 3,
    }


def test_an_initial_and_a_restored_version_have_no_updates(
    shared_operator: httpx.Client, source: Course, follower: Course
) -> None:
    first, restored = (lineage_of(shared_operator, source.run_id, version) for version in (0, 3))
    assert (first["parent_version"], first["num_updates"], first["digest"]) == (None, 0, source.models()[0]["digest"])
    named = {name: restored[name] for name in ("round", "parent_version", "restored_from", "num_updates", "updates")}
    assert named == {"round": 1, "parent_version": 1, "restored_from": 1, "num_updates": 0, "updates": []}
    assert restored["digest"] == restored["parent_digest"]
    taken = lineage_of(shared_operator, follower.run_id, 0)["initial_model"]
    digest = source.models()[2]["digest"]
    assert taken == {"kind": "version", "digest": digest, "run_id": source.run_id, "version": 2}


def test_an_exported_file_that_trains_on_keeps_where_it_came_from(
    shared_operator: httpx.Client, source: Course
) -> None:
    exported = export(shared_operator, source.run_id, 1).content
    made = shared_operator.post("/v1/runs", json={"round": {"quorum": 1}}).json()
    path = f"/v1/runs/{made['run_id']}/models/0"
    assert shared_operator.put(path, content=exported, headers={"Content-Type": MEDIA_TYPE}).status_code == 201
    again = metadata_of(export(shared_operator, made["run_id"], 0).content)
    assert json.loads(again["fedquorum.initial_lineage"])["run_id"] == source.run_id
    assert json.loads(again[KEY])["run_id"] == made["run_id"]


def test_what_the_uploaded_file_said_of_itself_is_kept(shared_operator: httpx.Client) -> None:
    model: Tensors = {"a": np.arange(4, dtype="f4"), "n": np.array([7]), "empty": np.zeros((0, 2), "f4")}
    made = shared_operator.post("/v1/runs", json={"round": {"quorum": 1}}).json()
    path = f"/v1/runs/{made['run_id']}/models/0"
    content = pack(model, {"format": "pt"})
    assert shared_operator.put(path, content=content, headers={"Content-Type": MEDIA_TYPE}).status_code == 201
    answer = export(shared_operator, made["run_id"], 0)
    assert metadata_of(answer.content)["format"] == "pt"
    data = [body[8 + int.from_bytes(body[:8], "little") :] for body in (content, answer.content)]
    assert data[0] == data[1]


def test_an_export_is_downloaded_as_a_model_is(shared_operator: httpx.Client, source: Course) -> None:
    whole = export(shared_operator, source.run_id, 1)
    assert whole.headers["etag"] == f'"sha256:{hashlib.sha256(whole.content).hexdigest()}"'
    assert (whole.headers["model-version"], whole.headers["content-type"]) == ("1", MEDIA_TYPE)
    assert export(shared_operator, source.run_id, 1).content == whole.content
    half = len(whole.content) // 2
    for begin_at, end in ((0, 10), (half, half + 9), (len(whole.content) - 5, len(whole.content) - 1)):
        part = export(shared_operator, source.run_id, 1, Range=f"bytes={begin_at}-{end}")
        assert (part.status_code, part.content) == (206, whole.content[begin_at : end + 1])
    known = export(shared_operator, source.run_id, 1, **{"If-None-Match": whole.headers["etag"]})
    assert known.status_code == 304
    assert_refused(export(shared_operator, source.run_id, 99), "not-found", "version 99; the newest is 3")
    assert_refused(export(shared_operator, f"run_{'0' * 32}", 0), "not-found", "there is no run")
