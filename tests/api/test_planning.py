"""A plan's exact figures are the bytes of a real round: what the server counted of what the SDK sent."""

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from client_sdk import AggregatorClient, TrainedDelta, TrainingTask, participate
from client_sdk.cli import main
from fl_protocol.planning.sizes import TYPICAL_METADATA, update_size
from fl_protocol.runs import RunSpec
from fl_protocol.tensors import parse_header
from tests.support.participant import create_run, enrol, pack
from tests.support.server import ServerProcess

MODEL = {"w": np.zeros((40, 25), dtype=np.float32), "b": np.zeros(3), "steps": np.array(0, dtype=np.int64)}
METRICS = json.loads(TYPICAL_METADATA["metrics"])


def train(task: TrainingTask) -> TrainedDelta:
    tensors = {name: np.full_like(np.asarray(one), 1) for name, one in task.model.items()}
    return TrainedDelta(tensors=tensors, num_examples=10_000, metrics=METRICS)


def the_update(operator: httpx.Client, run_id: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    "encoding", [{"kind": "dense"}, {"kind": "int8"}, {"kind": "topk", "fraction": 0.1}], ids=lambda one: one["kind"]
)
async def test_a_round_has_the_bytes_that_were_planned(
    shared_operator: httpx.Client,
    shared_server: ServerProcess,
    encoding: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields = {"num_rounds": 1, "round": {"quorum": 1}, "encoding": encoding}
    run_id = create_run(shared_operator, MODEL, **fields)
    enrolled = enrol(shared_operator)
    async with AggregatorClient(shared_server.url, token=enrolled.token) as client:
        await participate(client, run_id, train)
    listed = the_update(shared_operator, run_id)
    body = pack(MODEL)
    model = parse_header(body[8 : 8 + int.from_bytes(body[:8], "little")])
    assert update_size(model, RunSpec.model_validate(fields)).num_bytes == listed["num_bytes"]
    # The command says the same of the same model.
    (tmp_path / "model.safetensors").write_bytes(body)
    (tmp_path / "spec.json").write_text(json.dumps(fields))
    arguments = ["plan", str(tmp_path / "spec.json"), "--model", str(tmp_path / "model.safetensors"), "--json"]
    monkeypatch.setattr(sys, "argv", ["fedquorum", *arguments])
    with pytest.raises(SystemExit):
        main()
    told = json.loads(capsys.readouterr().out)["traffic"]
    assert (told["update"], told["download"]) == (
        {"num_bytes": listed["num_bytes"], "is_exact": True},
        {"num_bytes": len(body), "is_exact": True},
    )
