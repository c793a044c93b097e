"""The bounds of HTTP itself: heads, bodies, ranges and numbers beyond them are refused quickly on both databases."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from urllib.parse import quote

import httpx
import pytest

from aggregator_service.api.http_protocol import HEADER_SECONDS, MAX_HEADER_BYTES, MAX_HEADERS
from tests.support.databases import SHARED_ON_SQLITE
from tests.support.participant import create_run, enrol, pack, small_model, update_body
from tests.support.raw import RawAnswer, connect, exchange, read_answer
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess
from tests.support.stored import Stored

MAX_SECONDS = 1.0
MANY = 2**53, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 10**30, int("9" * 4000)


@pytest.fixture(scope="module")
def stored(shared_server: ServerProcess) -> Iterator[Stored]:
    with Stored(shared_server.database_url) as database:
        yield database


@dataclass(frozen=True)
class Named:
    """What requests may name: a run with a model, a task and its client's token."""

    run_id: str
    task_id: str
    token: str


@pytest.fixture(scope="module")
def named(shared_operator: httpx.Client) -> Named:
    run_id = create_run(shared_operator, small_model(), round={"quorum": 4})
    client = enrol(shared_operator, "bounds")
    return Named(run_id, client.claim(run_id).json()["task_id"], client.token)


def _head(server: ServerProcess, *lines: str, method: str = "GET", target: str = "/v1/runs") -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: test", f"Authorization: Bearer {server.operator_token}", *lines]
    return "\r\n".join([*head, "", ""]).encode("latin-1")


def _assert_refused_as_malformed(answer: RawAnswer, text: str) -> None:
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
    assert b"/problems/malformed-request" in answer.body
    assert text.encode() in answer.body
    assert answer.headers["connection"] == "close"


# Heads.


def test_headers_up_to_the_bounds_are_taken_and_one_more_is_not(shared_server: ServerProcess) -> None:
    extra = MAX_HEADERS - 2
    assert exchange(shared_server.url, _head(shared_server, *["X: y"] * extra)).status == 200
    refused = exchange(shared_server.url, _head(shared_server, *["X: y"] * (extra + 1)))
    _assert_refused_as_malformed(refused, f"more than {MAX_HEADERS} headers")


@pytest.mark.parametrize("num_bytes", [MAX_HEADER_BYTES, 60_000, 1 << 20, 8 << 20])
@pytest.mark.parametrize("place", ["value", "name", "target", "query"])
def test_head_beyond_its_bytes_is_refused_however_it_is_filled(
    shared_server: ServerProcess, num_bytes: int, place: str
) -> None:
    filler = "x" * num_bytes
    heads = {
        "value": _head(shared_server, f"X: {filler}"),
        "name": _head(shared_server, f"{filler}: y"),
        "target": _head(shared_server, target=f"/v1/{filler}"),
        "query": _head(shared_server, target=f"/v1/runs?cursor={filler}"),
    }
    started = time.perf_counter()
    answer = exchange(shared_server.url, heads[place])
    assert answer.status in (0, 400), answer  # 0: refused while it was still being sent
    assert time.perf_counter() - started < 2 * MAX_SECONDS
    if num_bytes <= 60_000:
        _assert_refused_as_malformed(answer, f"{MAX_HEADER_BYTES} bytes")


def test_head_below_the_bound_is_taken(shared_server: ServerProcess) -> None:
    assert exchange(shared_server.url, _head(shared_server, f"X: {'x' * (MAX_HEADER_BYTES - 1000)}")).status == 200


def test_endless_heads_and_trailers_do_not_make_the_server_grow(shared_server: ServerProcess, named: Named) -> None:
    """A parser keeps what it has not yet understood: a header, a trailer or a chunk's extension that never ends."""
    before = shared_server.resident_megabytes()
    chunked = _head(
        shared_server,
        "Transfer-Encoding: chunked",
        "Content-Type: application/octet-stream",
        method="PUT",
        target=f"/v1/runs/{named.run_id}/models/0",
    )
    for beginning in (
        _head(shared_server)[:-2] + b"X: ",
        b"GET /",
        b"",
        chunked + b"0\r\nX: ",
        chunked + b"5;x=",
        chunked + b"0",
    ):
        with connect(shared_server.url) as link:
            assert _flood(link, beginning).status in (0, 400)
    assert shared_server.resident_megabytes() - before < 32


def _flood(link: socket.socket, beginning: bytes) -> RawAnswer:
    """Sends 64 MiB after a beginning, or as much as the server takes; gives its answer."""
    try:
        link.sendall(beginning)
        for _ in range(64):
            link.sendall(b"0" * (1 << 20))
    except (BrokenPipeError, ConnectionResetError):
        return RawAnswer(0, Message(), b"")
    return read_answer(link)


@pytest.mark.parametrize(
    "line",
    ["No colon here", "X Y: z", ": empty name", "X\0: y", "X: a\0b", "Content-Length: 1, 2", " folded: x", "X: \x01"],
)
def test_header_that_is_none_is_refused(shared_server: ServerProcess, line: str) -> None:
    answer = exchange(shared_server.url, _head(shared_server, line))
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"get /v1/runs HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n\r\n\0\0\0\0",
    ],
)
def test_what_is_no_request_is_refused_by_a_problem(shared_server: ServerProcess, request_bytes: bytes) -> None:
    answer = exchange(shared_server.url, request_bytes, half_close=True)
    assert answer.status == 400, answer
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
def test_upgrade_is_not_followed(shared_server: ServerProcess, protocol: str) -> None:
    lines = ("Connection: Upgrade", f"Upgrade: {protocol}", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13")
    assert exchange(shared_server.url, _head(shared_server, *lines)).status in (200, 400)


@SHARED_ON_SQLITE
def test_slow_senders_are_let_go_in_time_and_others_are_served(shared_server: ServerProcess, named: Named) -> None:
    """Heads and bodies that trickle, or stop, are given up; meanwhile an honest caller waits for nobody.

    A connection on which something was answered is kept for longer than its client keeps it: nobody sends in vain.
    """
    expiry = httpx.Limits().keepalive_expiry
    assert expiry is not None
    assert expiry < HEADER_SECONDS
    body_head = _head(shared_server, "Content-Type: application/json", "Content-Length: 5000", method="POST")
    tensor_head = (
        f"PUT /v1/tasks/{named.task_id}/update HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {named.token}\r\n"
        "Content-Type: application/octet-stream\r\nContent-Length: 5000\r\n\r\n"
    ).encode()
    beginnings = [b"", b"GET /v1/runs HTTP/1.1\r\nX-Slow: ", body_head + b"{", tensor_head + b"\x10"] * 8
    deadline = time.monotonic() + HEADER_SECONDS + 8
    with connect(shared_server.url) as idle, ThreadPoolExecutor(len(beginnings)) as pool:
        idle.sendall(_head(shared_server))
        assert read_answer(idle).status == 200
        jobs = [pool.submit(_trickle, shared_server.url, beginning, deadline) for beginning in beginnings]
        with shared_server.http() as operator:
            for _ in range(20):
                started = time.perf_counter()
                assert operator.get("/v1/runs", params={"limit": 1}).status_code == 200
                assert time.perf_counter() - started < 2 * MAX_SECONDS
        statuses = [job.result() for job in jobs]
        # These took longer than httpx keeps a connection.
        idle.sendall(_head(shared_server))
        assert read_answer(idle).status == 200
    assert set(statuses[0::4] + statuses[1::4]) == {0}
    assert set(statuses[2::4] + statuses[3::4]) == {408}


def _trickle(url: str, beginning: bytes, deadline: float) -> int:
    """Sends a byte now and then until the server has enough of it; gives the status of its answer, 0 for none."""
    with connect(url, timeout_seconds=0.5) as link:
        link.sendall(beginning)
        received = b""
        while time.monotonic() < deadline:
            try:
                received = link.recv(1 << 16)
                break
            except TimeoutError:
                link.sendall(b"x" if beginning else b"")
            except ConnectionResetError:
                break
        else:
            raise AssertionError("the connection is still open")
        return int(received.split()[1]) if received else 0


# JSON bodies.


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/clients", "/v1/enrolment-tokens"])
def test_json_beyond_64_kibibytes_is_too_large(
    shared_server: ServerProcess, shared_operator: httpx.Client, stored: Stored, path: str
) -> None:
    before = stored.counts("runs", "clients", "tokens")
    filler = b'{"name": "' + b"x" * (64 << 10) + b'"}'
    headers = {"Content-Type": "application/json"}
    assert_refused(shared_operator.post(path, content=filler, headers=headers), "too-large")
    chunks = (filler[begin : begin + 1000] for begin in range(0, len(filler), 1000))
    assert_refused(shared_operator.post(path, content=chunks, headers=headers), "too-large")
    lies = _head(
        shared_server, "Content-Type: application/json", f"Content-Length: {1 << 40}", method="POST", target=path
    )
    assert exchange(shared_server.url, lies + b"{").status == 413
    assert stored.counts("runs", "clients", "tokens") == before


def test_evaluation_beyond_64_kibibytes_is_too_large(shared_operator: httpx.Client, named: Named) -> None:
    answer = shared_operator.put(
        f"/v1/tasks/{named.task_id}/evaluation",
        content=b'{"num_examples": 1, "metrics": {' + b" " * (64 << 10) + b"}}",
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {named.token}"},
    )
    assert_refused(answer, "too-large")


def test_body_that_nothing_asked_for_is_harmless(shared_operator: httpx.Client, named: Named) -> None:
    for body in (b"x", b"x" * (1 << 20)):
        answer = shared_operator.request("GET", f"/v1/runs/{named.run_id}", content=body)
        assert answer.status_code in (200, 413)
        assert shared_operator.request("GET", "/v1/nothing", content=body).status_code in (404, 413)


# Ranges.

WHOLE = pack(small_model())
SIZE = len(WHOLE)
RANGES: dict[str, int | bytes] = {
    "bytes=0-0": WHOLE[:1],
    "bytes=0-": WHOLE,
    f"bytes=0-{SIZE - 1}": WHOLE,
    f"bytes=0-{SIZE}": WHOLE,
    f"bytes={SIZE - 1}-": WHOLE[-1:],
    "bytes=5-9": WHOLE[5:10],
    "bytes=-1": WHOLE[-1:],
    f"bytes=-{SIZE}": WHOLE,
    f"bytes=-{SIZE + 1}": WHOLE,
    "bytes=-999999999999999": WHOLE,
    "bytes=5-999999999999999": WHOLE[5:],
    f"bytes={SIZE}-": 416,
    "bytes=999999999999999-": 416,
    "bytes=-0": 416,
    "bytes=9-5": 200,
    "bytes=": 200,
    "bytes=-": 200,
    "bytes=x-y": 200,
    "bytes=0-1,5-6": 200,
    "bytes=0-0,-1": 200,
    "bytes=" + "0-0," * 60: 200,
    "bytes=0-1-2": 200,
    "bytes=+1-2": 200,
    "bytes= 0-1": 200,
    "bytes=0x1-0x2": 200,
    "bytes=1e1-2e1": 200,
    "items=0-1": 200,
    "bytes=9223372036854775808-": 200,
    "bytes=-18446744073709551616": 200,
    "bytes": 200,
    "": 200,
    "bytes=" + "0" * 200 + "-1": 200,
    "bytes=0-" + "9" * 240: 200,
    "bytes=" + "-" * 250: 200,
}


@pytest.mark.parametrize("header", RANGES, ids=lambda header: header[:30])
def test_range_gives_its_part_or_the_whole_or_416_quickly(
    shared_operator: httpx.Client, named: Named, header: str
) -> None:
    expected = RANGES[header]
    started = time.perf_counter()
    answer = shared_operator.get(
        f"/v1/runs/{named.run_id}/models/0", headers={"Range": header, "Accept-Encoding": "identity"}
    )
    assert time.perf_counter() - started < MAX_SECONDS
    if isinstance(expected, bytes):
        assert (answer.status_code, answer.content) == (206, expected)
        assert int(answer.headers["content-length"]) == len(expected)
        assert answer.headers["content-range"].endswith(f"/{SIZE}")
    elif expected == 416:
        assert_refused(answer, "range-not-satisfiable", str(SIZE))
        assert answer.headers["content-range"] == f"bytes */{SIZE}"
    else:
        assert (answer.status_code, answer.content) == (200, WHOLE)


@pytest.mark.parametrize("header", ["bytes=" + "0-0," * 5000, "bytes=" + "0" * 20_000 + "-", "bytes=0-" + "9" * 20_000])
def test_giant_range_is_refused_quickly(shared_operator: httpx.Client, named: Named, header: str) -> None:
    started = time.perf_counter()
    answer = shared_operator.get(f"/v1/runs/{named.run_id}/models/0", headers={"Range": header})
    assert_refused(answer, "invalid-request", "Range")
    assert time.perf_counter() - started < MAX_SECONDS


def test_range_counts_only_for_the_version_it_was_begun_with(shared_operator: httpx.Client, named: Named) -> None:
    url = f"/v1/runs/{named.run_id}/models/latest"
    etag = shared_operator.get(url).headers["etag"]
    for if_range, status in ((etag, 206), ('"other"', 200), (f"W/{etag}", 200), ("", 200), ("*", 200)):
        headers = {"Range": "bytes=3-7", "If-Range": if_range, "Accept-Encoding": "identity"}
        answer = shared_operator.get(url, headers=headers)
        assert (answer.status_code, answer.content) == (status, WHOLE[3:8] if status == 206 else WHOLE)


def test_conditional_headers_of_any_size_are_read_quickly(shared_operator: httpx.Client, named: Named) -> None:
    url = f"/v1/runs/{named.run_id}/models/0"
    etag = shared_operator.get(url).headers["etag"]
    for header, status in (
        (etag, 304),
        (f'"x", W/{etag}', 304),
        ("*", 304),
        ('"x"', 200),
        ("," * 8000, 200),
        ('"' * 8000, 200),
    ):
        started = time.perf_counter()
        assert shared_operator.get(url, headers={"If-None-Match": header}).status_code == status
        assert time.perf_counter() - started < MAX_SECONDS
    for header in ("gzip," * 1500, "zstd;q=" + "9" * 8000, ";" * 8000, "zstd;q=0", "*;q=0"):
        answer = shared_operator.get(url, headers={"Accept-Encoding": header})
        assert answer.status_code == 200
        assert answer.content == WHOLE or "content-encoding" in answer.headers


# Numbers and names in paths and queries.


@pytest.mark.parametrize("number", [*MANY, -1, -(2**63)], ids=lambda number: str(number)[:24])
def test_number_beyond_its_bounds_is_refused_wherever_it_stands(
    shared_operator: httpx.Client, named: Named, number: int
) -> None:
    base = f"/v1/runs/{named.run_id}"
    for url in (
        f"{base}/rounds/{number}",
        f"{base}/rounds/{number}/updates",
        f"{base}/models/{number}",
        f"{base}/models/latest?after={number}" if number != -1 else f"{base}/rounds?limit={number}",
        f"{base}/models/latest?wait={number}",
        f"{base}/rounds?limit={number}",
        f"/v1/runs?limit={number}",
        f"/v1/clients?limit={number}",
    ):
        started = time.perf_counter()
        assert_refused(shared_operator.get(url), "invalid-request")
        assert time.perf_counter() - started < MAX_SECONDS


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "1.0",
        "1e3",
        "0x1",
        "+1",
        "1_0",
        "\u0665",
        "%00",
        "1%00",
        "1%0d%0a2",
        "-0",
        "00",
        "NaN",
        "true",
        "null",
        "[1]",
    ],
)
def test_word_in_place_of_a_number_is_never_an_error_of_the_server(
    shared_operator: httpx.Client, named: Named, text: str
) -> None:
    base = f"/v1/runs/{named.run_id}"
    for url in (
        f"{base}/rounds/{text}",
        f"{base}/models/{text}",
        f"{base}/rounds/{text}/updates",
        f"{base}/rounds?limit={text}",
    ):
        answer = shared_operator.get(url)
        assert answer.status_code < 500, (url, answer.text)
        if text not in ("+1", "00", "-0", "\u0665", "1.0", "1_0", " "):
            assert answer.status_code in (404, 422), (url, answer.text)


NAMES = [
    "%00",
    "run_%00",
    "%0d%0aSet-Cookie:%20a=b",
    "%0a",
    "..",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cwindows",
    "%2f",
    "%252e%252e",
    "%ff%fe",
    "%c0%ae%c0%ae",
    "%ed%a0%80",
    "%f0%9f%98%80",
    "%e2%80%ae",
    "'%20OR%20'1'='1",
    "%22%3b%20DROP%20TABLE%20runs%3b--",
    "%3cscript%3ealert(1)%3c%2fscript%3e",
    "${jndi:ldap://x}",
    "{run_id}",
    "run_" + "0" * 31,
    "run_" + "0" * 33,
    "run_" + "G" * 32,
    "x" * 20_000,
    quote("\u0661" * 32),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:30])
def test_strange_identifier_is_not_found_in_every_place(shared_operator: httpx.Client, named: Named, name: str) -> None:
    headers = {"Authorization": f"Bearer {named.token}"}
    requests = [
        ("GET", f"/v1/runs/{name}", {}),
        ("GET", f"/v1/runs/{name}/models/latest", {}),
        ("GET", f"/v1/runs/{name}/events", {}),
        ("POST", f"/v1/runs/{name}/start", {}),
        ("POST", f"/v1/runs/{name}/tasks", headers),
        ("DELETE", f"/v1/clients/{name}", {}),
        ("DELETE", f"/v1/tasks/{name}", headers),
    ]
    for method, url, further in requests:
        answer = shared_operator.request(method, url, headers=further)
        assert answer.status_code in (404, 405), (method, url, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("name", ["a\r\nb", "a\0b", "x" * 50_000, "\ud800", "\u202e", "😀", "a\x7f"], ids=ascii)
def test_strange_name_is_refused_in_every_body(shared_operator: httpx.Client, stored: Stored, name: str) -> None:
    before = stored.counts("runs", "clients")
    for path in ("/v1/runs", "/v1/clients"):
        content = f'{{"name": {_json(name)}}}'.encode()
        answer = shared_operator.post(path, content=content, headers={"Content-Type": "application/json"})
        assert_refused(answer, "invalid-request", "name")
    assert stored.counts("runs", "clients") == before


def _json(text: str) -> str:
    return json.dumps(text)


def test_query_of_many_parameters_is_harmless(shared_operator: httpx.Client) -> None:
    for query in (
        "limit=1&" * 3000,
        "&" * 20_000,
        "=" * 20_000,
        "a=" + "%00" * 5000,
        "limit=1&limit=0",
        "%ff=%ff",
        ";" * 9000,
    ):
        started = time.perf_counter()
        answer = shared_operator.get(f"/v1/runs?{query}")
        assert answer.status_code in (200, 422), answer.text
        assert time.perf_counter() - started < MAX_SECONDS


def test_metadata_of_an_update_reaches_the_operator_as_it_was_sent(shared_operator: httpx.Client) -> None:
    """Names of metrics are the strings that clients choose most freely; both databases give them back alike."""
    run_id = create_run(shared_operator, small_model(), round={"quorum": 2})
    client = enrol(shared_operator, "metrics")
    metrics = {"a": 1e300, "A": -1e300, "a.b/c@d-e_f": 5e-324, "_" * 64: 0.1 + 0.2, "zero": -0.0}
    delta = {name: values * 0 for name, values in small_model().items()}
    body = update_body(delta, num_examples=2**53 - 1, metrics=metrics)
    assert client.put(client.claim(run_id).json()["task_id"], body).status_code == 201
    listed = shared_operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"]
    assert [(update["metrics"], update["num_examples"]) for update in listed] == [(metrics, 2**53 - 1)]


# Waits.


def test_a_held_request_ends_when_its_sender_leaves(
    shared_server: ServerProcess, shared_operator: httpx.Client, named: Named
) -> None:
    def num_held() -> float:
        return float(shared_operator.get("/metrics").text.partition("\nfedquorum_waiting_requests ")[2].split()[0])

    def wait_until_held(number: float) -> None:
        give_up_at = time.monotonic() + 20
        while num_held() != number:
            assert time.monotonic() < give_up_at
            time.sleep(0.02)

    before = num_held()
    target = f"/v1/runs/{named.run_id}/models/latest?after=0&wait=60"
    held = _head(shared_server, target=target)
    connections = [connect(shared_server.url) for _ in range(10)]
    for connection in connections:
        connection.sendall(held)
    wait_until_held(before + 10)
    for connection in connections:
        connection.close()
    wait_until_held(before)
