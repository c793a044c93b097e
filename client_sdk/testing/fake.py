"""FakeAggregator: the contract's routes over the fake's memory, behind httpx.MockTransport."""

import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

import anyio
import httpx
from pydantic import BaseModel, ValidationError

from client_sdk.client import AggregatorClient, Seams
from client_sdk.config import DEFAULT_LIMITS, Limits
from client_sdk.errors import UsageError
from client_sdk.testing.state import FakeRun, FakeTask, digest_of, new_id, new_run
from fl_protocol.arrays import Tensor, decode, encode
from fl_protocol.encodings.byte_shuffle import CODING, BlockCutter, unshuffle_block
from fl_protocol.models import MODEL_VERSION_HEADER, TENSOR_MEDIA_TYPE, RollbackRequest
from fl_protocol.problems import PROBLEM_MEDIA_TYPE, RETRYABLE, ProblemError, ProblemType, problem_uri
from fl_protocol.runs import Run, RunSpec, RunState
from fl_protocol.specs.initial_model import PreviousModel
from fl_protocol.specs.protection import NoSecureAggregation
from fl_protocol.tasks import ClientRequest, EvaluationReport

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Interceptor = Callable[[httpx.Request], httpx.Response | None]

POLL_SECONDS: Final = 0.005
_STATUS_OF: Final[Mapping[ProblemType, int]] = {
    ProblemType.UNAUTHENTICATED: 401,
    ProblemType.NOT_FOUND: 404,
    ProblemType.ALREADY_SUBMITTED: 409,
    ProblemType.STATE_CONFLICT: 409,
    ProblemType.ROUND_CLOSED: 410,
    ProblemType.RUN_FINISHED: 410,
    ProblemType.STRUCTURE_MISMATCH: 422,
    ProblemType.INVALID_METADATA: 422,
}
_STATE_AFTER: Final = {
    "start": RunState.RUNNING,
    "pause": RunState.PAUSED,
    "resume": RunState.RUNNING,
    "stop": RunState.STOPPED,
}


class FakeAggregator:
    """An aggregation server in memory that really averages, weighted by num_examples.

    It knows `participate`'s and `Operator`'s routes; it has no deadlines, no server optimizer and asks for no token but
    a client's own. A private run's noise it calibrates, and claims are a real server's, which the SDK checks; but it
    adds no noise of its own, so that a test can compare. `intercept` sees each request first and may answer it instead,
    to play a fault.
    """

    def __init__(self, *, intercept: Interceptor | None = None) -> None:
        self.intercept = intercept
        self.runs: Final[dict[str, FakeRun]] = {}
        self.clients: Final[dict[str, str]] = {}
        self.transport: Final = httpx.MockTransport(self._handle)

    def client(self, token: str | None = None, *, limits: Limits = DEFAULT_LIMITS) -> AggregatorClient:
        """Opens a client to this server; the operator's if there is no token."""
        return AggregatorClient("http://localhost", token=token, limits=limits, seams=Seams(transport=self.transport))

    def enrolled(self, name: str, *, limits: Limits = DEFAULT_LIMITS) -> AggregatorClient:
        """Enrols a client and opens it."""
        token = new_id("token")
        self.clients[token] = name
        return self.client(token, limits=limits)

    async def start_run(self, spec: RunSpec, initial_model: Mapping[str, Tensor]) -> Run:
        """Creates and starts a run; raises UsageError for a masked one, which takes several clients: see `simulate`."""
        if not isinstance(spec.secure_aggregation, NoSecureAggregation):
            raise UsageError("the fake has no sessions of masked runs; client_sdk.simulate runs the real server's")
        fake = new_run(spec)
        self.runs[fake.run.run_id] = fake
        fake.add_model(b"".join(encode(initial_model, {})))
        fake.move_to(RunState.RUNNING)
        return fake.run

    def model(self, run_id: str, version: int = -1) -> dict[str, Tensor]:
        """Gives a model version's tensors, the latest by default."""
        return decode(self.runs[run_id].models[version])

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        answer = None if self.intercept is None else self.intercept(request)
        if answer is None:
            content = await request.aread()
            try:
                answer = await self._route(request, content)
            except ProblemError as error:
                answer = _problem(error)
            except ValidationError as error:
                answer = _problem(ProblemError(ProblemType.INVALID_REQUEST, str(error)))
        return _unread(answer)

    async def _route(self, request: httpx.Request, content: bytes) -> httpx.Response:
        path = request.url.path
        if found := re.fullmatch(r"/v1/runs/([^/]+)(/.*)?", path):
            return await self._run_route(request, content, fake=self._run(found[1]), rest=found[2] or "")
        if found := re.fullmatch(r"/v1/tasks/([^/]+)(/.*)?", path):
            return self._task_route(request, content, task_id=found[1], rest=found[2] or "")
        if path == "/v1/runs" and request.method == "POST":
            return _json(self._create(RunSpec.model_validate_json(content)), 201)
        if path == "/v1/runs":
            return _page([fake.run for fake in self.runs.values()])
        if path == "/v1/clients" and request.method == "POST":
            return self._enrol(ClientRequest.model_validate_json(content))
        raise ProblemError(ProblemType.NOT_FOUND, f"the fake has no {request.method} {path}")

    def _create(self, spec: RunSpec) -> Run:
        fake = new_run(spec)
        if isinstance(spec.initial_model, PreviousModel):
            previous = self.runs.get(spec.initial_model.run_id)
            if previous is None or spec.initial_model.version >= len(previous.models):
                raise ProblemError(ProblemType.INVALID_REQUEST, "initial_model: there is no such version")
            fake.add_model(previous.models[spec.initial_model.version])
        self.runs[fake.run.run_id] = fake
        return fake.run

    def _enrol(self, request: ClientRequest) -> httpx.Response:
        token = new_id("token")
        self.clients[token] = request.name
        return httpx.Response(201, json={"client_id": new_id("client"), **request.model_dump(), "token": token})

    async def _run_route(self, request: httpx.Request, content: bytes, *, fake: FakeRun, rest: str) -> httpx.Response:
        if rest.removeprefix("/") in _STATE_AFTER and request.method == "POST":
            fake.move_to(_STATE_AFTER[rest.removeprefix("/")])
            return _json(fake.run)
        if rest == "/models/0" and request.method == "PUT":
            return _json(fake.add_model(content), 201)
        if rest == "/rollback" and request.method == "POST":
            return _json(fake.roll_back(RollbackRequest.model_validate_json(content).version), 201)
        if found := re.fullmatch(r"/models/(latest|best|\d+)(/export|/control-variate)?", rest):
            return _model(request, fake, which=found[1], part=found[2])
        if rest == "/tasks" and request.method == "POST":
            return await self._claim(request, fake)
        return _read_route(request, fake, rest=rest)

    async def _claim(self, request: httpx.Request, fake: FakeRun) -> httpx.Response:
        client = self._caller(request)
        polls = int(float(request.url.params.get("wait", "0")) / POLL_SECONDS)
        for poll in range(polls + 1):
            given = fake.task_for(client)
            if given is not None:
                return _json(given[0], 201 if given[1] else 200)
            if fake.finished:
                raise ProblemError(ProblemType.RUN_FINISHED, f"the run is {fake.run.state}")
            if poll < polls:
                await anyio.sleep(POLL_SECONDS)
        return httpx.Response(204, headers={"Retry-After": "0"})

    def _task_route(self, request: httpx.Request, content: bytes, *, task_id: str, rest: str) -> httpx.Response:
        fake, held = self._held(task_id, self._caller(request))
        match request.method, rest:
            case "PUT", "/update":
                status = 201 if held.receipt is None else 200
                return _json(fake.accept_update(held, _plain(request, content)), status)
            case "PUT", "/evaluation":
                return _json(fake.accept_evaluation(held, EvaluationReport.model_validate_json(content)), 201)
            case "DELETE", "":
                held.given_up = True
                return httpx.Response(204)
        raise ProblemError(ProblemType.NOT_FOUND, f"the fake has no {request.method} {request.url.path}")

    def _held(self, task_id: str, client: str) -> tuple[FakeRun, FakeTask]:
        for fake in self.runs.values():
            held = fake.tasks.get(task_id)
            if held is not None and held.client == client:
                return fake, held
        raise ProblemError(ProblemType.NOT_FOUND, "there is no such task for this client")

    def _run(self, run_id: str) -> FakeRun:
        if run_id not in self.runs:
            raise ProblemError(ProblemType.NOT_FOUND, f"there is no run {run_id}")
        return self.runs[run_id]

    def _caller(self, request: httpx.Request) -> str:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.clients:
            raise ProblemError(ProblemType.UNAUTHENTICATED, "no client of the fake has this token; see `enrolled`")
        return self.clients[token]


def _read_route(request: httpx.Request, fake: FakeRun, *, rest: str) -> httpx.Response:
    if found := re.fullmatch(r"/rounds/(\d+)", rest):
        return _json(fake.rounds[int(found[1]) - 1])
    match rest:
        case "":
            return _json(fake.run)
        case "/rounds":
            return _page(fake.rounds)
        case "/models":
            return _page([fake.model(version) for version in range(len(fake.models))])
        case "/events":
            after = int(request.headers.get("last-event-id", "0"))
            return httpx.Response(200, content=_events(fake, after), headers={"Content-Type": "text/event-stream"})
    raise ProblemError(ProblemType.NOT_FOUND, f"the fake has no {request.method} {request.url.path}")


def _part(fake: FakeRun, version: int, part: str | None) -> bytes:
    if part is None:
        return fake.models[version]
    content = fake.with_lineage(version) if part == "/export" else fake.controls[version]
    if content is None:
        raise ProblemError(ProblemType.NOT_FOUND, f"version {version} has no control variate")
    return content


def _model(request: httpx.Request, fake: FakeRun, *, which: str, part: str | None) -> httpx.Response:
    named = {"latest": fake.run.latest_version, "best": fake.run.best_version}
    version = named[which] if which in named else int(which)
    if version is None or not 0 <= version < len(fake.models):
        raise ProblemError(ProblemType.NOT_FOUND, f"there is no version {which}")
    content = _part(fake, version, part)
    headers = {
        "ETag": f'"{digest_of(content)}"',
        MODEL_VERSION_HEADER: str(version),
        "Content-Type": TENSOR_MEDIA_TYPE,
    }
    found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    if found is None:
        return httpx.Response(200, content=content, headers=headers)
    start = int(found[1])
    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return httpx.Response(206, content=content[start:], headers=headers)


def _unread(answer: httpx.Response) -> httpx.Response:
    # httpx reads a body of bytes when the response is made; the SDK streams every answer, as it would from a socket.
    if not answer.is_stream_consumed:
        return answer
    return httpx.Response(answer.status_code, headers=answer.headers, content=_pieces(answer.content))


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _events(fake: FakeRun, after: int) -> AsyncIterator[bytes]:
    while True:
        for event in fake.events[after:]:
            after = event.event_id
            yield f"id: {event.event_id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()
        if fake.finished:
            return
        await anyio.sleep(POLL_SECONDS)


def _json(message: BaseModel, status: int = 200) -> httpx.Response:
    return httpx.Response(status, content=message.model_dump_json(), headers={"Content-Type": "application/json"})


def _page(items: Sequence[BaseModel]) -> httpx.Response:
    rendered = [json.loads(item.model_dump_json()) for item in items]
    return httpx.Response(200, json={"items": rendered, "next_cursor": None})


def _plain(request: httpx.Request, content: bytes) -> bytes:
    """Gives a body without its content coding."""
    coding = request.headers.get("content-encoding", "identity")
    if coding == "identity":
        return content
    cutter, shuffled = BlockCutter(), zstd.decompress(content)
    blocks = [*cutter.feed(shuffled), cutter.close()]
    return b"".join(map(unshuffle_block, blocks)) if coding.startswith(CODING) else shuffled


def _problem(error: ProblemError) -> httpx.Response:
    status = _STATUS_OF.get(error.problem_type, 400)
    body = {
        "type": problem_uri(error.problem_type),
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.detail,
        "retryable": error.problem_type in RETRYABLE,
    }
    return httpx.Response(status, content=json.dumps(body), headers={"Content-Type": PROBLEM_MEDIA_TYPE})
