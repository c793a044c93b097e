"""Requests generated from the OpenAPI document get answers that the document declares, and never a 5xx."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from aggregator_service.api.application import create_application
from aggregator_service.telemetry import Telemetry
from fl_protocol.uploads import PARTIAL_UPLOAD_MEDIA_TYPE
from tests.support.databases import SHARED_POSTGRES_IN_SOAK
from tests.support.helper_mode import HelperParty, at_helper_phase
from tests.support.malformed import MODEL, UPDATE, body_of, compressed, model_body
from tests.support.masked import MaskedClient, at_phase
from tests.support.participant import MEDIA_TYPE, Participant, enrol, evaluated_run, scaffold_run
from tests.support.server import ServerProcess

MAX_EXAMPLES = 12
LONGEST_WAIT_SECONDS = 0.02
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

Names = dict[str, str | int]


# Without this Schemathesis sends random bytes, which never get past the first eight.


def _mutated(body: bytes) -> st.SearchStrategy[bytes]:
    """Changes one byte somewhere, or cuts, or appends."""
    at = st.integers(0, len(body) - 1)
    changed = st.builds(lambda index, byte: body[:index] + bytes([byte]) + body[index + 1 :], at, st.integers(0, 255))
    return st.one_of(changed, at.map(lambda index: body[:index]), st.binary(min_size=1, max_size=20).map(body.__add__))


def _tensor_bodies() -> st.SearchStrategy[bytes]:
    update = body_of(UPDATE, metadata={"num_examples": "3", "metrics": '{"loss": 0.5}'})
    model = model_body(MODEL)
    valid = st.sampled_from([update, model, update])
    return st.one_of(
        valid, valid, _mutated(update), _mutated(model), st.just(compressed(update)), st.binary(max_size=100)
    )


schemathesis.openapi.media_type(
    MEDIA_TYPE, _tensor_bodies(), aliases=["application/octet-stream", PARTIAL_UPLOAD_MEDIA_TYPE]
)


@asynccontextmanager
async def _no_lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield


SCHEMA = schemathesis.openapi.from_dict(
    create_application(version="0", telemetry=Telemetry(), lifespan=_no_lifespan).openapi()
)
OPERATIONS = {
    f"{operation.method.upper()} {operation.path}": operation
    for found in SCHEMA.get_all_operations()
    for operation in ([found.ok()] if isinstance(found, Ok) else [])
}


# What each operation's requests name: things of which the operation can make something.


@dataclass
class World:
    """The operator, and a client for what only clients may do."""

    operator: httpx.Client
    number: int = 0
    clients: list[Participant] = field(default_factory=list)
    message: bytes | None = None
    helper: HelperParty = field(default_factory=lambda: HelperParty("helper"))

    def run(self, *, model: bool = True, start: bool = False, **spec: Any) -> str:
        run_id: str = self.operator.post("/v1/runs", json=spec).json()["run_id"]
        if model:
            headers = {"Content-Type": MEDIA_TYPE}
            put = self.operator.put(f"/v1/runs/{run_id}/models/0", content=model_body(MODEL), headers=headers)
            assert put.status_code == 201, put.text
        if start:
            assert self.operator.post(f"/v1/runs/{run_id}/start").status_code == 200
        return run_id

    def task(self, run_id: str) -> str:
        self.number += 1
        client = enrol(self.operator, f"generated-{self.number}")
        self.clients.append(client)
        return self.claim(run_id)

    def claim(self, run_id: str) -> str:
        claimed = self.clients[-1].claim(run_id, wait=20)
        assert claimed.status_code == 201, claimed.text
        return str(claimed.json()["task_id"])


def _steered(world: World) -> Names:
    return {"run_id": world.run(start=True)}


def _ended(world: World) -> Names:
    run_id = world.run(start=True)
    assert world.operator.post(f"/v1/runs/{run_id}/stop").status_code == 200
    return {"run_id": run_id}


def _round(world: World) -> Names:
    return {"run_id": world.run(start=True), "number": 1}


def _task(world: World) -> Names:
    return {"task_id": world.task(world.run(start=True, round={"quorum": 4096}))}


def _upload(world: World) -> Names:
    task_id = world.task(world.run(start=True, round={"quorum": 4096}))
    begun = world.clients[-1].http.post(f"/v1/tasks/{task_id}/uploads", headers=BEGIN)
    assert begun.status_code == 201, begun.text
    return {"upload_id": str(begun.json()["upload_id"])}


def _claimable(world: World) -> Names:
    run_id = world.run(start=True)
    world.task(run_id)
    return {"run_id": run_id}


def _evaluation(world: World) -> Names:
    run_id = world.run(start=True, num_rounds=2, round={"quorum": 1}, evaluation={"every": 1})
    task_id = world.task(run_id)
    assert world.clients[-1].put(task_id, body_of(UPDATE)).status_code == 201
    return {"task_id": world.claim(run_id)}


def _best(world: World) -> Names:
    return {"run_id": evaluated_run(world.operator, enrol(world.operator, "evaluates"))}


def _control(world: World) -> Names:
    return {"run_id": scaffold_run(world.operator, enrol(world.operator, "corrects")), "version": 1}


def _excluded(world: World) -> Names:
    run_id, client_id = world.run(), enrol(world.operator, "excluded").client_id
    where = f"/v1/runs/{run_id}/exclusions/{client_id}"
    assert world.operator.put(where, json={"reason": "sends noise"}).status_code == 201
    return {"run_id": run_id, "client_id": client_id}


def _client(world: World) -> Names:
    return {"client_id": enrol(world.operator, "revoked").client_id}


def _registering(world: World) -> Names:
    world.clients.append(enrol(world.operator, "registers"))
    return {"client_id": world.clients[-1].client_id}


def _masked(phase: str) -> Callable[[World], Names]:
    def names_of(world: World) -> Names:
        world.clients.append(enrol(world.operator, "masked"))
        names, world.message = at_phase(world.operator, MaskedClient(world.clients[-1]), phase)
        return {**names, "index": int(names.get("index", 0)), "number": 1, "sequence": 1}

    return names_of


def _helping(phase: str) -> Callable[[World], Names]:
    def names_of(world: World) -> Names:
        world.clients.append(enrol(world.operator, "contributes"))
        if world.helper.http is None:
            world.helper.connect(world.operator)
        own = MaskedClient(world.clients[-1])
        names, world.message = at_helper_phase(world.operator, own, world.helper, phase)
        return {**names, "number": 1}

    return names_of


def _nothing(_world: World) -> Names:
    return {}


NAMED: dict[str, Callable[[World], Names]] = {
    "PUT /v1/runs/{run_id}/models/0": lambda world: {"run_id": world.run(model=False)},
    "POST /v1/runs/{run_id}/start": lambda world: {"run_id": world.run()},
    "GET /v1/runs/{run_id}/events": _ended,
    "POST /v1/runs/{run_id}/tasks": _claimable,
    "DELETE /v1/tasks/{task_id}": _task,
    "PUT /v1/tasks/{task_id}/update": _task,
    "PUT /v1/tasks/{task_id}/evaluation": _evaluation,
    "POST /v1/tasks/{task_id}/uploads": _task,
    "POST /v1/runs/{run_id}/models/0/uploads": lambda world: {"run_id": world.run(model=False)},
    "HEAD /v1/uploads/{upload_id}": _upload,
    "PATCH /v1/uploads/{upload_id}": _upload,
    "DELETE /v1/uploads/{upload_id}": _upload,
    "DELETE /v1/clients/{client_id}": _client,
    "GET /v1/runs/{run_id}/models/{version}": lambda world: {"run_id": world.run(), "version": 0},
    "GET /v1/runs/{run_id}/models/{version}/export": lambda world: {"run_id": world.run(), "version": 0},
    "GET /v1/runs/{run_id}/models/{version}/control-variate": _control,
    "GET /v1/runs/{run_id}/models/best": _best,
    "PUT /v1/runs/{run_id}/exclusions/{client_id}": _excluded,
    "DELETE /v1/runs/{run_id}/exclusions/{client_id}": _excluded,
    "GET /v1/runs/{run_id}/rounds/{number}": _round,
    "GET /v1/runs/{run_id}/rounds/{number}/updates": _round,
    "GET /v1/runs/{run_id}/rounds/{number}/sessions": _masked("shares"),
    "GET /v1/runs/{run_id}/manifests": _masked("seat"),
    "GET /v1/runs/{run_id}/manifests/{sequence}": _masked("seat"),
    "PUT /v1/clients/{client_id}/identity-key": _registering,
    "GET /v1/clients/{client_id}/identity-key": _masked("seat"),
    "PUT /v1/tasks/{task_id}/seat": _masked("seat"),
    "GET /v1/tasks/{task_id}/seat": _masked("shares"),
    "GET /v1/sessions/{session_id}": _masked("shares"),
    "GET /v1/sessions/{session_id}/roster": _masked("shares"),
    "GET /v1/sessions/{session_id}/certificates": _masked("shares"),
    "GET /v1/sessions/{session_id}/transcript": _masked("shares"),
    "PUT /v1/sessions/{session_id}/shares/{index}": _masked("shares"),
    "GET /v1/sessions/{session_id}/shares/{index}": _masked("inputs"),
    "PUT /v1/sessions/{session_id}/inputs/{index}": _masked("inputs"),
    "GET /v1/sessions/{session_id}/survivors": _masked("consistency"),
    "PUT /v1/sessions/{session_id}/consistency/{index}": _masked("consistency"),
    "GET /v1/sessions/{session_id}/consistency": _masked("unmask"),
    "PUT /v1/sessions/{session_id}/unmask/{index}": _masked("unmask"),
    "PUT /v1/tasks/{task_id}/contribution": _helping("contribution"),
    "GET /v1/runs/{run_id}/rounds/{number}/mask-sum": _helping("asked"),
    "DELETE /v1/helper-tokens/{signing_key}": _helping("contribution"),
    "GET /v1/helper-requests": _helping("contribution"),
    "GET /v1/helper-requests/{request_id}": _helping("asked"),
    "PUT /v1/helper-requests/{request_id}/verdict": _helping("asked"),
    "PUT /v1/helper-requests/{request_id}/mask-sum": _helping("releasing"),
}
BEGIN = {"Content-Type": MEDIA_TYPE, "Upload-Length": "50", "Upload-Complete": "?0"}
HEADERS = {
    "POST /v1/tasks/{task_id}/uploads": BEGIN,
    "POST /v1/runs/{run_id}/models/0/uploads": BEGIN,
    "PATCH /v1/uploads/{upload_id}": {"Upload-Offset": "0", "Upload-Complete": "?0"},
}
"""Headers of requests that are right: no generator knows what a body's type is that follows, or where it belongs."""
USED_UP = {"PUT /v1/runs/{run_id}/models/0", "PUT /v1/tasks/{task_id}/update"}
"""Operations that take new bytes once: whenever they have, the next request names something fresh."""


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        opened.trust_env = False
        yield opened


def _named_by(label: str) -> Callable[[World], Names]:
    return NAMED.get(label, _steered if "{run_id}" in label else _nothing)


def _requests_of(label: str) -> st.SearchStrategy[Any]:
    operation = OPERATIONS[label]
    modes = schemathesis.GenerationMode
    right = operation.as_strategy(generation_mode=modes.POSITIVE)
    takes_nothing = not (operation.path_parameters or operation.query or operation.headers or operation.body)
    return right if takes_nothing else st.one_of(right, right, operation.as_strategy(generation_mode=modes.NEGATIVE))


def _is_client_operation(label: str) -> bool:
    is_masked = label.startswith("PUT /v1/sessions") or label.endswith(("/shares/{index}", "identity-key"))
    return "/tasks" in label or "/v1/uploads" in label or is_masked


def _token(world: World, label: str, operator_token: str) -> str:
    if "/helper-requests" in label:
        return str(world.helper.web.headers["authorization"]).removeprefix("Bearer ")
    return world.clients[-1].token if _is_client_operation(label) else operator_token


@SHARED_POSTGRES_IN_SOAK
@pytest.mark.parametrize("label", OPERATIONS)
def test_generated_requests_get_documented_answers_and_no_5xx(
    shared_server: ServerProcess, shared_operator: httpx.Client, session: requests.Session, label: str
) -> None:
    world = World(shared_operator)
    names = _named_by(label)(world)
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=MAX_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=_requests_of(label), named=st.sampled_from([(str, int), (str, int), (str,), ()]))
    def check(case: Any, named: tuple[type, ...]) -> None:
        known = {name: value for name, value in names.items() if isinstance(value, named)}
        case.path_parameters = {**(case.path_parameters or {}), **known}
        if world.message is not None and len(named) == 2 and isinstance(case.body, bytes):
            # No generator knows a message that is signed, or masked; then this one is right.
            case.body = world.message
        if len(named) == 2:
            case.headers = {**(case.headers or {}), **HEADERS.get(label, {})}
        _shorten_waits(case)
        token = _token(world, label, str(shared_server.operator_token))
        answer = case.call(base_url=shared_server.url, session=session, headers={"Authorization": f"Bearer {token}"})
        statuses[answer.status_code] += 1
        # The document says of a stream that it is text; Schemathesis would compare each event with that.
        is_stream = answer.headers.get("content-type", [""])[0].startswith("text/event-stream")
        case.validate_response(answer, checks=[check for check in CHECKS if not (is_stream and check is CHECKS[-1])])
        if answer.status_code == 201 and label in USED_UP:
            names.update(_named_by(label)(world))

    check()
    assert any(200 <= status < 300 for status in statuses), statuses


def _shorten_waits(case: Any) -> None:
    wait = (case.query or {}).get("wait")
    if isinstance(wait, int | float) and LONGEST_WAIT_SECONDS < wait <= 60:
        case.query["wait"] = LONGEST_WAIT_SECONDS


def test_every_operation_below_v1_is_generated() -> None:
    documented = SCHEMA.raw_schema["paths"]
    assert OPERATIONS.keys() == {f"{method.upper()} {path}" for path in documented for method in documented[path]}
    assert len(OPERATIONS) >= 29
