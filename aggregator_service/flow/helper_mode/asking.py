"""What helpers look at: the requests that wait for them, and each one's bytes."""

import asyncio
from dataclasses import dataclass

from aggregator_service.domain import topics
from aggregator_service.domain.helper_mode.records import MaskRequestRecord, MaskSumRecord, in_order
from aggregator_service.domain.records import RoundRecord, RunRecord
from aggregator_service.flow.context import Flow
from aggregator_service.flow.selection import POLL_SECONDS
from aggregator_service.flow.sessions.vectors import num_input_bytes
from aggregator_service.storage import contributions, manifests, mask_sums, rounds, runs
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.masking.keys import SIGNATURE_BYTES
from fl_protocol.masking.mask_requests import MaskRequest
from fl_protocol.problems import ProblemError, ProblemType


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with the round it is about; `num_bytes` is how long its answer must be."""

    request: MaskRequestRecord
    mask_sum: MaskSumRecord
    run: RunRecord
    round: RoundRecord
    num_bytes: int


async def pending(flow: Flow, *, signing_key: bytes, wait_seconds: float) -> list[Asked]:
    """Lists what waits for the holder of a key; waits while nothing does."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds

    def body(tx: ReadTx) -> list[Asked]:
        return [_asked(flow, tx, request) for request in mask_sums.pending(tx, signing_key)]

    while True:
        seen = flow.wakeups.seen(topics.MASK_REQUESTS)
        found = await flow.transactions.read("list_mask_requests", body)
        remaining = deadline - loop.time()
        if found or remaining <= 0 or flow.wakeups.closed:
            return found
        await flow.wakeups.wait(topics.MASK_REQUESTS, seen, timeout_seconds=min(remaining, POLL_SECONDS))


async def request_bytes(flow: Flow, request_id: str, *, signing_key: bytes) -> bytes:
    """Gives the bytes of a request; raises `not-found`, also once the contributions it is about are gone."""

    def body(tx: ReadTx) -> bytes:
        request = of_caller(tx, request_id, signing_key)
        members = in_order(contributions.of_round(tx, request.round_id))
        if any(one.sealed is None for one in members):
            raise no_such_request(request_id)
        num_helpers = len(mask_sums.requests(tx, request.round_id))
        manifest = manifests.body_of_round(tx, request.round_id)
        return MaskRequest(request.helper, num_helpers, manifest, tuple(one.member() for one in members)).render()

    return await flow.transactions.read("get_mask_request", body)


async def look_up(flow: Flow, request_id: str, *, signing_key: bytes) -> Asked:
    """Gives a request of the caller's; raises `not-found`."""
    return await flow.transactions.read(
        "look_up_mask_request", lambda tx: _asked(flow, tx, of_caller(tx, request_id, signing_key))
    )


def of_caller(tx: ReadTx, request_id: str, signing_key: bytes) -> MaskRequestRecord:
    """Gives a request to the holder of its key; raises `not-found` for everyone else."""
    request = mask_sums.request(tx, request_id)
    if request is None or request.signing_key != signing_key:
        raise no_such_request(request_id)
    return request


def no_such_request(request_id: str) -> ProblemError:
    """Gives the problem of a request that does not exist, is another's, or was replaced by one without some members."""
    return ProblemError(ProblemType.NOT_FOUND, f"no request {request_id!r} waits for you; list those that do")


def _asked(flow: Flow, tx: ReadTx, request: MaskRequestRecord) -> Asked:
    mask_sum, run, round_ = (
        mask_sums.get(tx, request.round_id),
        runs.get(tx, request.run_id),
        rounds.get(tx, request.round_id),
    )
    if mask_sum is None or run is None or round_ is None:
        raise LookupError(f"request {request.request_id} lacks its round")
    return Asked(request, mask_sum, run, round_, SIGNATURE_BYTES + num_input_bytes(flow, tx, run))
