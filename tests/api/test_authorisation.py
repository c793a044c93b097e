"""Who may do what: every operation of the server's own OpenAPI document, tried by every kind of caller."""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI

from aggregator_service.api import problems
from aggregator_service.api.application import create_application
from aggregator_service.api.bodies import BoundedRoute
from aggregator_service.api.dependencies import allow, authenticated
from aggregator_service.domain.records import TokenKind, TokenRecord
from aggregator_service.telemetry import Telemetry
from tests.support.databases import SHARED_ON_SQLITE
from tests.support.helper_mode import HELPER_PHASES, HelperParty, at_helper_phase
from tests.support.masked import BYTES, PHASES, MaskedClient, at_phase
from tests.support.participant import (
    MEDIA_TYPE,
    create_run,
    enrol,
    evaluated_run,
    pack,
    scaffold_run,
    small_model,
    update_body,
)
from tests.support.raw import exchange
from tests.support.refusals import STATUS, assert_refused
from tests.support.server import ServerProcess
from tests.support.stored import Stored

IDENTITIES = ("none", "unknown", "revoked", "expired", "spent", "enrolment", "other", "client", "helper", "operator")
"""`client` holds the task that an operation names, `other` is a client like it; `spent` has enrolled all it may;
`helper` is the one that is asked."""

NOBODY = ("none", "unknown", "revoked", "expired")

SECRET_TABLES = (
    "runs",
    "models",
    "rounds",
    "clients",
    "run_clients",
    "tasks",
    "updates",
    "evaluations",
    "tokens",
    "idempotency_keys",
    "identity_keys",
    "seats",
    "sessions",
    "session_members",
    "session_messages",
    "contributions",
    "mask_sums",
    "mask_requests",
    "uploads",
    "upload_segments",
)


@dataclass(frozen=True)
class Row:
    """One operation: a request that is right in every way but who sends it, and who may send it."""

    path: str
    allowed: Mapping[str, int]
    json: Any = None
    tensors: Callable[[], bytes] | None = None
    draft: bool = False
    evaluates: bool = False
    run: str = ""
    is_open: bool = False
    phase: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    stranger: str = "forbidden"
    strangers: Sequence[str] = ("other",)


def _may(status: int, *identities: str) -> dict[str, int]:
    return dict.fromkeys(identities, status)


READERS = _may(200, "operator", "client", "other")
OPERATOR = _may(200, "operator")
DELTA = {name: values * 0 for name, values in small_model().items()}
EVERYONE = _may(200, *IDENTITIES)
MEMBERS = _may(200, "operator", "client")
OWN = _may(200, "client")
SENT = _may(201, "client")
HELPER = _may(200, "helper")


def _session_row(path: str, allowed: Mapping[str, int], phase: str) -> Row:
    """Describes an operation on a session, of which clients that are not in it know nothing."""
    return Row(f"/v1/sessions/{{session_id}}{path}", allowed, phase=phase, stranger="not-found")


BEGIN = {"Content-Type": MEDIA_TYPE, "Upload-Length": "9", "Upload-Complete": "?0"}
APPEND = {"Content-Type": "application/partial-upload", "Upload-Offset": "0", "Upload-Complete": "?0"}


def _upload_row(headers: Mapping[str, str]) -> Row:
    """Describes an operation on a client's upload, of which nobody else knows anything."""
    own = _may(204, "client")
    return Row("/v1/uploads/{upload_id}", own, headers=headers, stranger="not-found", strangers=("other", "operator"))


TABLE: dict[tuple[str, str], Row] = {
    ("POST", "/v1/runs"): Row("/v1/runs", _may(201, "operator"), json={}),
    ("GET", "/v1/runs"): Row("/v1/runs", READERS),
    ("GET", "/v1/runs/{run_id}"): Row("/v1/runs/{run_id}", READERS),
    ("POST", "/v1/runs/{run_id}/start"): Row("/v1/runs/{run_id}/start", OPERATOR),
    ("POST", "/v1/runs/{run_id}/pause"): Row("/v1/runs/{run_id}/pause", OPERATOR),
    ("POST", "/v1/runs/{run_id}/resume"): Row("/v1/runs/{run_id}/resume", OPERATOR),
    ("POST", "/v1/runs/{run_id}/stop"): Row("/v1/runs/{run_id}/stop", OPERATOR),
    ("POST", "/v1/runs/{run_id}/rollback"): Row(
        "/v1/runs/{run_id}/rollback", _may(201, "operator"), json={"version": 0}
    ),
    ("GET", "/v1/runs/{run_id}/privacy"): Row("/v1/runs/{run_id}/privacy", READERS),
    ("GET", "/v1/runs/{run_id}/privacy/ledger"): Row("/v1/runs/{run_id}/privacy/ledger", READERS),
    ("GET", "/v1/runs/{run_id}/rounds"): Row("/v1/runs/{run_id}/rounds", READERS),
    ("GET", "/v1/runs/{run_id}/rounds/{number}"): Row("/v1/runs/{run_id}/rounds/1", READERS),
    ("GET", "/v1/runs/{run_id}/rounds/{number}/updates"): Row("/v1/runs/{run_id}/rounds/1/updates", OPERATOR),
    ("GET", "/v1/runs/{run_id}/models"): Row("/v1/runs/{run_id}/models", READERS),
    ("GET", "/v1/runs/{run_id}/models/{version}"): Row("/v1/runs/{run_id}/models/0", READERS),
    ("GET", "/v1/runs/{run_id}/models/latest"): Row("/v1/runs/{run_id}/models/latest", READERS),
    ("GET", "/v1/runs/{run_id}/models/best"): Row("/v1/runs/{run_id}/models/best", READERS, run="evaluated"),
    ("GET", "/v1/runs/{run_id}/models/{version}/control-variate"): Row(
        "/v1/runs/{run_id}/models/1/control-variate", _may(200, "operator", "client", "other"), run="scaffold"
    ),
    ("GET", "/v1/runs/{run_id}/models/{version}/export"): Row("/v1/runs/{run_id}/models/0/export", OPERATOR),
    ("PUT", "/v1/runs/{run_id}/models/0"): Row(
        "/v1/runs/{run_id}/models/0", _may(201, "operator"), tensors=lambda: pack(small_model()), draft=True
    ),
    ("GET", "/v1/runs/{run_id}/events"): Row("/v1/runs/{run_id}/events", READERS),
    ("POST", "/v1/runs/{run_id}/tasks"): Row("/v1/runs/{run_id}/tasks", _may(200, "client") | _may(201, "other")),
    ("GET", "/v1/runs/{run_id}/exclusions"): Row("/v1/runs/{run_id}/exclusions", OPERATOR),
    ("PUT", "/v1/runs/{run_id}/exclusions/{client_id}"): Row(
        "/v1/runs/{run_id}/exclusions/{client_id}", _may(201, "operator"), json={"reason": "sends noise"}
    ),
    ("DELETE", "/v1/runs/{run_id}/exclusions/{client_id}"): Row(
        "/v1/runs/{run_id}/exclusions/{client_id}", _may(204, "operator")
    ),
    ("POST", "/v1/enrolment-tokens"): Row("/v1/enrolment-tokens", _may(201, "operator"), json={}),
    ("POST", "/v1/clients"): Row("/v1/clients", _may(201, "operator", "enrolment"), json={"name": "new"}),
    ("GET", "/v1/clients"): Row("/v1/clients", OPERATOR),
    ("DELETE", "/v1/clients/{client_id}"): Row("/v1/clients/{client_id}", _may(204, "operator")),
    ("DELETE", "/v1/tasks/{task_id}"): Row("/v1/tasks/{task_id}", _may(204, "client")),
    ("PUT", "/v1/tasks/{task_id}/update"): Row(
        "/v1/tasks/{task_id}/update", _may(201, "client"), tensors=lambda: update_body(DELTA, num_examples=1)
    ),
    ("POST", "/v1/tasks/{task_id}/uploads"): Row("/v1/tasks/{task_id}/uploads", _may(201, "client"), headers=BEGIN),
    ("POST", "/v1/runs/{run_id}/models/0/uploads"): Row(
        "/v1/runs/{run_id}/models/0/uploads", _may(201, "operator"), headers=BEGIN, draft=True
    ),
    ("HEAD", "/v1/uploads/{upload_id}"): _upload_row({}),
    ("PATCH", "/v1/uploads/{upload_id}"): _upload_row(APPEND),
    ("DELETE", "/v1/uploads/{upload_id}"): _upload_row({}),
    ("PUT", "/v1/tasks/{task_id}/evaluation"): Row(
        "/v1/tasks/{task_id}/evaluation", _may(201, "client"), json={"num_examples": 1, "metrics": {}}, evaluates=True
    ),
    ("PUT", "/v1/clients/{client_id}/identity-key"): Row(
        "/v1/clients/{client_id}/identity-key", _may(200, "client"), phase="shares"
    ),
    ("GET", "/v1/clients/{client_id}/identity-key"): Row(
        "/v1/clients/{client_id}/identity-key", READERS, phase="shares"
    ),
    ("GET", "/v1/manifest-key"): Row(
        "/v1/manifest-key", _may(200, "operator", "client", "other", "enrolment", "spent")
    ),
    ("GET", "/v1/runs/{run_id}/manifests"): Row("/v1/runs/{run_id}/manifests", READERS, phase="shares"),
    ("GET", "/v1/runs/{run_id}/manifests/{sequence}"): Row("/v1/runs/{run_id}/manifests/1", READERS, phase="shares"),
    ("GET", "/v1/runs/{run_id}/rounds/{number}/sessions"): Row(
        "/v1/runs/{run_id}/rounds/1/sessions", READERS, phase="shares"
    ),
    ("PUT", "/v1/tasks/{task_id}/seat"): Row("/v1/tasks/{task_id}/seat", _may(201, "client"), phase="seat"),
    ("GET", "/v1/tasks/{task_id}/seat"): Row("/v1/tasks/{task_id}/seat", _may(200, "client"), phase="shares"),
    ("GET", "/v1/sessions/{session_id}"): _session_row("", MEMBERS, "shares"),
    ("GET", "/v1/sessions/{session_id}/roster"): _session_row("/roster", MEMBERS, "shares"),
    ("GET", "/v1/sessions/{session_id}/certificates"): _session_row("/certificates", MEMBERS, "shares"),
    ("GET", "/v1/sessions/{session_id}/transcript"): _session_row("/transcript", MEMBERS, "shares"),
    ("PUT", "/v1/sessions/{session_id}/shares/{index}"): _session_row("/shares/{index}", SENT, "shares"),
    ("GET", "/v1/sessions/{session_id}/shares/{index}"): _session_row("/shares/{index}", OWN, "inputs"),
    ("PUT", "/v1/sessions/{session_id}/inputs/{index}"): _session_row("/inputs/{index}", SENT, "inputs"),
    ("GET", "/v1/sessions/{session_id}/survivors"): _session_row("/survivors", MEMBERS, "consistency"),
    ("PUT", "/v1/sessions/{session_id}/consistency/{index}"): _session_row("/consistency/{index}", SENT, "consistency"),
    ("GET", "/v1/sessions/{session_id}/consistency"): _session_row("/consistency", MEMBERS, "unmask"),
    ("PUT", "/v1/sessions/{session_id}/unmask/{index}"): _session_row("/unmask/{index}", SENT, "unmask"),
    ("PUT", "/v1/tasks/{task_id}/contribution"): Row(
        "/v1/tasks/{task_id}/contribution", _may(201, "client"), phase="contribution"
    ),
    ("GET", "/v1/runs/{run_id}/rounds/{number}/mask-sum"): Row(
        "/v1/runs/{run_id}/rounds/1/mask-sum", READERS, phase="asked"
    ),
    ("POST", "/v1/helper-tokens"): Row("/v1/helper-tokens", _may(201, "operator"), json={"signing_key": "ab" * 32}),
    ("DELETE", "/v1/helper-tokens/{signing_key}"): Row(
        "/v1/helper-tokens/{signing_key}", _may(204, "operator"), phase="contribution"
    ),
    ("GET", "/v1/helper-requests"): Row("/v1/helper-requests", HELPER),
    ("GET", "/v1/helper-requests/{request_id}"): Row("/v1/helper-requests/{request_id}", HELPER, phase="asked"),
    ("PUT", "/v1/helper-requests/{request_id}/verdict"): Row(
        "/v1/helper-requests/{request_id}/verdict", _may(204, "helper"), phase="asked", json={}
    ),
    ("PUT", "/v1/helper-requests/{request_id}/mask-sum"): Row(
        "/v1/helper-requests/{request_id}/mask-sum", _may(201, "helper"), phase="releasing"
    ),
    ("GET", "/healthz"): Row("/healthz", EVERYONE, is_open=True),
    ("GET", "/readyz"): Row("/readyz", EVERYONE, is_open=True),
    ("GET", "/metrics"): Row("/metrics", EVERYONE, is_open=True),
}
"""Each operation of the OpenAPI document: who gets which success; everyone else is refused."""


@asynccontextmanager
async def _no_lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield


@cache
def _application() -> FastAPI:
    return create_application(version="0", telemetry=Telemetry(), lifespan=_no_lifespan)


def _operations(document: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}


@dataclass
class World:
    """Tokens of every identity, and things to name in requests; denied requests share it, for they change nothing."""

    server: ServerProcess
    stored: Stored
    operator: httpx.Client
    tokens: dict[str, str] = field(default_factory=dict)
    names: dict[bool, dict[str, str]] = field(default_factory=dict)
    draft_id: str = ""
    runs: dict[str, str] = field(default_factory=dict)
    masked: dict[str, tuple[dict[str, str], bytes]] = field(default_factory=dict)

    def request(self, row: Row, method: str, identity: str) -> httpx.Response:
        """Sends an operation's request as somebody, and leaves a stream of events once it has begun."""
        names = self.names[row.evaluates] | ({"run_id": self.draft_id} if row.draft else {})
        names |= {"run_id": self.runs[row.run]} if row.run else {}
        headers = {"Authorization": f"Bearer {self.tokens[identity]}"} if identity != "none" else {}
        headers |= row.headers
        content = None
        if row.tensors is not None:
            content, headers = row.tensors(), headers | {"Content-Type": MEDIA_TYPE}
        body = row.json
        if row.phase:
            masked, message = self.masked[row.phase]
            names |= masked
            if row.path.endswith("/identity-key"):
                body = {"public_key": masked["public_key"]} if method == "PUT" else None
            elif method == "PUT" and body is None:
                content, headers = message, headers | BYTES
        with (
            self.server.http(None) as http,
            http.stream(method, row.path.format(**names), json=body, content=content, headers=headers) as answer,
        ):
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                answer.read()
            return answer


def _enrolment_token(operator: httpx.Client, **request: float) -> str:
    made = operator.post("/v1/enrolment-tokens", json=request)
    assert made.status_code == 201, made.text
    return str(made.json()["token"])


def _claimed(operator: httpx.Client, token: str, run_id: str) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    claimed = operator.post(f"/v1/runs/{run_id}/tasks", params={"wait": 20}, headers=headers)
    assert claimed.status_code == 201, claimed.text
    return str(claimed.json()["task_id"])


def _fresh_world(
    server: ServerProcess, stored: Stored, operator: httpx.Client, phases: Sequence[str] = (*PHASES, *HELPER_PHASES)
) -> World:
    world = World(server, stored, operator)
    clients = {name: enrol(operator, name) for name in ("client", "other", "revoked", "named")}
    enrolment, spent = _enrolment_token(operator, max_uses=1), _enrolment_token(operator, max_uses=1)
    world.tokens = {
        "unknown": "fqo_" + "0" * 64,
        "expired": _enrolment_token(operator, max_uses=5, expires_in_seconds=1),
        "spent": spent,
        "enrolment": enrolment,
        "operator": str(operator.headers["authorization"]).removeprefix("Bearer "),
    } | {name: client.token for name, client in clients.items()}
    assert operator.delete(f"/v1/clients/{clients['revoked'].client_id}").status_code == 204
    with server.http(spent) as enrolling:
        assert enrolling.post("/v1/clients", json={"name": "spends"}).status_code == 201
    training = create_run(operator, small_model(), num_rounds=3, round={"quorum": 3})
    evaluating = create_run(operator, small_model(), num_rounds=3, round={"quorum": 1}, evaluation={"every": 1})
    world.draft_id = str(operator.post("/v1/runs", json={}).json()["run_id"])
    own = world.tokens["client"]
    train_task = _claimed(operator, own, training)
    update = operator.put(
        f"/v1/tasks/{_claimed(operator, own, evaluating)}/update",
        content=update_body(DELTA, num_examples=1),
        headers={"Authorization": f"Bearer {own}", "Content-Type": MEDIA_TYPE},
    )
    assert update.status_code == 201, update.text
    world.runs = {
        "evaluated": evaluated_run(operator, enrol(operator, "evaluates")),
        "scaffold": scaffold_run(operator, enrol(operator, "corrects")),
    }
    own_client = MaskedClient(clients["client"])
    party = HelperParty("helper")
    world.tokens["helper"] = str(party.connect(operator).headers["authorization"]).removeprefix("Bearer ")
    world.masked = {
        phase: at_phase(operator, own_client, phase)
        if phase in PHASES
        else at_helper_phase(operator, own_client, party, phase)
        for phase in phases
    }
    for is_evaluating, run_id in ((False, training), (True, evaluating)):
        task_id = _claimed(operator, own, run_id) if is_evaluating else train_task
        world.names[is_evaluating] = {"run_id": run_id, "task_id": task_id, "client_id": clients["named"].client_id}
    begun = operator.post(f"/v1/tasks/{train_task}/uploads", headers={"Authorization": f"Bearer {own}"} | BEGIN)
    assert begun.status_code == 201, begun.text
    world.names[False]["upload_id"] = str(begun.json()["upload_id"])
    return world


@pytest.fixture(scope="module")
def stored(shared_server: ServerProcess) -> Iterator[Stored]:
    with Stored(shared_server.database_url) as database:
        yield database


@pytest.fixture(scope="module")
def quiet_world(shared_server: ServerProcess, stored: Stored, shared_operator: httpx.Client) -> World:
    """The world of those who change nothing; its enrolment token has expired before it is used."""
    world = _fresh_world(shared_server, stored, shared_operator)
    deadline = time.monotonic() + 20
    with shared_server.http(world.tokens["expired"]) as expiring:
        while expiring.get("/v1/runs").status_code != 401:
            assert time.monotonic() < deadline, "the enrolment token does not expire"
            time.sleep(0.05)
    return world


def test_table_and_the_servers_openapi_document_name_the_same_operations(shared_server: ServerProcess) -> None:
    with shared_server.http(None) as http:
        documented = _operations(http.get("/openapi.json").json())
    assert documented - TABLE.keys() == set(), "operations without a row"
    assert TABLE.keys() - documented == set(), "rows without an operation"


def test_every_operation_has_its_place_on_the_docs_page() -> None:
    document = _application().openapi()
    used = {tag for path in document["paths"].values() for operation in path.values() for tag in operation["tags"]}
    assert used == {tag["name"] for tag in document["tags"]}


def test_every_route_is_in_the_openapi_document_or_only_shows_it() -> None:
    routes = {
        (method, route.path)
        for route in _flat(_application().routes)
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD"
    }
    assert routes - {*TABLE} == {("GET", "/docs"), ("GET", "/openapi.json")}


DENIED = [
    pytest.param(method, path, identity, id=f"{method}-{path}-{identity}")
    for (method, path), row in TABLE.items()
    for identity in IDENTITIES
    if identity not in row.allowed
]
ALLOWED = [
    pytest.param(method, path, identity, id=f"{method}-{path}-{identity}")
    for (method, path), row in TABLE.items()
    for identity in row.allowed
]


@SHARED_ON_SQLITE
@pytest.mark.parametrize(("method", "path", "identity"), DENIED)
def test_caller_without_the_right_is_refused_and_nothing_changes(
    quiet_world: World, method: str, path: str, identity: str
) -> None:
    before = quiet_world.stored.snapshot(*SECRET_TABLES)
    answer = quiet_world.request(TABLE[method, path], method, identity)
    row = TABLE[method, path]
    denied = row.stranger if identity in row.strangers else "forbidden"
    refusal = "unauthenticated" if identity in NOBODY else denied
    if method == "HEAD":
        assert (answer.status_code, answer.content) == (STATUS[refusal], b"")
    else:
        problem = assert_refused(answer, refusal)
        assert not any(token in problem["detail"] for token in quiet_world.tokens.values())
    assert quiet_world.stored.snapshot(*SECRET_TABLES) == before


@SHARED_ON_SQLITE
@pytest.mark.parametrize(("method", "path", "identity"), ALLOWED)
def test_caller_with_the_right_is_served(
    shared_server: ServerProcess,
    stored: Stored,
    shared_operator: httpx.Client,
    quiet_world: World,
    method: str,
    path: str,
    identity: str,
) -> None:
    row = TABLE[method, path]
    phases = [row.phase] if row.phase else []
    world = quiet_world if method == "GET" else _fresh_world(shared_server, stored, shared_operator, phases)
    answer = world.request(row, method, identity)
    assert answer.status_code == row.allowed[identity]


def test_revoked_clients_token_stops_working_at_once(shared_operator: httpx.Client) -> None:
    client = enrol(shared_operator, "leaves")
    assert client.http.get("/v1/runs").status_code == 200
    assert shared_operator.delete(f"/v1/clients/{client.client_id}").status_code == 204
    assert_refused(client.http.get("/v1/runs"), "unauthenticated", "revoked")
    assert shared_operator.delete(f"/v1/clients/{client.client_id}").status_code == 204


def test_tokens_are_compared_whole(shared_server: ServerProcess, shared_operator: httpx.Client) -> None:
    """Neither a part of a token, nor another case, nor what is stored of it, gets in."""
    token = enrol(shared_operator, "close").token
    with Stored(shared_server.database_url) as stored:
        hashes = [row.split("'")[1] for row in stored.snapshot("tokens")["tokens"]]
    attempts = [
        token[:-1],
        token + "x",
        token.upper(),
        token.lower(),
        token[4:],
        token + " x",
        f'"{token}"',
        *hashes[:5],
    ]
    with shared_server.http(None) as http:
        for attempt in attempts:
            answer = http.get("/v1/runs", headers={"Authorization": f"Bearer {attempt}"})
            assert_refused(answer, "unauthenticated")
        for scheme in ("", "Basic ", "Token ", "Bearer\t\tx ", "Digest "):
            answer = http.get("/v1/runs", headers={"Authorization": f"{scheme}{token}"})
            assert_refused(answer, "unauthenticated")
        assert http.get("/v1/runs", headers={"Authorization": f"bearer {token}"}).status_code == 200


@pytest.mark.parametrize("token", ["x" * 513, "x" * 20_000, "\xff\xfe", "é", "a\x01b", "%00"])
def test_strange_token_is_unauthenticated(shared_server: ServerProcess, token: str) -> None:
    answer = exchange(
        shared_server.url,
        b"GET /v1/runs HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer " + token.encode("latin-1") + b"\r\n\r\n",
    )
    assert answer.status in ((400, 401) if "\x01" in token else (401,))


def test_token_counts_in_the_authorization_header_only(shared_server: ServerProcess) -> None:
    token = str(shared_server.operator_token)
    with shared_server.http(None) as http:
        for url in (
            f"/v1/runs?token={token}",
            f"/v1/runs?access_token={token}",
            f"/v1/runs?Authorization=Bearer%20{token}",
        ):
            assert_refused(http.get(url), "unauthenticated")
        assert_refused(http.get("/v1/runs", headers={"Cookie": f"token={token}"}), "unauthenticated")
        assert_refused(http.get("/v1/runs", headers={"X-Api-Key": token}), "unauthenticated")
    twice = exchange(
        shared_server.url,
        b"GET /v1/runs HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer x\r\n"
        + f"Authorization: Bearer {token}\r\n\r\n".encode(),
    )
    assert twice.status == 401


# The paths of requests must decide nothing: CVE-2026-48710 ("BadHost") passed by a check on request.url.path.

HOSTS = [
    b"",
    b"a/x?",
    b"a/healthz?",
    b"a?x",
    b"a#x",
    b"a/healthz#",
    b"a/../healthz",
    b"/healthz",
    b"a\\healthz",
    b"a@healthz",
    b"a:b:c",
    b"[::1",
    b"a%2fhealthz",
    b"a\tb",
    b"a b",
    b"\xff",
    b"a,b",
    b"localhost",
    b"a" * 5000,
]


@pytest.mark.parametrize("host", HOSTS)
def test_host_header_opens_no_route(shared_server: ServerProcess, quiet_world: World, host: bytes) -> None:
    names = quiet_world.names[False] | quiet_world.masked["unmask"][0] | quiet_world.masked["asked"][0]
    names |= {"number": "1", "version": "0", "sequence": "1"}
    for (method, template), row in TABLE.items():
        if not row.is_open:
            path = template.format(**names).encode()
            request = method.encode() + b" " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 0\r\n\r\n"
            answer = exchange(shared_server.url, request)
            assert answer.status == 401 or (answer.status == 400 and b"\xff" in host), (path, answer)


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/../v1/runs",
        b"//v1/runs",
        b"/v1//runs",
        b"/healthz/../v1/runs",
        b"/healthz/..%2fv1/runs",
        b"/%76%31/runs",
        b"/v1/runs;/healthz",
        b"/v1/runs%00",
        b"/v1/runs%0d%0a",
        b"/v1/runs#/healthz",
        b"/V1/RUNS",
        b"http://localhost/v1/runs",
        b"http://localhost/healthz?/v1/runs",
        b"*",
        b"v1/runs",
        b"/static/../v1/runs",
        b"/static/%2e%2e/%2e%2e/tokens.py",
        b"/static/..%2f..%2fapplication.py",
        b"/static//etc/passwd",
    ],
)
def test_strange_target_shows_nothing_of_the_api(shared_server: ServerProcess, target: bytes) -> None:
    for method in (b"GET", b"HEAD", b"POST", b"OPTIONS"):
        request = method + b" " + target + b" HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        answer = exchange(shared_server.url, request)
        is_alive = answer.status == 200 and answer.body in (b"ok\n", b"") and b"healthz?" in target
        assert is_alive or answer.status in (400, 401, 404, 405), (method, target, answer)
        assert b"items" not in answer.body


@pytest.mark.parametrize(
    "name", ["X-HTTP-Method-Override", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "Forwarded"]
)
def test_headers_of_proxies_change_no_decision(shared_server: ServerProcess, name: str) -> None:
    with shared_server.http(None) as http:
        assert_refused(http.get("/v1/runs", headers={name: "/healthz"}), "unauthenticated")


# Default deny.


def _flat(routes: Any) -> Iterator[Any]:
    """Walks routes through included routers, which newer FastAPIs keep as they are, and mounted applications."""
    for route in routes:
        included = getattr(route, "original_router", route)
        if hasattr(included, "endpoint"):
            yield included
        else:
            yield from _flat(getattr(included, "routes", ()))


def test_every_route_below_v1_says_who_may_and_is_in_the_matrix() -> None:
    routes = [route for route in _flat(_application().routes) if route.path.startswith("/v1")]
    assert len(routes) == sum(path.startswith("/v1") for _, path in TABLE)
    for route in routes:
        assert route.include_in_schema, route.path
        assert getattr(route.endpoint, "allowed_kinds", frozenset()), route.path
        assert route.body_field is None or isinstance(route, BoundedRoute), route.path


class _OneToken:
    """A stand-in for the flow: every token belongs to one kind of caller."""

    def __init__(self, kind: TokenKind) -> None:
        self._record = TokenRecord("hash", kind, None, None, 0, None, None, datetime.now(UTC))
        self.transactions = self

    async def read_one(self, _name: str, _body: object) -> TokenRecord:
        return self._record


@pytest.mark.parametrize("kind", list(TokenKind))
@pytest.mark.anyio
async def test_route_without_a_rule_denies_everyone(kind: TokenKind) -> None:
    router = APIRouter()

    @router.get("/v1/forgotten")
    async def forgotten() -> str:
        return "secret"

    @router.get("/v1/empty")
    @allow()
    async def empty() -> str:
        return "secret"

    @router.get("/v1/open")
    @allow(*TokenKind)
    async def allowed() -> str:
        return "shown"

    app = FastAPI()
    problems.install(app, Telemetry())
    app.include_router(router, dependencies=[Depends(authenticated)])
    app.state.flow = _OneToken(kind)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        headers = {"Authorization": "Bearer x"}
        for path in ("/v1/forgotten", "/v1/empty"):
            assert_refused(await http.get(path, headers=headers), "forbidden")
            assert_refused(await http.get(path), "unauthenticated")
        assert (await http.get("/v1/open", headers=headers)).json() == "shown"
