"""A SCAFFOLD run that is killed at every point of its rounds publishes the bits of one that was left alone."""

from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np

from aggregator_service.flow.controls import fold_controls
from aggregator_service.flow.fold import RangeReader, SealedUpdate, aggregate
from fl_protocol.runs import RunSpec
from fl_protocol.tensors import parse_header
from fl_protocol.updates import update_layout
from tests.support.databases import POSTGRES_IN_SOAK
from tests.support.ledger import digest_of
from tests.support.participant import Participant, create_run, enrol, pack, unpack, update_body, wait_for_run
from tests.support.server import ServerProcess
from tests.support.zygote import Zygote

NUM_CLIENTS = 3
SPEC = {"round": {"quorum": NUM_CLIENTS, "deadline_seconds": 3600}, "algorithm": {"kind": "scaffold", "num_clients": 5}}
POINTS = (
    "aggregation.halfway:1",
    "aggregation.model_written:1",
    "publication.in_transaction:1",
    "publication.after_commit:1",
    "intake.after_commit:3",
)
MODEL = {"w": np.ones((300, 4), dtype=np.float32), "b": np.zeros(4, dtype=np.float32)}


def body(client: int, round_number: int) -> bytes:
    source = np.random.default_rng([client, round_number])
    spread = 10.0 ** source.uniform(-5, 1)
    tensors = {name: (source.normal(size=one.shape) * spread).astype("f4") for name, one in MODEL.items()}
    controls = {f"control:{name}": source.normal(size=one.shape).astype("f4") for name, one in MODEL.items()}
    return update_body(tensors | controls, num_examples=client + 1)


def undisturbed(num_rounds: int) -> list[tuple[str, str]]:
    """Computes each version's digest and its control's, in this process and in another order of arrival."""
    spec = RunSpec.model_validate_json(RunSpec.model_validate(SPEC).model_dump_json())
    model, control, digests = pack(MODEL), b"", []
    layout = update_layout(parse_header(model[8 : 8 + int.from_bytes(model[:8], "little")]), spec)
    for number in range(1, num_rounds + 1):
        updates = [sealed(body(client, number), weight=client + 1) for client in reversed(range(NUM_CLIENTS))]
        next_model, next_control = bytearray(), bytearray()
        base = None if not control else reader(control)
        fold_controls(base, updates, layout=layout, num_clients=5, write=next_control.extend)
        aggregate(
            reader(model),
            updates,
            spec=spec,
            round_number=number,
            optimizer_state=None,
            write_model=next_model.extend,
            write_state=next_model.extend,
            holds=layout,
        )
        model, control = bytes(next_model), bytes(next_control)
        digests.append((digest_of(model), digest_of(control)))
    return digests


def reader(blob: bytes) -> RangeReader:
    return lambda begin, end: memoryview(blob)[begin:end]


def sealed(content: bytes, *, weight: int) -> SealedUpdate:
    max_abs = {name: float(np.abs(values).max()) for name, values in unpack(content).items()}
    return SealedUpdate("u", digest_of(content), weight, max_abs, reader(content))


@POSTGRES_IN_SOAK
def test_kills_change_no_bit_of_a_control_variate(database_url: str, tmp_path: Path, forking: Zygote) -> None:
    server = ServerProcess(database_url, tmp_path, zygote=forking).start()
    try:
        with server.http() as operator:
            run_id = create_run(operator, MODEL, num_rounds=len(POINTS), **SPEC)
            tokens = [enrol(operator, f"client-{client}").token for client in range(NUM_CLIENTS)]
        for number, point in enumerate(POINTS, start=1):
            server.kill()
            server.start(FEDQUORUM_FAILPOINT=f"{point}:kill")
            with suppress(httpx.TransportError):
                send_all(server, run_id, tokens, number)
            assert server.wait() == -9
            server.start()
            send_all(server, run_id, tokens, number)
            with server.http() as operator:
                wait_for_run(operator, run_id, version=number)
        with server.http() as operator:
            found = [digests(operator, run_id, number) for number in range(1, len(POINTS) + 1)]
        assert found == undisturbed(len(POINTS))
    finally:
        server.kill()


def send_all(server: ServerProcess, run_id: str, tokens: list[str], number: int) -> None:
    """Sends a round's updates; whoever has no task left in it has sent its own before."""
    for client, token in enumerate(tokens):
        with server.http(token) as http:
            one = Participant(http, "", token)
            claimed = one.claim(run_id)
            if claimed.status_code in (200, 201) and claimed.json()["round"] == number:
                assert one.put(claimed.json()["task_id"], body(client, number)).status_code in (200, 201)


def digests(operator: httpx.Client, run_id: str, version: int) -> tuple[str, str]:
    answers = [operator.get(f"/v1/runs/{run_id}/models/{version}{rest}") for rest in ("", "/control-variate")]
    assert [answer.headers["etag"].strip('"') for answer in answers] == [digest_of(one.content) for one in answers]
    return digest_of(answers[0].content), digest_of(answers[1].content)
