"""The routes of helper mode: contributions, and what helpers are asked and answer. Performs no I/O."""

from client_sdk.endpoints.exchange import Request, message_of, path
from client_sdk.endpoints.masked import OCTET_STREAM
from fl_protocol import routes
from fl_protocol.helper_mode import (
    HelperToken,
    HelperTokenRequest,
    MaskedRoundReport,
    MaskRequestEntry,
    MaskRequestList,
    Verdict,
)
from fl_protocol.tasks import Receipt


def put_contribution(task_id: str) -> Request[Receipt]:
    """`PUT /v1/tasks/{task_id}/contribution`; the body is streamed."""
    return Request(
        method="PUT",
        path=path(routes.TASK_CONTRIBUTION, task_id=task_id),
        headers={"Content-Type": OCTET_STREAM},
        statuses=frozenset({200, 201}),
        parse=lambda answer: message_of(Receipt, answer, {"task_id": task_id}),
    )


def get_mask_sum(run_id: str, number: int) -> Request[MaskedRoundReport]:
    """`GET /v1/runs/{run_id}/rounds/{number}/mask-sum`."""
    return Request(
        method="GET",
        path=path(routes.ROUND_MASK_SUM, run_id=run_id, number=number),
        parse=lambda answer: message_of(MaskedRoundReport, answer, {"run_id": run_id}),
    )


def create_helper_token(request: HelperTokenRequest, *, idempotency_key: str) -> Request[HelperToken]:
    """`POST /v1/helper-tokens`."""
    return Request(
        method="POST",
        path=routes.HELPER_TOKENS,
        headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key},
        body=request.model_dump_json().encode(),
        statuses=frozenset({200, 201}),
        parse=lambda answer: message_of(HelperToken, answer, {"signing_key": request.signing_key}),
    )


def revoke_helper(signing_key: str) -> Request[None]:
    """`DELETE /v1/helper-tokens/{signing_key}`."""
    return Request(
        method="DELETE",
        path=routes.path(routes.HELPER_TOKENS_OF_KEY, signing_key=bytes.fromhex(signing_key).hex()),
        statuses=frozenset({204}),
        parse=lambda _answer: None,
    )


def list_mask_requests(*, wait_seconds: float = 0.0) -> Request[MaskRequestList]:
    """`GET /v1/helper-requests`; held until one waits for the caller."""
    return Request(
        method="GET",
        path=routes.HELPER_REQUESTS,
        query={"wait": f"{wait_seconds:g}"},
        wait_seconds=wait_seconds,
        parse=lambda answer: message_of(MaskRequestList, answer),
    )


def get_mask_request(request_id: str) -> Request[bytes]:
    """`GET /v1/helper-requests/{request_id}`: the bytes."""
    return Request(
        method="GET",
        path=path(routes.HELPER_REQUEST, request_id=request_id),
        headers={"Accept": OCTET_STREAM},
        parse=lambda answer: answer.body,
    )


def put_verdict(request_id: str, verdict: Verdict) -> Request[None]:
    """`PUT /v1/helper-requests/{request_id}/verdict`."""
    return Request(
        method="PUT",
        path=path(routes.HELPER_VERDICT, request_id=request_id),
        headers={"Content-Type": "application/json"},
        body=verdict.model_dump_json().encode(),
        statuses=frozenset({204}),
        parse=lambda _answer: None,
    )


def put_mask_sum(request_id: str) -> Request[MaskRequestEntry]:
    """`PUT /v1/helper-requests/{request_id}/mask-sum`; the body is streamed."""
    return Request(
        method="PUT",
        path=path(routes.HELPER_MASK_SUM, request_id=request_id),
        headers={"Content-Type": OCTET_STREAM},
        statuses=frozenset({200, 201}),
        parse=lambda answer: message_of(MaskRequestEntry, answer, {"request_id": request_id}),
    )
