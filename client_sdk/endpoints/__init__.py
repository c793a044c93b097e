"""Every route of the contract as a pair of values: the request to send, and how its answer is read. Performs no I/O.

What the server sends is checked here before anything else sees it. The rules: only the statuses that the contract
names are answers, JSON has the contract's fields and types, and an identifier that goes into a path holds nothing
but letters, digits, `.`, `_` and `-`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from client_sdk.endpoints.exchange import (
    Answer,
    Item,
    Message,
    Page,
    Request,
    message_of,
    page_of,
    path,
    retry_after_seconds,
)
from fl_protocol import routes
from fl_protocol.exclusions import Exclusion, ExclusionRequest
from fl_protocol.messages import RequestMessage
from fl_protocol.models import TENSOR_MEDIA_TYPE, Model, RollbackRequest
from fl_protocol.privacy_reports import LedgerEntry, PrivacyReport
from fl_protocol.rounds import Contribution, Round
from fl_protocol.runs import Run, RunSpec
from fl_protocol.tasks import (
    Client,
    ClientRequest,
    EnrolledClient,
    EnrolmentToken,
    EnrolmentTokenRequest,
    EvaluationReport,
    Receipt,
    Task,
)


def _get(kind: type[Message], where: str, **asked: str) -> Request[Message]:
    return Request(method="GET", path=where, parse=lambda answer: message_of(kind, answer, asked))


def _list(kind: type[Item], where: str, **query: str | int | None) -> Request[Page[Item]]:
    given = {name: str(value) for name, value in query.items() if value is not None}
    return Request(method="GET", path=where, query=given, parse=lambda answer: page_of(kind, answer))


def _post(
    kind: type[Message],
    where: str,
    *,
    body: RequestMessage | None = None,
    idempotency_key: str | None = None,
    **asked: str,
) -> Request[Message]:
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    if body is not None:
        headers["Content-Type"] = "application/json"
    return Request(
        method="POST",
        path=where,
        headers=headers,
        body=b"" if body is None else body.model_dump_json().encode(),
        statuses=frozenset({200, 201}),
        parse=lambda answer: message_of(kind, answer, asked),
    )


def _put(kind: type[Message], where: str, *, body: RequestMessage, **asked: str) -> Request[Message]:
    return Request(
        method="PUT",
        path=where,
        headers={"Content-Type": "application/json"},
        body=body.model_dump_json().encode(),
        statuses=frozenset({200, 201}),
        parse=lambda answer: message_of(kind, answer, asked),
    )


def _delete(where: str) -> Request[None]:
    return Request(method="DELETE", path=where, statuses=frozenset({200, 204}), parse=lambda _: None)


def create_run(spec: RunSpec, *, idempotency_key: str) -> Request[Run]:
    """`POST /v1/runs`."""
    return _post(Run, routes.RUNS, body=spec, idempotency_key=idempotency_key)


def list_runs(*, limit: int | None = None, cursor: str | None = None) -> Request[Page[Run]]:
    """`GET /v1/runs`."""
    return _list(Run, routes.RUNS, limit=limit, cursor=cursor)


def get_run(run_id: str) -> Request[Run]:
    """`GET /v1/runs/{run_id}`."""
    return _get(Run, path(routes.RUN, run_id=run_id), run_id=run_id)


def start_run(run_id: str) -> Request[Run]:
    """`POST /v1/runs/{run_id}/start`."""
    return _post(Run, path(routes.RUN_START, run_id=run_id), run_id=run_id)


def pause_run(run_id: str) -> Request[Run]:
    """`POST /v1/runs/{run_id}/pause`."""
    return _post(Run, path(routes.RUN_PAUSE, run_id=run_id), run_id=run_id)


def resume_run(run_id: str) -> Request[Run]:
    """`POST /v1/runs/{run_id}/resume`."""
    return _post(Run, path(routes.RUN_RESUME, run_id=run_id), run_id=run_id)


def stop_run(run_id: str) -> Request[Run]:
    """`POST /v1/runs/{run_id}/stop`."""
    return _post(Run, path(routes.RUN_STOP, run_id=run_id), run_id=run_id)


def roll_back(run_id: str, request: RollbackRequest, *, idempotency_key: str) -> Request[Model]:
    """`POST /v1/runs/{run_id}/rollback`."""
    return _post(Model, path(routes.RUN_ROLLBACK, run_id=run_id), body=request, idempotency_key=idempotency_key)


def get_privacy(run_id: str) -> Request[PrivacyReport]:
    """`GET /v1/runs/{run_id}/privacy`."""
    return _get(PrivacyReport, path(routes.RUN_PRIVACY, run_id=run_id), run_id=run_id)


def list_ledger(run_id: str, *, limit: int | None = None, cursor: str | None = None) -> Request[Page[LedgerEntry]]:
    """`GET /v1/runs/{run_id}/privacy/ledger`."""
    return _list(LedgerEntry, path(routes.RUN_LEDGER, run_id=run_id), limit=limit, cursor=cursor)


def list_rounds(run_id: str, *, limit: int | None = None, cursor: str | None = None) -> Request[Page[Round]]:
    """`GET /v1/runs/{run_id}/rounds`."""
    return _list(Round, path(routes.RUN_ROUNDS, run_id=run_id), limit=limit, cursor=cursor)


def get_round(run_id: str, number: int) -> Request[Round]:
    """`GET /v1/runs/{run_id}/rounds/{number}`."""
    return _get(Round, path(routes.RUN_ROUND, run_id=run_id, number=number))


def list_contributions(
    run_id: str, number: int, *, limit: int | None = None, cursor: str | None = None
) -> Request[Page[Contribution]]:
    """`GET /v1/runs/{run_id}/rounds/{number}/updates`."""
    where = path(routes.ROUND_UPDATES, run_id=run_id, number=number)
    return _list(Contribution, where, limit=limit, cursor=cursor)


def list_models(run_id: str, *, limit: int | None = None, cursor: str | None = None) -> Request[Page[Model]]:
    """`GET /v1/runs/{run_id}/models`."""
    return _list(Model, path(routes.RUN_MODELS, run_id=run_id), limit=limit, cursor=cursor)


def get_model(run_id: str, version: int, *, base: int | None = None) -> Request[None]:
    """`GET /v1/runs/{run_id}/models/{version}`; the answer is a stream, maybe of a delta from version `base`."""
    query = {} if base is None else {"base": str(base)}
    return _stream(path(routes.RUN_MODEL, run_id=run_id, version=version), query=query)


def get_control_variate(run_id: str, version: int) -> Request[None]:
    """`GET /v1/runs/{run_id}/models/{version}/control-variate`; the answer is a stream."""
    return _stream(path(routes.CONTROL_VARIATE, run_id=run_id, version=version))


def latest_model(
    run_id: str, *, after: int | None = None, wait_seconds: float = 0.0, base: int | None = None
) -> Request[None]:
    """`GET /v1/runs/{run_id}/models/latest`; the answer is a stream, or 204 if nothing newer than `after` came."""
    query = {} if after is None else {"after": str(after), "wait": f"{wait_seconds:g}"}
    if base is not None:
        query["base"] = str(base)
    return _stream(path(routes.LATEST_MODEL, run_id=run_id), query=query, wait_seconds=wait_seconds)


def best_model(run_id: str) -> Request[None]:
    """`GET /v1/runs/{run_id}/models/best`; the answer is a stream."""
    return _stream(path(routes.BEST_MODEL, run_id=run_id))


def export_model(run_id: str, version: int) -> Request[None]:
    """`GET /v1/runs/{run_id}/models/{version}/export`; the answer is a stream."""
    return _stream(path(routes.MODEL_EXPORT, run_id=run_id, version=version))


def _stream(where: str, *, query: Mapping[str, str] | None = None, wait_seconds: float = 0.0) -> Request[None]:
    return Request(
        method="GET",
        path=where,
        query=query or {},
        headers={"Accept": TENSOR_MEDIA_TYPE},
        wait_seconds=wait_seconds,
        parse=lambda _: None,
    )


def put_initial_model(run_id: str) -> Request[Model]:
    """`PUT /v1/runs/{run_id}/models/0`; the body is streamed."""
    uploads = path(routes.INITIAL_MODEL_UPLOADS, run_id=run_id)
    return _put_tensors(Model, path(routes.INITIAL_MODEL, run_id=run_id), uploads=uploads)


def put_update(task_id: str) -> Request[Receipt]:
    """`PUT /v1/tasks/{task_id}/update`; the body is streamed."""
    uploads = path(routes.TASK_UPLOADS, task_id=task_id)
    return _put_tensors(Receipt, path(routes.TASK_UPDATE, task_id=task_id), uploads=uploads, task_id=task_id)


def _put_tensors(kind: type[Message], where: str, *, uploads: str, **asked: str) -> Request[Message]:
    return Request(
        method="PUT",
        path=where,
        uploads=uploads,
        headers={"Content-Type": TENSOR_MEDIA_TYPE},
        statuses=frozenset({200, 201}),
        parse=lambda answer: message_of(kind, answer, asked),
    )


def put_evaluation(task_id: str, report: EvaluationReport) -> Request[Receipt]:
    """`PUT /v1/tasks/{task_id}/evaluation`."""
    return _put(Receipt, path(routes.TASK_EVALUATION, task_id=task_id), body=report, task_id=task_id)


@dataclass(frozen=True, slots=True)
class NothingToDo:
    """There is no task now; the server asks to come back after so many seconds."""

    retry_after_seconds: float


def claim_task(run_id: str, *, wait_seconds: float = 0.0) -> Request[Task | NothingToDo]:
    """`POST /v1/runs/{run_id}/tasks`; the answer may be the task already held."""
    return Request(
        method="POST",
        path=path(routes.RUN_TASKS, run_id=run_id),
        query={"wait": f"{wait_seconds:g}"},
        wait_seconds=wait_seconds,
        statuses=frozenset({200, 201, 204}),
        parse=_parse_claim,
    )


def _parse_claim(answer: Answer) -> Task | NothingToDo:
    if answer.status == 204:
        return NothingToDo(retry_after_seconds(answer.headers) or 0.0)
    return message_of(Task, answer)


def give_up_task(task_id: str) -> Request[None]:
    """`DELETE /v1/tasks/{task_id}`."""
    return _delete(path(routes.TASK, task_id=task_id))


def list_exclusions(run_id: str, *, limit: int | None = None, cursor: str | None = None) -> Request[Page[Exclusion]]:
    """`GET /v1/runs/{run_id}/exclusions`."""
    return _list(Exclusion, path(routes.RUN_EXCLUSIONS, run_id=run_id), limit=limit, cursor=cursor)


def exclude_client(run_id: str, client_id: str, request: ExclusionRequest) -> Request[Exclusion]:
    """`PUT /v1/runs/{run_id}/exclusions/{client_id}`."""
    where = path(routes.RUN_EXCLUSION, run_id=run_id, client_id=client_id)
    return _put(Exclusion, where, body=request, client_id=client_id)


def readmit_client(run_id: str, client_id: str) -> Request[None]:
    """`DELETE /v1/runs/{run_id}/exclusions/{client_id}`."""
    return _delete(path(routes.RUN_EXCLUSION, run_id=run_id, client_id=client_id))


def create_enrolment_token(request: EnrolmentTokenRequest, *, idempotency_key: str) -> Request[EnrolmentToken]:
    """`POST /v1/enrolment-tokens`."""
    return _post(EnrolmentToken, routes.ENROLMENT_TOKENS, body=request, idempotency_key=idempotency_key)


def enrol_client(request: ClientRequest, *, idempotency_key: str) -> Request[EnrolledClient]:
    """`POST /v1/clients`."""
    return _post(EnrolledClient, routes.CLIENTS, body=request, idempotency_key=idempotency_key)


def list_clients(*, limit: int | None = None, cursor: str | None = None) -> Request[Page[Client]]:
    """`GET /v1/clients`."""
    return _list(Client, routes.CLIENTS, limit=limit, cursor=cursor)


def revoke_client(client_id: str) -> Request[None]:
    """`DELETE /v1/clients/{client_id}`."""
    return _delete(path(routes.CLIENT, client_id=client_id))
