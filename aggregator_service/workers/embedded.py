"""The worker inside a server process: makes sums of sessions and models of rounds, lets deadlines pass, sweeps."""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Final

import structlog

from aggregator_service.domain import topics
from aggregator_service.domain.helper_mode.records import MaskSumRecord
from aggregator_service.domain.records import RoundRecord
from aggregator_service.domain.sessions.records import SessionRecord
from aggregator_service.domain.sessions.steps import Abort
from aggregator_service.flow import (
    aggregation,
    expiry,
    lifecycle,
    publication,
    renditions,
    retention,
    sealed_rounds,
    uploads,
)
from aggregator_service.flow.aggregation import Candidate
from aggregator_service.flow.begun_sums import BegunSum
from aggregator_service.flow.context import Flow
from aggregator_service.flow.eager import EagerFolding
from aggregator_service.flow.fold import ModelOverflowError
from aggregator_service.flow.helper_mode import completion as helper_completion
from aggregator_service.flow.helper_mode import summing as mask_summing
from aggregator_service.flow.helper_mode.summing import MaskSumming
from aggregator_service.flow.optimizer_state import OptimizerStateError
from aggregator_service.flow.sealed_rounds import AggregationStoppedError, SealedRound
from aggregator_service.flow.sessions import completion, unmasking
from aggregator_service.flow.sessions.sums import SessionSum
from aggregator_service.flow.sessions.unmasking import Summing
from aggregator_service.storage import mask_sums, rounds, sessions
from aggregator_service.storage.blobs import BlobCorruptError
from aggregator_service.storage.leases import exclusive
from fl_protocol.helper_mode import MaskSumState
from fl_protocol.rounds import RoundState
from fl_protocol.sessions import SessionState

_IDLE_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.05
_NICENESS: Final = 5
_BACKOFF_SECONDS: Final = 1.0
_SWEEP_SECONDS: Final = 600.0

_log = structlog.get_logger()


class EmbeddedWorker:
    """Six loops, each of which outlives the failure of a step."""

    def __init__(self, flow: Flow, *, orphans_begun_before: datetime | None) -> None:
        self._flow = flow
        self._orphans_begun_before = orphans_begun_before
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aggregate")
        self._eager = EagerFolding(flow)
        self._eager_thread = ThreadPoolExecutor(1, thread_name_prefix="fold", initializer=_step_back)

    def start(self) -> None:
        """Begins the loops."""
        loops = (
            ("aggregate", topics.SEALED, self._aggregate_all),
            ("fold", topics.FOLDING, self._fold_eagerly),
            ("unmask", topics.SUMMING, self._unmask_all),
            ("expire", topics.DEADLINES, self._expire),
            ("sweep", topics.RETENTION, self._sweep),
            ("retain", topics.RETENTION, self._retain),
        )
        self._tasks = [
            asyncio.create_task(self._repeat(name, step, topic=topic), name=name) for name, topic, step in loops
        ]

    async def stop(self) -> None:
        """Ends the loops; a round being aggregated is left at once and taken up again after the next start."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._eager_thread.shutdown)
        self._eager.close()

    async def _repeat(self, name: str, step: Callable[[], Awaitable[float]], *, topic: str) -> None:
        while True:
            seen = self._flow.wakeups.seen(topic)
            try:
                pause = await step()
            except Exception as error:  # noqa: BLE001 - a loop outlives the failure of a step
                _log.error("worker_step_failed", step=name, exc_info=error)
                await asyncio.sleep(_BACKOFF_SECONDS)
                continue
            if self._flow.wakeups.closed:
                return
            await self._flow.wakeups.wait(topic, seen, timeout_seconds=pause)

    async def _aggregate_all(self) -> float:
        for round_ in await self._flow.transactions.read_one("find_sealed", rounds.sealed):
            await self._aggregate(round_)
        return _IDLE_SECONDS

    async def _fold_eagerly(self) -> float:
        while await asyncio.get_running_loop().run_in_executor(self._eager_thread, self._eager.fold_due):
            pass
        # Many small updates may come in a second, and a look costs a query: what has waited meanwhile is one batch.
        await asyncio.sleep(_LOOK_SECONDS)
        return _IDLE_SECONDS

    async def _unmask_all(self) -> float:
        for session in await self._flow.transactions.read_one("find_summing", sessions.summing):
            await self._unmask(session)
        for mask_sum in await self._flow.transactions.read_one("find_mask_summing", mask_sums.summing):
            await self._take_masks_off(mask_sum)
        return _IDLE_SECONDS

    async def _unmask(self, session: SessionRecord) -> None:
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(self._thread, self._sum, session)
        except AggregationStoppedError:
            return
        except BlobCorruptError as error:
            if not await self._is_summing(session):
                # Somebody else has ended it meanwhile, and removed what was sent.
                return
            reason = f"the sum of session {session.session_id} cannot be computed: {error}"
            _log.error("run_failed", run_id=session.run_id, reason=reason)
            await lifecycle.fail_run(self._flow, session.run_id, reason)
            return
        if outcome is not None:
            await completion.settle(self._flow, *outcome)

    async def _is_summing(self, session: SessionRecord) -> bool:
        found = await self._flow.transactions.read_one("get_session", lambda tx: sessions.get(tx, session.session_id))
        return found is not None and found.state is SessionState.SUMMING

    def _sum(self, session: SessionRecord) -> tuple[Summing, SessionSum | Abort] | None:
        """Computes a session's sum unless another process is at it or has done it."""
        transactions = self._flow.transactions
        with exclusive(transactions.database, session.session_id) as held:
            if not held:
                return None
            summing = transactions.read_blocking(
                "load_summing", lambda tx: unmasking.load(self._flow, tx, session.session_id)
            )
            return None if summing is None else (summing, unmasking.compute(self._flow, summing))

    async def _take_masks_off(self, mask_sum: MaskSumRecord) -> None:
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(self._thread, self._sum_round, mask_sum)
        except AggregationStoppedError:
            return
        except BlobCorruptError as error:
            found = await self._flow.transactions.read_one(
                "get_mask_sum", lambda tx: mask_sums.get(tx, mask_sum.round_id)
            )
            if found is not None and found.state is MaskSumState.SUMMING:
                reason = f"the sum of round {mask_sum.round_id} cannot be computed: {error}"
                _log.error("run_failed", run_id=mask_sum.run_id, reason=reason)
                await lifecycle.fail_run(self._flow, mask_sum.run_id, reason)
            return
        if outcome is not None:
            await helper_completion.settle(self._flow, *outcome)

    def _sum_round(self, mask_sum: MaskSumRecord) -> tuple[MaskSumming, SessionSum | str] | None:
        """Computes the sum of a round in helper mode unless another process is at it or has done it."""
        transactions = self._flow.transactions
        with exclusive(transactions.database, mask_sum.round_id) as held:
            if not held:
                return None
            found = transactions.read_blocking(
                "load_mask_summing", lambda tx: mask_summing.load(self._flow, tx, mask_sum.round_id)
            )
            return None if found is None else (found, mask_summing.compute(self._flow, found))

    async def _is_aggregating(self, round_: RoundRecord) -> bool:
        found = await self._flow.transactions.read_one("get_round", lambda tx: rounds.get(tx, round_.round_id))
        return found is not None and found.state is RoundState.AGGREGATING

    async def _expire(self) -> float:
        due = await expiry.expire(self._flow)
        return _IDLE_SECONDS if due is None else max(0.001, min(due, _IDLE_SECONDS))

    async def _sweep(self) -> float:
        removed = await expiry.sweep_orphans(self._flow, begun_before=self._orphans_begun_before)
        self._orphans_begun_before = None
        if removed:
            _log.info("orphans_swept", count=removed)
        if forgotten := await renditions.forget_old(self._flow):
            _log.info("renditions_forgotten", count=forgotten)
        if given_up := await uploads.forget_vain(self._flow):
            _log.info("uploads_forgotten", count=given_up)
        await asyncio.sleep(_SWEEP_SECONDS)
        return 0.001

    async def _retain(self) -> float:
        removed = await retention.remove_old(self._flow)
        if removed:
            _log.info("removed_by_policy", count=removed)
        await self._flow.blobs.remove_bytes()
        return _IDLE_SECONDS

    async def _aggregate(self, round_: RoundRecord) -> None:
        started = time.perf_counter()
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, round_)
        except AggregationStoppedError:
            return
        except (ModelOverflowError, OptimizerStateError, BlobCorruptError) as error:
            if not await self._is_aggregating(round_):
                # Somebody else has ended it meanwhile, and what it was made of may be gone by the run's policy.
                return
            reason = f"round {round_.number} cannot be aggregated: {error}"
            _log.error("run_failed", run_id=round_.run_id, reason=reason)
            await lifecycle.fail_run(self._flow, round_.run_id, reason)
            return
        if outcome is not None and await publication.publish(self._flow, *outcome):
            self._flow.telemetry.aggregated(time.perf_counter() - started)

    def _compute(self, round_: RoundRecord) -> tuple[SealedRound, Candidate] | None:
        """Computes a round's model unless another process is at it or has done it."""
        with self._eager.taken(round_.round_id) as begun:
            if begun is not None:
                return self._load_and_compute(round_, begun=begun)
        with exclusive(self._flow.transactions.database, round_.round_id) as held:
            return self._load_and_compute(round_) if held else None

    def _load_and_compute(
        self, round_: RoundRecord, *, begun: BegunSum | None = None
    ) -> tuple[SealedRound, Candidate] | None:
        transactions = self._flow.transactions
        sealed = transactions.read_blocking("load_sealed", lambda tx: sealed_rounds.load_sealed(tx, round_.round_id))
        return None if sealed is None else (sealed, aggregation.compute(self._flow, sealed, begun=begun))


def _step_back() -> None:
    """Lets whoever receives updates go first on a busy machine; on Linux a thread has a priority of its own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
