"""The page for participants in any language: its bytes and vectors are a real server's, its errors complete."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest

from aggregator_service.api.problems import STATUS
from fl_protocol import model_deltas
from fl_protocol.arrays import decode
from fl_protocol.model_deltas import DeltaHead
from fl_protocol.problems import RETRYABLE, ProblemType, problem_uri
from tests.docs.pages import CHECKOUT, blocks
from tests.docs.test_readme import small_server
from tests.support.participant import MEDIA_TYPE, Participant, create_run, enrol, unpack, update_body, wait_for_run
from tests.support.server import ServerProcess

__all__ = ["small_server"]

PAGE: Final = CHECKOUT / "docs" / "participants-in-any-language.md"
VECTORS: Final[Mapping[str, Any]] = json.loads((CHECKOUT / "docs" / "update-vectors.json").read_text())
NOT_A_PARTICIPANTS: Final = {
    ProblemType.METHOD_NOT_ALLOWED,
    ProblemType.RANGE_NOT_SATISFIABLE,
    ProblemType.TOO_MANY_REQUESTS,
}


def started_run(http: httpx.Client, quorum: int) -> str:
    run_id = create_run(http, unpack(bytes.fromhex(VECTORS["model"]["hex"])), start=False, round={"quorum": quorum})
    http.post(f"/v1/runs/{run_id}/start").raise_for_status()
    return run_id


def claimed(participant: Participant, run_id: str) -> str:
    answer = participant.claim(run_id)
    assert answer.status_code == 201, answer.text
    task_id: str = answer.json()["task_id"]
    return task_id


def test_the_dump_is_the_first_vector() -> None:
    dump = next(each.text for each in blocks(PAGE) if each.text.startswith("0000  "))
    dumped = bytes.fromhex("".join(line[6:53] for line in dump.splitlines()))
    first = VECTORS["accepted"][0]
    assert dumped.hex() == first["hex"]
    assert hashlib.sha256(dumped).hexdigest() == first["digest"].removeprefix("sha256:")
    text = PAGE.read_text()
    assert first["digest"] in text
    assert first["content_digest"] in text
    assert f"{len(VECTORS['refused'])} bodies that are refused" in text


def test_the_accepted_vectors_make_the_model_that_follows(small_server: ServerProcess) -> None:
    with small_server.http() as http:
        run_id = started_run(http, quorum=2)
        for index, vector in enumerate(VECTORS["accepted"]):
            participant = enrol(http, f"client-{index}")
            task_id = claimed(participant, run_id)
            body, digest = bytes.fromhex(vector["hex"]), vector["content_digest"]
            answer = participant.put(task_id, body, **{"Content-Digest": digest})
            assert answer.status_code == 201, answer.text
            assert answer.json()["digest"] == vector["digest"]
            again = participant.put(task_id, body)
            assert (again.status_code, again.json()) == (200, answer.json())
        model = decode(wait_for_run(http, run_id, version=1).content)
        round_ = http.get(f"/v1/runs/{run_id}/rounds/1").json()
    np.testing.assert_array_equal(model["w"], np.array(VECTORS["result"]["tensors"]["w"], dtype=np.float32))
    assert round_["metrics"] == VECTORS["result"]["metrics"]


def test_the_refused_vectors_are_refused_and_leave_no_trace(small_server: ServerProcess) -> None:
    with small_server.http() as http:
        run_id = started_run(http, quorum=1)
        participant = enrol(http)
        task_id = claimed(participant, run_id)
        for vector in VECTORS["refused"]:
            answer = participant.put(task_id, bytes.fromhex(vector["hex"]), **vector.get("headers", {}))
            found = (answer.status_code, answer.json()["type"])
            assert found == (vector["status"], vector["type"]), f"{vector['what']}: {answer.text}"
        good = participant.put(task_id, bytes.fromhex(VECTORS["accepted"][0]["hex"]))
        assert good.status_code == 201, good.text


def test_the_initial_model_is_taken_as_it_stands(small_server: ServerProcess) -> None:
    with small_server.http() as http:
        run_id = http.post("/v1/runs", json={"name": "vectors"}).json()["run_id"]
        content = bytes.fromhex(VECTORS["model"]["hex"])
        answer = http.put(f"/v1/runs/{run_id}/models/0", content=content, headers={"Content-Type": MEDIA_TYPE})
    assert answer.status_code == 201, answer.text
    assert answer.json()["digest"] == VECTORS["model"]["digest"]


@pytest.mark.parametrize("problem_type", sorted(set(ProblemType) - NOT_A_PARTICIPANTS))
def test_every_error_that_a_participant_can_meet_is_told(problem_type: ProblemType) -> None:
    row = next(line for line in PAGE.read_text().splitlines() if f"`{problem_uri(problem_type)}`" in line)
    assert str(STATUS[problem_type]) in row
    if problem_type in RETRYABLE:
        assert "again" in row
    else:
        assert not re.search(r"send (it|them) again", row)


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="no curl or no bash")
def test_the_commands_for_fewer_bytes_do_what_their_comments_say(small_server: ServerProcess, tmp_path: Path) -> None:
    model = {"w": np.random.default_rng(1).normal(scale=0.02, size=20_000).astype(np.float32)}
    with small_server.http() as http:
        run_id = create_run(http, model, num_rounds=3, round={"quorum": 1})
        participant = enrol(http)
        for version in (1, 2):
            step = update_body({"w": model["w"] * np.float32(1e-4)}, num_examples=1)
            assert participant.put(claimed(participant, run_id), step).status_code == 201
            newest = wait_for_run(http, run_id, version=version).content
        base = http.get(f"/v1/runs/{run_id}/models/1").content
    text = _commands("MODELS=")
    given = {"SERVER": small_server.url, "RUN_ID": run_id, "TOKEN": participant.token}
    typed = subprocess.run(
        ["bash", "-euc", text], cwd=tmp_path, env=os.environ | given, capture_output=True, text=True, check=True
    )
    assert typed.stdout.split() == ["304", "application/vnd.fedquorum.delta"]
    found = {name: (tmp_path / name).read_bytes() for name in ("base.safetensors", "same.safetensors", "rest")}
    assert found == {"base.safetensors": base, "same.safetensors": base, "rest": base[100:]}
    delta, head = (tmp_path / "newest.delta").read_bytes(), [hashlib.sha256(each) for each in (base, newest)]
    expected = DeltaHead(*(f"sha256:{each.hexdigest()}" for each in head), len(newest))
    assert b"".join(model_deltas.apply([delta], base=lambda begin, end: base[begin:end], expected=expected)) == newest


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="no curl or no bash")
def test_the_commands_for_an_upload_in_parts_end_with_the_receipt(small_server: ServerProcess, tmp_path: Path) -> None:
    model = {"w": np.zeros(20_000, dtype=np.float32)}
    update = update_body(model, num_examples=1)
    (tmp_path / "update.safetensors").write_bytes(update)
    with small_server.http() as http:
        participant = enrol(http)
        task_id = claimed(participant, create_run(http, model, round={"quorum": 1}))
    given = {"SERVER": small_server.url, "TASK_ID": task_id, "TOKEN": participant.token}
    subprocess.run(["bash", "-euc", _commands("UPLOAD=")], cwd=tmp_path, env=os.environ | given, check=True, timeout=60)
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt == participant.put(task_id, update).json()


def _commands(containing: str) -> str:
    return next(each.text for each in blocks(PAGE) if each.language == "sh" and containing in each.text)
