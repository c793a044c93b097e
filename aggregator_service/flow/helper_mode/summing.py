"""The sum of a round in helper mode: contributions are added, and the helpers' sums of masks taken off the sum alone.

Window by window, and a function of what was stored: whoever computes it, and however often, it is the same. No vector
of one client is ever unmasked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator_service import failpoints
from aggregator_service.allocator import give_back_free_pages
from aggregator_service.domain.helper_mode.records import (
    ContributionRecord,
    MaskRequestRecord,
    MaskSumRecord,
    in_order,
)
from aggregator_service.domain.records import RunRecord
from aggregator_service.flow.context import Flow
from aggregator_service.flow.sessions.sums import SessionSum, add_up, windows_of, write_sum
from aggregator_service.flow.sessions.vectors import Vector, vector_of
from aggregator_service.flow.windows import read_header
from aggregator_service.storage import contributions, mask_sums, models, runs
from aggregator_service.storage.blobs import BlobUpload
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.helper_mode import MaskSumState
from fl_protocol.masking import ring
from fl_protocol.masking.errors import RingError
from fl_protocol.masking.ring import Int64Array


@dataclass(frozen=True, slots=True)
class MaskSumming:
    """All that decides a round's sum."""

    mask_sum: MaskSumRecord
    run: RunRecord
    members: list[ContributionRecord]
    answers: list[MaskRequestRecord]
    vector: Vector


def load(flow: Flow, tx: ReadTx, round_id: str) -> MaskSumming | None:
    """Reads a round that waits for its sum; None if it no longer does."""
    mask_sum = mask_sums.get(tx, round_id)
    if mask_sum is None or mask_sum.state is not MaskSumState.SUMMING:
        return None
    run, model = runs.get(tx, mask_sum.run_id), models.get(tx, mask_sum.run_id, 0)
    if run is None or model is None:
        raise LookupError(f"round {round_id} lacks its run or model")
    header = read_header(lambda begin, end: flow.blobs.read_in(tx, model.blob_id, begin, end))
    return MaskSumming(
        mask_sum=mask_sum,
        run=run,
        members=in_order(contributions.of_round(tx, round_id)),
        answers=mask_sums.requests(tx, round_id),
        vector=vector_of(header, run.spec),
    )


def compute(flow: Flow, summing: MaskSumming) -> SessionSum | str:
    """Adds up a round's contributions; says why there is no sum if it is none that honest clients could have sent.

    Raises AggregationStoppedError while the server drains.
    """
    failpoints.reach("helper.sum_started")
    give_back_free_pages()
    upload, num_members = BlobUpload(flow.new_id("blob"), chunks_a_write=1), len(summing.members)
    try:
        total = write_sum(
            flow,
            upload,
            _windows(flow, summing),
            vector=summing.vector,
            spec=summing.run.spec,
            num_members=num_members,
        )
    except RingError as error:
        flow.blobs.discard_blocking(upload)
        return f"{error}: one of {num_members} clients sent what no honest one could have, or a helper told a wrong sum"
    except BaseException:
        flow.blobs.discard_blocking(upload)
        raise
    failpoints.reach("helper.sum_written")
    return total


def _windows(flow: Flow, summing: MaskSumming) -> Iterator[tuple[int, Int64Array]]:
    vector = summing.vector
    added, taken_off = _blob_ids(summing, summing.members), _blob_ids(summing, summing.answers)
    for first, end in windows_of(vector):
        sums = add_up(flow, added, vector=vector, first=first, end=end)
        np.subtract(sums, add_up(flow, taken_off, vector=vector, first=first, end=end), out=sums)
        yield first, ring.signed(sums, vector.ring.bits)
        failpoints.reach("helper.sum_halfway")


def _blob_ids(summing: MaskSumming, kept: Sequence[ContributionRecord | MaskRequestRecord]) -> list[str]:
    found = [one.blob_id for one in kept if one.blob_id is not None]
    if len(found) != len(kept):
        raise LookupError(f"round {summing.mask_sum.round_id} lacks a vector of its sum")
    return found
