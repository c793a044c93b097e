"""The hostile answers by name: which call gets it, what the SDK must raise, and a word that its message must hold."""

import functools
import gzip
import io
import json
import pickle  # noqa: TID251 - the bytes that must not be read
import struct
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.client_sdk.hostile.answers import (
    EVENTS,
    JSON,
    MODEL,
    PROBLEM,
    RUN_ID,
    SHAPES,
    TASK_ID,
    TENSORS,
    as_json,
    as_model,
    data_of,
    digest_of,
    event,
    head,
    honest_but,
    model,
    problem,
    receipt,
    run,
    said,
    task,
    whole,
)
from tests.client_sdk.hostile.server import HOLD, Hold, Route, Script, Seen
from tests.support.malformed import corpus as malformed_uploads
from tests.support.malformed.bodies import Shapes, entries, framed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CLAIM: Final = "POST runs/tasks"
PULL: Final = "GET runs/models/0"
LATEST: Final = "GET runs/models/latest"
SEND: Final = "PUT tasks/update"
LIST: Final = "GET runs"
CREATE: Final = "POST runs"
FOLLOW: Final = "GET runs/events"

UNTRUSTED: Final = "UntrustedAnswerError"
TRANSPORT: Final = "TransportError"
SERVER: Final = "ServerError"

MIB: Final = 1 << 20
DRIP_SECONDS: Final = 0.2
EXECUTED: Final = "hostile-code-was-executed"


@dataclass(frozen=True)
class Case:
    """One lie: `act` is what the victim does, `error` the one type that it must raise ("" for none)."""

    name: str
    act: str
    lies: dict[str, Script] = field(repr=False)
    error: str = UNTRUSTED
    named: str = ""
    slow: bool = False
    trains: bool = False
    """The lie comes after an honest task, so the module was trained."""

    @property
    def route(self) -> Route:
        return honest_but(self.lies)


def corpus(elsewhere: str) -> list[Case]:
    """Gives every case; `elsewhere` is the address of a host that must hear nothing."""
    families: list[Callable[[], Iterator[Case]]] = [
        _headers_of_models,
        _structures,
        _values,
        _digests_and_lengths,
        _other_formats,
        _encodings,
        lambda: _redirects(elsewhere),
        lambda: _tasks(elsewhere),
        _json,
        _bombs,
        _not_http,
        _errors,
        _retry_after,
        _resumed,
        _lists,
        _events,
        _receipts,
        _runs,
        _silence,
        _floods,
    ]
    return [case for family in families for case in family()]


def malformed_models() -> list[Case]:
    """Turns each malformed upload into a model that the server sends with the digest that its bytes have."""
    return [
        Case(f"model-{upload.name}", "result", {LATEST: said(as_model(upload.body()))})
        for upload in malformed_uploads()
        if upload.slug == "malformed-update" and not upload.headers and upload.as_model is None and not _is_big(upload)
    ]


def _is_big(upload: Any) -> bool:
    return len(upload.body()) > MIB


def _offered(body: bytes) -> dict[str, Script]:
    """Announces a model in a task and sends exactly what was announced: only the model itself is bad."""
    return {CLAIM: said(as_json(task(body), status=201)), PULL: said(as_model(body))}


def _both(name: str, body: bytes, named: str = "") -> Iterator[Case]:
    """Offers a bad model to a participant and to an operator who loads it into a module."""
    yield Case(f"participate-{name}", "participate", _offered(body), named=named)
    yield Case(f"result-{name}", "result", {LATEST: said(as_model(body))}, named=named)


def _headers_of_models() -> Iterator[Case]:
    length = int.from_bytes(MODEL[:8], "little")
    for name, lie in {
        "zero": 0,
        "one-less": length - 1,
        "one-more": length + 1,
        "beyond-the-body": len(MODEL) + 1,
        "100-mb": 10**8,
        "2^53": 2**53,
        "2^63": 2**63,
        "2^64-1": 2**64 - 1,
    }.items():
        yield from _both(f"header-length-{name}", lie.to_bytes(8, "little") + MODEL[8:], "safetensors")
    changes: dict[str, dict[str, Any]] = {
        "ten-thousand-dimensions": {"shape": [1] * 10_000},
        "dimension-2^60": {"shape": [1 << 60]},
        "dimensions-that-overflow": {"shape": [1 << 32, 1 << 32]},
        "negative-dimension": {"shape": [-3]},
        "dimension-true": {"shape": [True]},
        "dimension-float": {"shape": [3.0]},
        "dimension-string": {"shape": ["3"]},
        "shape-null": {"shape": None},
        "dtype-unknown": {"dtype": "F4_SECRET"},
        "dtype-null": {"dtype": None},
        "dtype-object": {"dtype": {"__reduce__": "os.system"}},
        "offsets-overlap": {"data_offsets": [0, 12]},
        "offsets-backwards": {"data_offsets": [60, 48]},
        "offsets-negative": {"data_offsets": [-12, 0]},
        "offsets-beyond": {"data_offsets": [48, 1 << 39]},
        "offsets-null": {"data_offsets": None},
        "further-key": {"loader": "os:system"},
    }
    for name, change in changes.items():
        yield from _both(f"header-{name}", model(changes={"0.bias": change}), "safetensors")
    header = json.dumps(entries(SHAPES))
    again = json.dumps(entries(SHAPES)["0.bias"])
    for name, text in {
        "duplicate-tensor": f'{header[:-1]}, "0.bias": {again}}}',
        "deep": '{"a":' * 8000 + "1" + "}" * 8000,
        "deep-arrays": "[" * 60_000,
        "5000-digits": header.replace("[0, 48]", f"[0, {'1' * 5000}]"),
        "nan": header.replace("[0, 48]", "[NaN, 48]"),
        "not-utf-8": header.replace("bias", "b\udcffas"),
        "null": "null",
    }.items():
        body = framed(text.encode("utf-8", "surrogateescape"), data_of(SHAPES))
        yield from _both(f"header-{name}", body, "safetensors")
    for dimensions in (300_000, 1_000_000):
        header = json.dumps({"a": {"dtype": "F32", "shape": [1] * dimensions, "data_offsets": [0, 4]}})
        answer = said(as_model(framed(header.encode(), bytes(4))))
        yield Case(f"result-header-of-{dimensions}-dimensions", "result", {LATEST: answer}, named="safetensors")


def _structures() -> Iterator[Case]:
    changed: dict[str, Shapes] = {
        "missing-tensor": {name: spec for name, spec in SHAPES.items() if name != "1.bias"},
        "missing-counter": {name: spec for name, spec in SHAPES.items() if name != "1.num_batches_tracked"},
        "extra-tensor": {**SHAPES, "2.weight": ("F32", (3,))},
        "renamed-tensor": {name.replace("0.bias", "0.Bias"): spec for name, spec in SHAPES.items()},
        "name-with-a-path": {name.replace("0.bias", "../../bias"): spec for name, spec in SHAPES.items()},
        "name-of-an-attribute": {name.replace("0.bias", "__class__"): spec for name, spec in SHAPES.items()},
        "transposed": {**SHAPES, "0.weight": ("F32", (4, 3))},
        "flattened": {**SHAPES, "0.weight": ("F32", (12,))},
        "longer": {**SHAPES, "0.bias": ("F32", (4,))},
        "broadcastable": {**SHAPES, "0.bias": ("F32", (1,))},
        "without-dimensions": {**SHAPES, "0.bias": ("F32", ())},
        "empty-dimension": {**SHAPES, "0.bias": ("F32", (0, 3))},
        "doubles": {**SHAPES, "0.bias": ("F64", (3,))},
        "halves": {**SHAPES, "0.bias": ("F16", (3,))},
        "brain-floats": {**SHAPES, "0.bias": ("BF16", (3,))},
        "float-counter": {**SHAPES, "1.num_batches_tracked": ("F64", ())},
        "flags": {**SHAPES, "0.bias": ("BOOL", (3,))},
        "nothing": {},
    }
    for name, shapes in changed.items():
        data = bytes(_num_bytes(shapes))
        yield from _both(f"structure-{name}", model(shapes, data=data), "does not fit" if shapes else "")


def _num_bytes(shapes: Shapes) -> int:
    ends = [entry["data_offsets"][1] for entry in entries(shapes).values()]
    return max(ends, default=0)


def _values() -> Iterator[Case]:
    patterns = {"nan": 0x7FC00000, "infinity": 0x7F800000, "minus-infinity": 0xFF800000, "signalling-nan": 0x7F800001}
    for name, bits in patterns.items():
        for place, at in {"first": 0, "last-float": len(data_of(SHAPES)) - 12}.items():
            data = bytearray(data_of(SHAPES))
            data[at : at + 4] = struct.pack("<I", bits)
            yield from _both(f"values-{name}-{place}", model(data=bytes(data)), "NaN or infinity")


def _digests_and_lengths() -> Iterator[Case]:
    flipped = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    digest = digest_of(MODEL)

    def pulls(name: str, answer: bytes, error: str = UNTRUSTED, named: str = "") -> Iterator[Case]:
        yield Case(f"participate-{name}", "participate", {PULL: said(answer)}, error, named)
        yield Case(f"result-{name}", "result", {LATEST: said(answer)}, error, named)

    yield from pulls("one-bit-flipped", as_model(flipped, etag=digest), named="digest")
    yield from pulls("empty-body", whole(200, b"", TENSORS, f'ETag: "{digest}"'), "FedQuorumError")
    announced = head(200, f"Content-Type: {TENSORS}", f'ETag: "{digest}"', f"Content-Length: {len(MODEL)}")
    yield from pulls("cut-in-the-middle", announced + MODEL[:100], TRANSPORT, "cut")
    yield from pulls("reset-before-the-body", announced, TRANSPORT, "cut")
    longer = head(200, f"Content-Type: {TENSORS}", f'ETag: "{digest}"', f"Content-Length: {len(MODEL) + 1}")
    yield from pulls("one-byte-more", longer + MODEL + b"\0")
    yield from pulls("etag-of-another-model", as_model(flipped, etag="sha256:" + "0" * 64))
    for name, etag in {
        "with-a-path": "sha256:../../../../etc/passwd",
        "of-63-digits": digest[:-1],
        "in-capitals": digest.upper(),
        "of-md5": "md5:" + "0" * 32,
        "weak": f'W/"{digest}',
        "of-other-digits": "sha256:" + "\u0660" * 32,
    }.items():
        answer = head(200, f"Content-Length: {len(MODEL)}") + MODEL
        yield Case(
            f"result-etag-{name}",
            "result",
            {LATEST: said(answer.replace(b"\r\n", f'\r\nETag: "{etag}"\r\n'.encode(), 1))},
            named="ETag",
        )
    yield Case("result-no-etag", "result", {LATEST: said(whole(200, MODEL, TENSORS))}, named="ETag")
    big = head(200, f'ETag: "{digest}"', f"Content-Length: {1 << 50}")
    yield Case("result-announces-a-petabyte", "result", {LATEST: said(big)}, named="bytes")
    yield Case("result-204", "result", {LATEST: said(head(204))}, named="204")
    yield Case("participate-204", "participate", {PULL: said(head(204))}, named="204")


def _other_formats() -> Iterator[Case]:
    """Sends what other programs would unpickle, unpack or run."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(_Executed()))
        file.writestr("archive/version", "3\n")
    numpy_object = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + (
        pickle.dumps(_Executed())
    )
    for name, body in {
        "pickle": pickle.dumps(_Executed()),
        "pickle-protocol-0": pickle.dumps(_Executed(), protocol=0),
        "torch-zip": archive.getvalue(),
        "numpy-objects": numpy_object,
        "python": f"import os; os.environ['X'] = '{EXECUTED}'".encode(),
        "yaml": f"!!python/object/apply:os.system ['echo {EXECUTED}']".encode(),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
        "gzip": gzip.compress(MODEL),
        "html": b"<!doctype html><title>Sign in</title>" + b" " * 300,
    }.items():
        yield from _both(f"format-{name}", body, "safetensors")
    yield Case("claim-pickle", "claim", {CLAIM: said(whole(200, pickle.dumps(_Executed()), JSON))})


class _Executed:
    """Would show that it was unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (Path(f"/tmp/{EXECUTED}"),)


@functools.cache
def _bombs_of_zeros() -> dict[str, bytes]:
    zeros = bytes(128 * MIB)
    return {"gzip": gzip.compress(zeros, 1), "zstd": zstd.compress(zeros)}


def _encodings() -> Iterator[Case]:
    """Compressed answers that were not asked for, the bombs among them."""
    bombs = _bombs_of_zeros()
    for name, bomb in bombs.items():
        answer = whole(200, bomb, JSON, f"Content-Encoding: {name}")
        yield Case(f"claim-bomb-of-{name}", "claim", {CLAIM: said(answer)}, named="encoded")
        yield Case(f"events-bomb-of-{name}", "events", {FOLLOW: said(answer)})
        yield Case(f"create-run-bomb-of-{name}", "create_run", {CREATE: said(answer)}, named="encoded")
        coded = as_model(bomb, f"Content-Encoding: {name}", etag=digest_of(MODEL))
        yield Case(f"participate-bomb-of-{name}", "participate", {PULL: said(coded)}, named="encoded")
        yield Case(f"result-bomb-of-{name}", "result", {LATEST: said(coded)}, named="encoded")
        refusal = whole(500, bomb, PROBLEM, f"Content-Encoding: {name}")
        yield Case(f"claim-error-bomb-of-{name}", "claim", {CLAIM: said(refusal)}, named="encoded")
    twice = as_model(gzip.compress(bombs["gzip"]), "Content-Encoding: gzip, gzip", etag=digest_of(MODEL))
    yield Case("participate-bomb-of-gzip-in-gzip", "participate", {PULL: said(twice)}, named="encoded")
    odd = as_model(MODEL, "Content-Encoding: x-pickle")
    yield Case("participate-unknown-encoding", "participate", {PULL: said(odd)}, named="encoded")


def _redirects(elsewhere: str) -> Iterator[Case]:
    there = f"http://{elsewhere}"
    for status in (300, 301, 302, 303, 307, 308):
        moved = said(head(status, f"Location: {there}/stolen", "Content-Length: 0"))
        yield Case(f"claim-redirected-{status}", "claim", {CLAIM: moved}, named="redirects")
        yield Case(f"participate-pull-redirected-{status}", "participate", {PULL: moved}, named="redirects")
    moved = said(head(307, f"Location: {there}/stolen", "Content-Length: 0"))
    for act, call in {"put_update": SEND, "events": FOLLOW, "list_runs": LIST, "create_run": CREATE}.items():
        yield Case(f"{act}-redirected", act, {call: moved}, named="redirects")
    for name, target in {
        "to-a-file": "file:///etc/passwd",
        "without-a-scheme": f"//{elsewhere}/stolen",
        "to-a-script": "javascript:alert(1)",
        "with-a-name": f"http://admin:admin@{elsewhere}/",
        "to-nonsense": "http://[::1",
        "to-a-port-beyond": "http://127.0.0.1:99999999/",
        "to-a-giant": "http://" + "a" * 60_000,
        "to-escapes": "http://\x1b]0;owned\x07/".replace("\x07", "").replace("\x1b", "%1b"),
        "to-itself": f"/claim-redirected-to-itself/v1/runs/{RUN_ID}/tasks",
    }.items():
        lie = said(head(302, f"Location: {target}", "Content-Length: 0"))
        yield Case(f"claim-redirected-{name}", "claim", {CLAIM: lie}, "FedQuorumError")
    yield Case("claim-redirected-nowhere", "claim", {CLAIM: said(head(302, "Content-Length: 0"))}, named="redirects")
    advertised = as_json(
        problem(410, "run-finished"),
        status=410,
        kind=f'{PROBLEM}\r\nAlt-Svc: h2="{elsewhere}"; ma=999\r\nRefresh: 0; url={there}',
    )
    yield Case("claim-alternative-service", "claim", {CLAIM: said(advertised)}, "RunFinishedError")


def _tasks(elsewhere: str) -> Iterator[Case]:
    lies: dict[str, dict[str, Any]] = {
        "of-another-run": {"run_id": "run_other"},
        "with-a-path-as-digest": {"model_digest": "../../../../etc/passwd"},
        "with-a-path-in-its-digest": {"model_digest": "sha256:" + "../" * 21 + "a"},
        "with-a-digest-and-newline": {"model_digest": digest_of(MODEL) + "\n"},
        "with-a-digest-in-capitals": {"model_digest": digest_of(MODEL).upper()},
        "with-an-empty-digest": {"model_digest": ""},
        "with-a-digest-null": {"model_digest": None},
        "with-a-path-as-task-id": {"task_id": "../../v1/clients/x"},
        "with-a-query-as-task-id": {"task_id": "task?x=y"},
        "with-a-line-break-as-task-id": {"task_id": "task\r\nX-Injected: yes"},
        "with-an-empty-task-id": {"task_id": ""},
        "with-a-giant-task-id": {"task_id": "t" * 10_000},
        "with-a-task-id-null": {"task_id": None},
        "with-a-negative-version": {"base_version": -1},
        "with-a-giant-version": {"base_version": 10**4000},
        "with-a-version-of-5000-digits": {"base_version": 12345},
        "with-a-fraction-as-version": {"base_version": 0.5},
        "with-a-negative-round": {"round": -1},
        "with-a-negative-size": {"model_num_bytes": -1},
        "with-a-size-of-zero": {"model_num_bytes": 0},
        "with-a-size-of-a-petabyte": {"model_num_bytes": 1 << 50},
        "with-a-size-beyond-the-module": {"model_num_bytes": 100_000},
        "of-an-unknown-kind": {"kind": "execute"},
        "with-kind-null": {"kind": None},
        "with-an-unknown-encoding": {"encoding": {"kind": "pickle"}},
        "with-an-encoding-of-more-keys": {"encoding": {"kind": "dense", "codec": "os:system"}},
        "with-unknown-privacy": {"privacy": {"kind": "trust-me"}},
        "with-unknown-masking": {"secure_aggregation": {"kind": "trust-me"}},
        "with-secure-aggregation-null": {"secure_aggregation": None},
        "with-training-null": {"training": None},
        "with-negative-epochs": {"training": {"local_epochs": -1}},
        "with-endless-epochs": {"training": {"local_epochs": 10**18}},
        "with-text-as-epochs": {"training": {"local_epochs": "__import__('os').system('x')"}},
        "with-a-batch-of-zero": {"training": {"batch_size": 0}},
        "with-a-negative-learning-rate": {"training": {"learning_rate": -1}},
        "with-an-infinite-learning-rate": {"training": {"learning_rate": 1e400}},
        "with-a-time-that-is-none": {"deadline_at": "yesterday"},
        "with-a-time-beyond-all": {"deadline_at": "99999-01-01T00:00:00Z"},
        "with-everything-null": dict.fromkeys(task()),
    }
    for name, lie in lies.items():
        body = json.dumps(task(**lie)).replace("12345", "1" * 5000)
        answer = said(whole(201, body.encode(), JSON))
        yield Case(f"participate-task-{name}", "participate", {CLAIM: answer})
    pointers = {
        "to-another-host": f"http://{elsewhere}/v1/runs/{RUN_ID}/models/0",
        "without-a-scheme": f"//{elsewhere}/models/0",
        "up-the-path": "../../../../etc/passwd",
        "to-a-file": "file:///etc/passwd",
    }
    for name, url in pointers.items():
        script = _once(said(as_json(task(model_url=url), status=201)))
        yield Case(f"participate-model-url-{name}", "participate", {CLAIM: script}, "", trains=True)


def _once(script: Script) -> Script:
    """Says something the first time, and that the run is over from then on."""
    over = as_json(problem(410, "run-finished"), status=410, kind=PROBLEM)

    def first_then_over(seen: Seen) -> Iterator[bytes | Hold]:
        yield from script(seen) if seen.count == 0 else iter([over])

    return first_then_over


def _json() -> Iterator[Case]:
    for name, body in {
        "nothing": b"",
        "no-json": b"hello",
        "html": b"<html><body>Welcome to the hotel's wireless network</body></html>",
        "null": b"null",
        "a-list": b"[]",
        "a-number": b"1",
        "nan": b"NaN",
        "not-utf-8": b'{"task_id": "\xff\xfe"}',
        "utf-16": json.dumps(task()).encode("utf-16"),
        "two-objects": json.dumps(task()).encode() * 2,
        "a-lone-surrogate": json.dumps(task()).replace(TASK_ID, "\\ud800").encode(),
        "cut": json.dumps(task()).encode()[:-10],
        "deep-lists": b"[" * 500_000,
        "deep-objects": b'{"a":' * 300_000,
        "deep-in-training": json.dumps(task()).replace("0.1", "[" * 300 + "]" * 300).encode(),
    }.items():
        yield Case(f"claim-{name}", "claim", {CLAIM: said(whole(200, body, JSON))}, named="cannot be read")
    yield Case("get-run-html", "get_run", {LIST: said(whole(200, b"<html>", "text/html"))})
    yield Case("claim-answered-202", "claim", {CLAIM: said(as_json(task(), status=202))}, named="202")
    yield Case("claim-answered-206", "claim", {CLAIM: said(as_json(task(), status=206))}, named="206")


def _filled(template: dict[str, Any], filling: bytes) -> bytes:
    """Puts raw JSON in place of the one `"FILL"` of a template."""
    return json.dumps(template).encode().replace(b'"FILL"', filling)


def _bombs() -> Iterator[Case]:
    """Small JSON that grows when it is read, and large JSON."""
    room = 4 * MIB - 2000
    tasks = {
        "huge-integer": _filled(task(round="FILL"), b"9" * 1_000_000),
        "string-of-10-mb": _filled(task(model_url="FILL"), b'"' + b"x" * 10 * MIB + b'"'),
        "a-million-bad-keys": _filled(
            task(privacy="FILL"), json.dumps({f"{number:x}": 0 for number in range(250_000)}).encode()
        ),
        "empty-lists": _filled(task(training={"x": "FILL"}), b"[" + b"[]," * (room // 3) + b"[]]"),
        "empty-objects": _filled(task(training={"x": "FILL"}), b"[" + b"{}," * (room // 3) + b"{}]"),
    }
    few = 49_000
    tasks |= {
        "empty-objects-below-the-ceiling": _filled(task(round="FILL"), b"[" + b"{}," * few + b"{}]"),
        "bad-keys-below-the-ceiling": _filled(
            task(encoding="FILL"), json.dumps({f"{number:x}": 0 for number in range(few)}).encode()
        ),
    }
    for name, body in tasks.items():
        yield Case(f"claim-bomb-of-{name}", "claim", {CLAIM: said(whole(200, body, JSON))})
    wrong_items = b'{"items":[' + b"0," * (room // 2) + b'0],"next_cursor":null}'
    yield Case("list-runs-bomb-of-wrong-items", "list_runs", {LIST: said(whole(200, wrong_items, JSON))})
    wrong_few = b'{"items":[' + b"0," * 2 * few + b'0],"next_cursor":null}'
    yield Case("list-runs-wrong-items-below-the-ceiling", "list_runs", {LIST: said(whole(200, wrong_few, JSON))})
    nested = json.dumps({"items": [run()], "next_cursor": None}).replace(
        '{"name": "honest"}', '{"name": "honest", "training": {"x": [' + "[]," * (room // 3) + "[]]}}"
    )
    lie = said(whole(200, nested.encode(), JSON))
    yield Case("list-runs-bomb-of-empty-lists", "list_runs", {LIST: lie})
    junk: dict[str, Any] = {f"k{number:x}": [] for number in range(150_000)}
    refusal = as_json(problem(409, "state-conflict", **junk), status=409, kind=PROBLEM)
    yield Case("claim-bomb-in-a-problem", "claim", {CLAIM: said(refusal)}, "FedQuorumError")
    page = whole(502, b"<p>" * (3 * MIB), "text/html")
    yield Case("claim-error-page-of-9-mb", "claim", {CLAIM: said(page)}, "FedQuorumError")


def _not_http() -> Iterator[Case]:
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    for name, raw in {
        "noise": bytes(range(256)) * 8,
        "ssh": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        "http-0.9": b"<html>hello</html>\r\n\r\n",
        "http-9.9": b"HTTP/9.9 200 OK\r\n\r\n",
        "status-of-two-digits": b"HTTP/1.1 20 OK\r\n\r\n",
        "status-of-letters": b"HTTP/1.1 abc OK\r\n\r\n",
        "header-without-colon": ok + b"nonsense\r\n\r\n",
        "header-with-nul": ok + b"X-A: a\0b\r\n\r\n",
        "header-of-200-kb": ok + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n",
        "20000-headers": ok + b"".join(b"X-%d: a\r\n" % number for number in range(20_000)) + b"\r\n",
        "two-lengths": ok + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "negative-length": ok + b"Content-Length: -1\r\n\r\n{}",
        "length-of-30-digits": ok + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}",
        "chunk-of-garbage": ok + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        "chunk-of-negative-size": ok + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        "chunk-with-endless-extension": ok + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * 300_000,
        "unknown-transfer-encoding": ok + b"Transfer-Encoding: pickle\r\n\r\nhello",
    }.items():
        yield Case(f"claim-{name}", "claim", {CLAIM: said(raw)}, "FedQuorumError")
        yield Case(f"participate-pull-{name}", "participate", {PULL: said(raw)}, "FedQuorumError")
    switch = said(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhello")
    yield Case("claim-switched-protocols", "claim", {CLAIM: switch})
    giant = ok + f"Content-Length: {10**18}\r\n\r\n{{}}".encode()
    yield Case("claim-length-of-an-exabyte-cut", "claim", {CLAIM: said(giant)}, TRANSPORT)
    cut = ok + b"Transfer-Encoding: chunked\r\n\r\nff\r\nhello"
    yield Case("claim-chunk-cut", "claim", {CLAIM: said(cut)}, TRANSPORT, "cut")
    yield Case("claim-closed-without-a-word", "claim", {CLAIM: said()}, TRANSPORT)
    yield Case("claim-head-cut", "claim", {CLAIM: said(ok)}, TRANSPORT)


def _errors() -> Iterator[Case]:
    for name, status, body, kind, error in (
        ("html-502", 502, b"<html>Bad gateway</html>", "text/html", SERVER),
        ("html-404", 404, b"<html>Not here</html>", "text/html", SERVER),
        ("empty-500", 500, b"", "text/plain", SERVER),
        ("status-999", 999, b"{}", JSON, SERVER),
        ("problem-that-is-no-json", 409, b"oops", PROBLEM, UNTRUSTED),
        ("problem-that-is-a-list", 409, b"[]", PROBLEM, UNTRUSTED),
        ("problem-of-nulls", 409, json.dumps(dict.fromkeys(problem(409, "x"))).encode(), PROBLEM, UNTRUSTED),
        ("problem-too-deep", 409, b"[" * 50_000, PROBLEM, UNTRUSTED),
        ("problem-unknown", 418, json.dumps(problem(418, "teapot")).encode(), PROBLEM, SERVER),
        ("problem-of-a-python-name", 409, json.dumps(problem(409, "__class__")).encode(), PROBLEM, SERVER),
        ("unauthenticated", 401, json.dumps(problem(401, "unauthenticated")).encode(), PROBLEM, "UnauthenticatedError"),
    ):
        yield Case(f"claim-{name}", "claim", {CLAIM: said(whole(status, body, kind))}, error)
        yield Case(f"participate-pull-{name}", "participate", {PULL: said(whole(status, body, kind))}, error)
    escapes = problem(
        409, "state-conflict", detail="\x1b[2J\x1b]0;owned\x07\r\nerror: all is well\u202e" + "x" * 30_000
    )
    yield Case(
        "claim-problem-for-the-terminal",
        "claim",
        {CLAIM: said(as_json(escapes, status=409, kind=PROBLEM))},
        "StateConflictError",
    )


def _retry_after() -> Iterator[Case]:
    for name, wait in {
        "of-a-century": "3153600000",
        "of-1e300": "1e300",
        "of-400-digits": "9" * 400,
        "negative": "-1",
        "infinite": "inf",
        "nan": "nan",
        "in-the-year-9999": "Fri, 31 Dec 9999 23:59:59 GMT",
        "nonsense": "tomorrow",
    }.items():
        refusal = problem(503, "unavailable", retryable=True)
        later = whole(503, json.dumps(refusal).encode(), PROBLEM, f"Retry-After: {wait}")
        yield Case(f"claim-retry-after-{name}", "claim", {CLAIM: said(later)}, "UnavailableError")
        idle = said(head(204, f"Retry-After: {wait}"))
        yield Case(f"participate-idle-{name}", "participate", {CLAIM: _once(idle)}, "")


def _resumed() -> Iterator[Case]:
    """The first answer is cut in the middle; the lie is in what follows."""
    half = len(MODEL) // 2
    rest = MODEL[half:]
    size = len(MODEL)
    digest = digest_of(MODEL)

    def partial(content_range: str, body: bytes = rest, etag: str = digest) -> bytes:
        return whole(206, body, TENSORS, f'ETag: "{etag}"', f"Content-Range: {content_range}")

    lies = {
        "from-the-start": partial(f"bytes 0-{size - 1}/{size}"),
        "from-elsewhere": partial(f"bytes {half + 1}-{size - 1}/{size}"),
        "of-another-size": partial(f"bytes {half}-{size - 1}/{size + 1}"),
        "of-an-unknown-size": partial(f"bytes {half}-{size - 1}/*"),
        "of-negative-bytes": partial(f"bytes -5-{size - 1}/{size}"),
        "of-nonsense": partial("pickles 1-2/3"),
        "without-a-range": whole(206, rest, TENSORS, f'ETag: "{digest}"'),
        "of-other-bytes": partial(f"bytes {half}-{size - 1}/{size}", bytes(len(rest))),
        "of-more-bytes": partial(f"bytes {half}-{size - 1}/{size}", rest + b"x"),
        "of-another-etag": partial(f"bytes {half}-{size - 1}/{size}", etag="sha256:" + "a" * 64),
        "of-a-whole-other-model": as_model(bytes(size)),
    }
    for name, lie in lies.items():
        script = _cut_then(lie)
        yield Case(f"participate-resumed-{name}", "participate", {PULL: script})
        yield Case(f"result-resumed-{name}", "result", {LATEST: script})
    never = whole(416, b"", TENSORS, f"Content-Range: bytes */{size}")
    yield Case("participate-resumed-416", "participate", {PULL: _cut_then(never)}, "FedQuorumError")
    first = partial(f"bytes 0-{size - 1}/{size}")
    yield Case("result-partial-from-the-first", "result", {LATEST: said(first)})


def _cut_then(lie: bytes) -> Script:
    begun = head(200, f'ETag: "{digest_of(MODEL)}"', f"Content-Length: {len(MODEL)}") + MODEL[: len(MODEL) // 2]

    def script(seen: Seen) -> Iterator[bytes | Hold]:
        yield begun if seen.count == 0 else lie

    return script


def _lists() -> Iterator[Case]:
    def pages(name: str, page: Callable[[int], dict[str, Any]], error: str = UNTRUSTED) -> Case:
        def script(seen: Seen) -> Iterator[bytes | Hold]:
            yield as_json(page(seen.count))

        return Case(f"list-runs-{name}", "list_runs", {LIST: script}, error)

    yield pages("same-cursor-again", lambda _: {"items": [run()], "next_cursor": "again"})
    yield pages("two-cursors-in-turn", lambda count: {"items": [run()], "next_cursor": f"c{count % 2}"})
    yield pages("endless", lambda count: {"items": [run()] * 500, "next_cursor": f"c{count}"})
    yield pages("endless-and-empty", lambda count: {"items": [], "next_cursor": f"c{count}"})
    large = run(reason="x" * 500_000)
    yield pages("endless-and-large", lambda count: {"items": [large], "next_cursor": f"c{count}"})
    yield pages("giant-cursor", lambda count: {"items": [run()], "next_cursor": "x" * 2_000_000 + str(count)})
    yield pages("items-null", lambda _: {"items": None, "next_cursor": None})
    yield pages("an-item-null", lambda _: {"items": [None], "next_cursor": None})
    yield pages("cursor-of-an-object", lambda _: {"items": [], "next_cursor": {}})
    yield pages("no-items", lambda _: {})
    yield pages("unknown-state", lambda _: {"items": [run(state="owned")], "next_cursor": None})
    yield pages("cursor-with-a-line-break", lambda count: {"items": [], "next_cursor": "a\r\nX-Injected: 1"})


def _events() -> Iterator[Case]:
    stream = head(200, f"Content-Type: {EVENTS}")

    def sent(body: bytes) -> dict[str, Script]:
        return {FOLLOW: said(stream + body)}

    def endless(piece: bytes) -> dict[str, Script]:
        def script(seen: Seen) -> Iterator[bytes | Hold]:
            yield stream
            while True:
                yield piece

        return {FOLLOW: script}

    yield Case("events-endless-line", "events", endless(b"x" * 65_536), named="bytes")
    yield Case("events-endless-data-line", "events", endless(b"data: " + b"x" * 65_536), named="bytes")
    yield Case("events-endless-data-lines", "events", endless(b"data: x\n" * 8000), named="bytes")
    yield Case("events-endless-empty-data-lines", "events", endless(b"data:\n" * 10_000), named="bytes")
    for name, data in {
        "no-json": b"hello",
        "null": b"null",
        "a-list": b"[1]",
        "deep": b"[" * 100_000,
        "of-nulls": json.dumps(dict.fromkeys(event())).encode(),
        "of-a-huge-number": json.dumps(event()).replace("1", "1" * 5000, 1).encode(),
        "not-utf-8": b"\xff\xfe",
        "of-a-time-that-is-none": json.dumps(event(created_at="now")).encode(),
    }.items():
        yield Case(f"events-{name}", "events", sent(b"data: " + data + b"\n\n"), named="event")
    yield Case("events-html", "events", {FOLLOW: said(whole(200, b"<html>\n\n</html>", "text/html"))})
    yield Case("events-end-at-once", "events", sent(b""), TRANSPORT)
    backwards = b"".join(
        f"data: {json.dumps(event(number, type='round.opened', data={}))}\n\n".encode() for number in (5, 4)
    )
    yield Case("events-that-go-backwards", "events", sent(backwards))
    negative = f"data: {json.dumps(event(-5, type='round.opened', data={}))}\n\n".encode()
    yield Case("events-with-a-negative-number", "events", sent(negative))
    same = f"data: {json.dumps(event(1, type='round.opened', data={}))}\n\n".encode()
    yield Case("events-the-same-for-ever", "events", sent(same))


def _receipts() -> Iterator[Case]:
    def receipts(name: str, **lies: Any) -> Case:
        def script(seen: Seen) -> Iterator[bytes | Hold]:
            yield as_json(receipt(seen.body, **lies), status=201)

        return Case(f"receipt-{name}", "put_update", {SEND: script})

    yield receipts("for-other-bytes", digest="sha256:" + "0" * 64)
    yield receipts("with-an-empty-digest", digest="")
    yield receipts("for-another-task", task_id="task_other")
    yield receipts("with-a-digest-null", digest=None)
    yield receipts("with-a-size-of-text", num_bytes="many")
    yield receipts("of-nulls", **dict.fromkeys(receipt(b"")))
    lie = said(as_json(receipt(b"", digest="sha256:" + "0" * 64), status=201))
    yield Case("participate-receipt-for-other-bytes", "participate", {SEND: lie}, named="receipt", trains=True)
    refused = as_json(problem(422, "non-finite"), status=422, kind=PROBLEM)
    yield Case("participate-update-refused", "participate", {SEND: said(refused)}, "NonFiniteError", trains=True)
    page = whole(200, b"<html>", "text/html")
    yield Case("receipt-html", "put_update", {SEND: said(page)})
    yield Case("receipt-204", "put_update", {SEND: said(head(204))}, named="204")
    early = as_json(problem(413, "too-large"), status=413, kind=PROBLEM)
    yield Case("receipt-too-large", "put_update", {SEND: said(early)}, "TooLargeError")


def _runs() -> Iterator[Case]:
    lies: dict[str, dict[str, Any]] = {
        "with-a-path-as-id": {"run_id": "../../clients"},
        "with-a-query-as-id": {"run_id": "run?x=1"},
        "with-an-empty-id": {"run_id": ""},
        "with-id-null": {"run_id": None},
        "in-an-unknown-state": {"state": "owned"},
        "with-spec-null": {"spec": None},
        "with-a-strategy-that-is-unknown": {"spec": {"name": "honest", "strategy": {"kind": "pickle"}}},
    }
    for name, lie in lies.items():
        answer = said(as_json(run(**lie), status=201))
        yield Case(f"create-run-{name}", "create_run", {CREATE: answer})
    other = said(as_json(run(run_id="run_other")))
    yield Case("get-run-gives-another", "get_run", {LIST: other})


def _held(*pieces: bytes) -> Script:
    """Says something and then nothing more, and keeps the connection."""

    def script(seen: Seen) -> Iterator[bytes | Hold]:
        yield from pieces
        yield HOLD

    return script


def _dripping(piece: bytes) -> Script:
    """Says the same again and again, each time before the client's patience with silence ends."""

    def script(seen: Seen) -> Iterator[bytes | Hold]:
        while not threading.Event().wait(DRIP_SECONDS):
            yield piece

    return script


def _silence() -> Iterator[Case]:
    stream = head(200, f"Content-Type: {EVENTS}")
    begun = head(200, f'ETag: "{digest_of(MODEL)}"', f"Content-Length: {len(MODEL)}")
    for name, act, call, script in (
        ("claim", "claim", CLAIM, _held()),
        ("claim-after-the-head", "claim", CLAIM, _held(head(200, "Content-Length: 5"))),
        ("pull", "participate", PULL, _held()),
        ("pull-in-the-middle", "participate", PULL, _held(begun, MODEL[:50])),
        ("latest-in-the-middle", "result", LATEST, _held(begun, MODEL[:50])),
        ("events", "events", FOLLOW, _held(stream)),
        ("receipt", "put_update", SEND, _held()),
        ("model-that-is-waited-for", "wait_for_model", LATEST, _held()),
    ):
        yield Case(f"silence-{name}", act, {call: script}, TRANSPORT, "in time", slow=True)


def _floods() -> Iterator[Case]:
    """Answers that never end."""

    def flood(first: bytes, piece: bytes) -> Script:
        def script(seen: Seen) -> Iterator[bytes | Hold]:
            yield first
            while True:
                yield piece

        return script

    ok = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    endless = {
        "body": flood(ok + b"\r\n", b"[1]," * 16_384),
        "chunks": flood(ok + b"Transfer-Encoding: chunked\r\n\r\n", chunk),
        "error-body": flood(b"HTTP/1.1 500 x\r\nContent-Type: text/html\r\n\r\n", b"<p>" * 20_000),
        "header": flood(ok + b"X-A: ", b"a" * 65_536),
        "headers": flood(ok, b"X-A: b\r\n" * 8000),
    }
    for name, script in endless.items():
        for act, call in (("claim", CLAIM), ("participate", PULL), ("put_update", SEND), ("result", LATEST)):
            yield Case(f"endless-{name}-{act}", act, {call: script}, "FedQuorumError")
    begun = f'HTTP/1.1 200 x\r\nETag: "{digest_of(MODEL)}"\r\n'.encode()
    for name, first in {"body": begun + b"\r\n", "chunked-body": begun + b"Transfer-Encoding: chunked\r\n\r\n"}.items():
        script = flood(first, chunk)
        yield Case(f"endless-model-{name}", "participate", {PULL: script}, named="more than")
    informed = b"HTTP/1.1 102 Processing\r\nX-A: b\r\n\r\n"
    flooded = {CLAIM: flood(b"", informed * 50)}
    yield Case("endless-informational-answers", "claim", flooded, TRANSPORT, "in time")
    for act, call in (("claim", CLAIM), ("participate", PULL), ("put_update", SEND), ("events", FOLLOW)):
        script = _dripping(informed)
        yield Case(f"dripping-informational-answers-{act}", act, {call: script}, TRANSPORT, "in time", slow=True)
    cookies = as_json(problem(410, "run-finished"), status=410, kind=f"{PROBLEM}\r\nSet-Cookie: " + "a=b; " * 10_000)
    yield Case("claim-cookie-of-50-kb", "claim", {CLAIM: said(cookies)}, "RunFinishedError")
