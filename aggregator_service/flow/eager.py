"""Folds the updates of rounds that still collect, so that little is left to do when they are sealed.

What was begun is this process's alone and changes no bit of the result: whoever has no begun sum, after a restart or in
another process, folds all updates. With it goes the lease of the round, so that another process leaves the rest to
this one while it lives (docs/adr/0041).
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from aggregator_service import failpoints
from aggregator_service.domain import batches
from aggregator_service.domain.batches import Sizes
from aggregator_service.domain.records import RoundRecord
from aggregator_service.domain.strategies.decision import WeightedMean
from aggregator_service.flow.begun_sums import BegunSum, Scratch
from aggregator_service.flow.comparison import open_clipped
from aggregator_service.flow.context import Flow
from aggregator_service.flow.contributions import Contribution, SealedUpdate
from aggregator_service.flow.sealed_rounds import (
    AggregationStoppedError,
    factored,
    load_collecting,
    noised_bound,
    reader,
    sealed_updates,
)
from aggregator_service.flow.sums import SumPlan, plan_mean, plan_noised, summed
from aggregator_service.flow.windows import read_header
from aggregator_service.storage import models, rounds, runs, updates
from aggregator_service.storage.blobs import BlobCorruptError
from aggregator_service.storage.engine import MAX_HELD_LEASES
from aggregator_service.storage.leases import exclusive
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.privacy import lattice
from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.tensors import Header
from fl_protocol.updates import floats_of, travelling_part, update_layout

_log = structlog.get_logger()


@dataclass(slots=True)
class _Held:
    """A begun sum with the lease of its round; `lock` is held by whoever reads or changes it."""

    begun: BegunSum
    lease: ExitStack
    lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        self.begun.scratch.close()
        self.lease.close()


class EagerFolding:
    """The begun sums of a process: one thread adds to them, another takes the one of a round that was sealed."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._sizes: dict[str, Sizes | None] = {}
        """How large updates are, by the first few of a round; None where it is not folded in parts."""

    def fold_due(self) -> bool:
        """Folds at most one batch of each collecting round; tells whether there was any."""
        at_least = batches.MIN_UPDATES
        found = self._flow.transactions.read_one_blocking(
            "find_filling", lambda tx: rounds.filling(tx, at_least=at_least)
        )
        self._forget_others({round_.round_id for round_ in found})
        folded = [self._is_due(round_) and self._fold(round_) for round_ in found]
        return any(folded)

    @contextmanager
    def taken(self, round_id: str) -> Iterator[BegunSum | None]:
        """Yields what was begun of a sealed round, once its last batch is done; it is gone afterwards."""
        with self._lock:
            held = self._held.pop(round_id, None)
        if held is None:
            yield None
            return
        with held.lock:
            try:
                yield held.begun
            finally:
                held.close()

    def close(self) -> None:
        """Frees what is held."""
        for round_id in list(self._held):
            self._drop(round_id)

    def _is_due(self, round_: RoundRecord) -> bool:
        held = self._held.get(round_.round_id)
        num_waiting = round_.num_updates - (0 if held is None else len(held.begun.members))
        if num_waiting < batches.MIN_UPDATES or (held is None and len(self._held) == MAX_HELD_LEASES):
            return False
        if round_.round_id not in self._sizes:
            self._sizes[round_.round_id] = self._flow.transactions.read_blocking(
                "look_up_sizes", lambda tx: _sizes(tx, round_)
            )
        sizes, num_awaited = self._sizes[round_.round_id], round_.num_awaited or round_.quorum
        return sizes is not None and batches.is_due(
            num_waiting, num_awaited=num_awaited - round_.num_updates, sizes=sizes
        )

    def _fold(self, round_: RoundRecord) -> bool:
        """Folds what waits; whatever goes wrong with it, the sealed round is folded from the stored bytes."""
        held = self._hold(round_.round_id)
        if held is None:
            return False
        try:
            with held.lock:
                folded = self._fold_batch(round_, held.begun)
        except AggregationStoppedError:
            self._drop(round_.round_id)
            return False
        except (OSError, EOFError, BlobCorruptError, ProblemError) as error:
            self._drop(round_.round_id)
            self._sizes[round_.round_id] = None
            _log.warning("eager_folding_given_up", round_id=round_.round_id, reason=str(error))
            return False
        except BaseException:
            self._drop(round_.round_id)
            raise
        if not folded:
            self._drop(round_.round_id)
        return folded

    def _fold_batch(self, round_: RoundRecord, begun: BegunSum) -> bool:
        sealed = self._flow.transactions.read_blocking("load_filling", lambda tx: load_collecting(tx, round_.round_id))
        if sealed is None:
            return False
        sizes = self._sizes[round_.round_id]
        most = batches.MIN_UPDATES if sizes is None else sizes.most_updates
        num_read = max(1, min(most, len(sealed.updates) - len(begun.members)))
        members, _ = factored(sealed_updates(self._flow, sealed, num_read=num_read), sealed)
        if not begun.members:
            begun.bound = noised_bound(sealed)
        if not begun.fits(members, bound=noised_bound(sealed)):
            return False
        model, num_before = read_header(reader(self._flow, sealed.base.blob_id)), len(begun.members)
        add_batch(begun, members, most=most, model=model, spec=sealed.run.spec)
        self._flow.telemetry.folded_early(len(begun.members) - num_before)
        failpoints.reach("eager.folded")
        return True

    def _hold(self, round_id: str) -> _Held | None:
        """Gives the begun sum of a round, an empty one if there is none; None while another process has its lease."""
        if round_id in self._held:
            return self._held[round_id]
        database = self._flow.transactions.database
        with ExitStack() as lease:
            if not lease.enter_context(exclusive(database, round_id)):
                return None
            held = _Held(BegunSum(Scratch(_folder(database.dialect, database.url.database)), None), lease.pop_all())
        with self._lock:
            self._held[round_id] = held
        return held

    def _drop(self, round_id: str) -> None:
        with self._lock:
            held = self._held.pop(round_id, None)
        if held is not None:
            held.close()

    def _forget_others(self, round_ids: set[str]) -> None:
        """Forgets the rounds that do not collect any more, but for those that wait for their aggregate."""
        self._sizes = {one: self._sizes[one] for one in self._sizes.keys() & round_ids}
        others = self._held.keys() - round_ids
        if not others:
            return
        going_on = self._flow.transactions.read_one_blocking("find_pending", lambda tx: rounds.pending(tx, others))
        for round_id in others - going_on:
            self._drop(round_id)


def add_batch(begun: BegunSum, members: Sequence[SealedUpdate], *, most: int, model: Header, spec: RunSpec) -> None:
    """Adds the next updates of a round to its begun sum; a tensor whose grid they change is added up anew.

    `members` are all that it has; it takes in `most` more of them. When it raises, the begun sum is of no use any more.
    """
    known = [one for one in members if one.update_id in begun.members]
    batch = [one for one in members if one.update_id not in begun.members][:most]
    contributions = open_clipped(
        [*known, *batch],
        model,
        holds=update_layout(model, spec),
        encoding=spec.encoding,
        strategy=spec.strategy,
        bound=begun.bound,
        begun=begun,
    )
    plan = _plan(begun, contributions, model=model, moving=travelling_part(model, spec))
    for window, sums in summed(plan, model):
        begun.scratch.write(sums.first, sums.whole(window))
        failpoints.reach("eager.folding")
    begun.take_in(batch, contributions)
    begun.grids, begun.magnitudes = plan.grids, plan.magnitudes


def _plan(begun: BegunSum, contributions: Sequence[Contribution], *, model: Header, moving: Header) -> SumPlan:
    if begun.bound is not None:
        shift = lattice.shift(begun.bound)
        return plan_noised(contributions, shift, model=model, moving=floats_of(moving), begun=begun)
    decision = WeightedMean([one.update.weight for one in contributions])
    return plan_mean(decision, contributions, model=model, moving=moving, begun=begun)


def _sizes(tx: ReadTx, round_: RoundRecord) -> Sizes | None:
    run = runs.get(tx, round_.run_id)
    if run is None or run.latest_version is None or not batches.adds_up_in_parts(run.spec):
        return None
    model, update_bytes = models.get(tx, run.run_id, run.latest_version), updates.mean_num_bytes(tx, round_.round_id)
    return None if model is None else Sizes(max(1, update_bytes), model.num_parameters)


def _folder(dialect: str, database: str | None) -> Path | None:
    """Gives where there is room for a sum: beside the SQLite file, else where the system has temporary files."""
    return Path(str(database)).parent if dialect == "sqlite" else None
