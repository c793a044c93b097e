"""Tasks, updates and evaluations: what clients do."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from aggregator_service.api.bodies import TENSOR_BODY, BoundedRoute, tensor_body
from aggregator_service.api.dependencies import (
    AskedTaskDependency,
    Caller,
    CallingClient,
    DirectRoute,
    FlowDependency,
    Identifier,
    Wait,
    allow,
)
from aggregator_service.api.holding import Held
from aggregator_service.api.problems import describe
from aggregator_service.api.rendering import render_evaluation_receipt, render_receipt, render_task
from aggregator_service.domain.records import TokenKind
from aggregator_service.flow import evaluation, intake, selection
from aggregator_service.flow.context import Flow
from aggregator_service.flow.handed_out import HandedOut
from aggregator_service.storage.asks import AskRecord
from fl_protocol import routes
from fl_protocol.problems import ProblemType
from fl_protocol.tasks import EvaluationReport, Receipt, Task

router = APIRouter(tags=["tasks"], route_class=BoundedRoute)
direct = APIRouter(tags=["tasks"], route_class=DirectRoute)

_CLAIMED: dict[int | str, dict[str, Any]] = {
    200: {"model": Task, "description": "The task this client already holds"},
    204: {"description": "Nothing to do now", "headers": {"Retry-After": {"schema": {"type": "integer"}}}},
}
_ANSWERED: dict[int | str, dict[str, Any]] = {200: {"model": Receipt, "description": "The receipt of the same bytes"}}


@router.post(
    routes.RUN_TASKS,
    status_code=201,
    summary="Claim a task",
    responses=_CLAIMED | describe(ProblemType.NOT_FOUND, ProblemType.RUN_FINISHED),
    response_model=Task,
)
@allow(TokenKind.CLIENT)
async def claim_task(
    flow: FlowDependency, principal: Caller, client_id: CallingClient, run_id: Identifier, wait: Wait = 0
) -> Held:
    """Gives the caller its task in the run: a new one (201), the one it holds (200), or nothing for now (204)."""
    return Held(partial(_claimed, flow, principal.token_hash, run_id=run_id, client_id=client_id, wait_seconds=wait))


async def _claimed(flow: Flow, token_hash: str, *, run_id: str, client_id: str, wait_seconds: float) -> Response:
    answer = await selection.claim(flow, run_id=run_id, client_id=client_id, wait_seconds=wait_seconds)
    if isinstance(answer, selection.NothingNow):
        return Response(status_code=204, headers={"Retry-After": str(answer.retry_after_seconds)})
    flow.handed_out.note(HandedOut(token_hash, AskRecord(answer.task, answer.round, answer.run)))
    # FastAPI would check the task once more, and thousands of claims may be answered at the same moment.
    task = render_task(answer).model_dump_json()
    return Response(task, status_code=201 if answer.is_new else 200, media_type="application/json")


@router.delete(
    routes.TASK,
    status_code=204,
    summary="Give a task up",
    responses=describe(ProblemType.NOT_FOUND, ProblemType.ALREADY_SUBMITTED),
)
@allow(TokenKind.CLIENT)
async def give_up_task(flow: FlowDependency, client_id: CallingClient, task_id: Identifier) -> Response:
    """Gives the task up, so that another client can be asked."""
    await selection.give_up(flow, task_id=task_id, client_id=client_id)
    return Response(status_code=204)


@direct.put(
    routes.TASK_UPDATE,
    status_code=201,
    summary="Send an update",
    openapi_extra=TENSOR_BODY,
    response_model=Receipt,
    responses=_ANSWERED
    | describe(
        ProblemType.MALFORMED_UPDATE,
        ProblemType.NOT_FOUND,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.ALREADY_SUBMITTED,
        ProblemType.STATE_CONFLICT,
        ProblemType.ROUND_CLOSED,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
        ProblemType.STRUCTURE_MISMATCH,
        ProblemType.NON_FINITE,
        ProblemType.VALUE_OUT_OF_RANGE,
        ProblemType.INVALID_METADATA,
        ProblemType.DIGEST_MISMATCH,
        ProblemType.INSUFFICIENT_STORAGE,
    ),
)
@allow(TokenKind.CLIENT)
async def put_update(request: Request, flow: FlowDependency, asked: AskedTaskDependency) -> Response:
    """Takes local minus base as safetensors; the receipt means that it is durable and counted exactly once.

    What the tensors are follows from the task's `encoding`: docs/encodings.md has each byte by byte. Content-Encoding
    is identity, `zstd`, or `byte-shuffle, zstd`; digests are of the body before it.
    """
    ask = await intake.look_up(
        flow, asked.found, task_id=asked.task_id, client_id=asked.client_id, token_hash=asked.token_hash
    )
    body = tensor_body(request, max_num_bytes=ask.max_num_bytes)
    accepted = await intake.take_update(flow, ask, body)
    receipt = render_receipt(accepted).model_dump_json()
    return Response(receipt, status_code=201 if accepted.is_new else 200, media_type="application/json")


@router.put(
    routes.TASK_EVALUATION,
    status_code=201,
    summary="Send an evaluation",
    responses=_ANSWERED
    | describe(
        ProblemType.MALFORMED_REQUEST,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.NOT_FOUND,
        ProblemType.ALREADY_SUBMITTED,
        ProblemType.STATE_CONFLICT,
        ProblemType.ROUND_CLOSED,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
    ),
)
@allow(TokenKind.CLIENT)
async def put_evaluation(
    response: Response,
    flow: FlowDependency,
    client_id: CallingClient,
    task_id: Identifier,
    report: Annotated[EvaluationReport, Body()],
) -> Receipt:
    """Takes what the caller measured of the global model on its own data."""
    accepted = await evaluation.take_evaluation(flow, report, task_id=task_id, client_id=client_id)
    response.status_code = 201 if accepted.is_new else 200
    return render_evaluation_receipt(accepted)
