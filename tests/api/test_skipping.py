"""A client whose update is small sends none of its tensors; the server counts it as zero, durably, like any other."""

import httpx
import numpy as np

from tests.support.participant import create_run, enrol, pack, small_model, unpack, wait_for_run
from tests.support.refusals import assert_refused

MODEL = small_model(2)
NORM = {"kind": "norm", "below": 0.5}


def body(tensors, *, num_examples=1, **metadata):
    return pack(tensors, {"num_examples": str(num_examples), **metadata})


def test_a_skipped_update_counts_with_its_weight(shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, MODEL, num_rounds=1, round={"quorum": 2}, skipping=NORM)
    lazy, busy = enrol(shared_operator, "lazy"), enrol(shared_operator, "busy")
    task = lazy.claim(run_id).json()
    assert task["skipping"] == NORM
    nothing = body({}, num_examples=3, skipped="true", task=task["task_id"])
    first, again = lazy.put(task["task_id"], nothing), lazy.put(task["task_id"], nothing)
    assert (first.status_code, again.status_code) == (201, 200), first.text
    assert first.json() == again.json()
    ones = {name: np.ones_like(one) for name, one in MODEL.items()}
    assert busy.put(busy.claim(run_id).json()["task_id"], body(ones)).status_code == 201
    found = unpack(wait_for_run(shared_operator, run_id, version=1).content)
    for name, one in MODEL.items():
        assert np.array_equal(found[name], one + np.float32(0.25))
    listed = shared_operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"]
    assert {one["client_id"]: (one["skipped"], one["weight"], one["num_bytes"]) for one in listed} == {
        lazy.client_id: (True, 3, len(nothing)),
        busy.client_id: (False, 1, len(body(ones))),
    }


def test_what_is_no_skipped_update_is_refused(shared_operator: httpx.Client) -> None:
    for skipping, content, slug, says in [
        ({"kind": "none"}, body({}, skipped="true"), "invalid-metadata", "skipping.kind"),
        (NORM, body({}, skipped="false"), "invalid-metadata", "'false'"),
        (NORM, body({}, skipped="true", num_examples=0), "invalid-metadata", "num_examples"),
        (NORM, body(MODEL, skipped="true"), "structure-mismatch", "leave it out"),
        (NORM, body({}), "structure-mismatch", "is missing"),
    ]:
        run_id = create_run(shared_operator, MODEL, round={"quorum": 1}, skipping=skipping)
        client = enrol(shared_operator)
        assert_refused(client.put(client.claim(run_id).json()["task_id"], content), slug, says)
        assert shared_operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"] == []
