"""What an honest server would have said, as bytes: the cases take one answer of it and lie."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.client_sdk.hostile.server import Hold, Route, Script, Seen
from tests.support.malformed.bodies import Shapes, entries, framed, offsets

RUN_ID: Final = "run_honest"
TASK_ID: Final = "task_honest"
MOMENT: Final = "2026-01-01T00:00:00Z"
JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
TENSORS: Final = "application/vnd.safetensors"
EVENTS: Final = "text/event-stream"

SHAPES: Final[Shapes] = {
    "0.weight": ("F32", (3, 4)),
    "0.bias": ("F32", (3,)),
    "1.weight": ("F32", (3,)),
    "1.bias": ("F32", (3,)),
    "1.running_mean": ("F32", (3,)),
    "1.running_var": ("F32", (3,)),
    "1.num_batches_tracked": ("I64", ()),
}
"""The victim's module: a linear layer and a batch norm, whose counter is an integer without dimensions."""


def data_of(shapes: Shapes) -> bytes:
    """Gives data of which no float is zero, so that a copy that should not be shows."""
    data = bytearray()
    for dtype, (begin, end) in ((shapes[name][0], where) for name, where in offsets(shapes).items()):
        item = {"F32": struct.pack("<f", 0.25), "I64": struct.pack("<q", 7)}.get(dtype, b"\x01")
        data += item * ((end - begin) // len(item))
    return bytes(data)


def model(
    shapes: Shapes = SHAPES, *, data: bytes | None = None, changes: Mapping[str, Mapping[str, Any]] | None = None
) -> bytes:
    """Writes a model; `changes` rewrites entries of its header."""
    header = entries(shapes)
    for name, change in (changes or {}).items():
        header[name] = header[name] | change
    return framed(json.dumps(header).encode(), data_of(shapes) if data is None else data)


MODEL: Final = model()


def digest_of(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def task(body: bytes = MODEL, **changes: Any) -> dict[str, Any]:
    """A task for a model of these bytes."""
    honest = {
        "task_id": TASK_ID,
        "run_id": RUN_ID,
        "round": 1,
        "attempt": 1,
        "kind": "train",
        "base_version": 0,
        "model_url": f"/v1/runs/{RUN_ID}/models/0",
        "model_digest": digest_of(body),
        "model_num_bytes": len(body),
        "training": {"local_epochs": 1, "batch_size": 4, "learning_rate": 0.1, "proximal_mu": 0.0},
        "encoding": {"kind": "dense"},
        "privacy": {"kind": "none"},
        "secure_aggregation": {"kind": "none"},
        "deadline_at": MOMENT,
        "max_num_bytes": 1 << 20,
    }
    return honest | changes


def run(**changes: Any) -> dict[str, Any]:
    honest = {
        "run_id": RUN_ID,
        "name": "honest",
        "state": "completed",
        "reason": None,
        "spec": {"name": "honest"},
        "num_rounds": 1,
        "current_round": 1,
        "latest_version": 1,
        "created_at": MOMENT,
        "started_at": MOMENT,
        "finished_at": MOMENT,
    }
    return honest | changes


def receipt(sent: bytes, **changes: Any) -> dict[str, Any]:
    honest = {
        "update_id": "upd_1",
        "task_id": TASK_ID,
        "run_id": RUN_ID,
        "round": 1,
        "digest": digest_of(sent),
        "num_bytes": len(sent),
        "accepted_at": MOMENT,
    }
    return honest | changes


def event(number: int = 1, **changes: Any) -> dict[str, Any]:
    honest = {"event_id": number, "type": "run.state", "created_at": MOMENT, "data": {"state": "completed"}}
    return honest | changes


def problem(status: int, slug: str, **changes: Any) -> dict[str, Any]:
    honest = {
        "type": f"/problems/{slug}",
        "title": slug,
        "status": status,
        "detail": f"it is {slug}",
        "retryable": False,
    }
    return honest | changes


def head(status: int | str, *headers: str) -> bytes:
    """Writes a status line and headers; the connection closes after the answer."""
    lines = [f"HTTP/1.1 {status} x" if isinstance(status, int) else status, *headers, "Connection: close"]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


def whole(status: int, body: bytes, kind: str, *headers: str) -> bytes:
    """Writes an answer with its Content-Length."""
    return head(status, f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers) + body


def as_json(value: Any, *, status: int = 200, kind: str = JSON) -> bytes:
    return whole(status, json.dumps(value).encode(), kind)


def as_model(body: bytes, *headers: str, etag: str | None = None) -> bytes:
    return whole(200, body, TENSORS, f'ETag: "{etag or digest_of(body)}"', "Model-Version: 0", *headers)


def said(*pieces: bytes) -> Script:
    """Makes the script that says the same each time."""

    def script(seen: Seen) -> Iterator[bytes | Hold]:
        yield from pieces

    return script


def route_name(seen: Seen) -> str:
    """Names the call of the contract that a request is."""
    parts = seen.path.strip("/").split("/")
    name = "/".join(part for part in parts[1:] if part not in {RUN_ID, TASK_ID})
    return f"{seen.method} {name}"


def _finished(seen: Seen) -> bytes:
    return as_json(problem(410, "run-finished"), status=410, kind=PROBLEM)


def _honest(seen: Seen) -> bytes:
    match route_name(seen):
        case "POST runs/tasks":
            return as_json(task(), status=201) if seen.count == 0 else _finished(seen)
        case "GET runs/models/0" | "GET runs/models/latest":
            return as_model(MODEL)
        case "DELETE tasks":
            return head(204)
        case "PUT tasks/update" | "PUT tasks/evaluation":
            return as_json(receipt(seen.body), status=201)
        case "GET runs":
            return as_json(run() if RUN_ID in seen.path else {"items": [run()], "next_cursor": None})
        case "POST runs":
            return as_json(run(), status=201)
        case "GET runs/events":
            return head(200, f"Content-Type: {EVENTS}") + f"data: {json.dumps(event())}\n\n".encode()
    return as_json(problem(404, "not-found"), status=404, kind=PROBLEM)


def honest_but(lies: Mapping[str, Script]) -> Route:
    """Makes a server that is honest but for the calls named in `lies`."""
    return lambda seen: lies.get(route_name(seen), said(_honest(seen)))
