"""What a private run's rounds cost: reserved when one opens, spent when its model appears, void if nothing came of it.

Everything here happens in the transaction that opens, publishes or abandons the round, or aborts a session of it. So no
model can be read before its cost is on the ledger, and two servers cannot both spend what is left.
"""

import asyncio
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from math import ceil

from aggregator_service.domain.privacy.ledger import Charge, LedgerEntry, LedgerState, ReleasedNoise, genesis
from aggregator_service.domain.records import RoundRecord, RunRecord
from aggregator_service.flow.context import Flow
from aggregator_service.storage import ledger, noise_keys, participations, rounds, runs, sessions
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.privacy.accounting import BudgetedPrivacy, delta_of, epsilon_spent, renyi_epsilon_spent
from fl_protocol.privacy.noise import KEY_BYTES
from fl_protocol.privacy.releases import accounting_library
from fl_protocol.privacy.shared_noise import SumSizes, shared_noise, sum_release
from fl_protocol.privacy_claims import PrivacyClaim, promise_of
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import (
    CentralPrivacy,
    DistributedSkellamPrivacy,
    NoisedByClients,
    num_participations,
)
from fl_protocol.specs.secure_aggregation import min_members


def next_charge(tx: ReadTx, run: RunRecord, *, besides: str | None = None) -> Charge | None:
    """Gives what the next release would bring the run to, whoever takes part; None for a run without an account.

    Those that the round `besides` has counted take part in no other release of that round.
    """
    if not isinstance(run.spec.privacy, BudgetedPrivacy):
        return None
    most = num_participations(run.spec)
    spread, others = _spread(tx, run), _spread(tx, run, besides=besides)
    worst = max(
        [1, *(charged for _, charged in spread), *(charged + 1 for counted, charged in others if counted < most)]
    )
    return _charge(tx, run, worst, smallest_sum=_fewest_survivors(run.spec))


def refusal(run: RunRecord, charge: Charge | None) -> str | None:
    """Says why a round may not open that would exceed the budget; None if it may."""
    privacy = run.spec.privacy
    if charge is None or not isinstance(privacy, BudgetedPrivacy) or charge.epsilon <= privacy.target_epsilon:
        return None
    return (
        f"the privacy budget is exhausted: one more round could bring a client to epsilon {charge.epsilon:.6g}, and "
        f"privacy.target_epsilon is {privacy.target_epsilon:g} (delta {charge.delta:g})"
    )


def reserve(tx: WriteTx, run: RunRecord, round_: RoundRecord, charge: Charge | None) -> None:
    """Sets aside what a round that was just opened may cost."""
    if charge is not None:
        _append(tx, run, round_, LedgerState.RESERVED, charge=charge)


def reserved(tx: ReadTx, round_id: str) -> Charge | None:
    """Gives what is set aside for an attempt at a round; None where nothing is, or no longer."""
    newest = ledger.of_round(tx, round_id)
    return newest.charge if newest is not None and newest.state is LedgerState.RESERVED else None


def draw_key(flow: Flow, tx: WriteTx, run: RunRecord, round_: RoundRecord) -> None:
    """Draws the key of a round's noise, once, in the transaction that seals the round."""
    if isinstance(run.spec.privacy, CentralPrivacy):
        noise_keys.insert(tx, round_.round_id, flow.entropy(KEY_BYTES))


def spend(
    tx: WriteTx, run: RunRecord, round_: RoundRecord, *, noise: ReleasedNoise | None, model_digest: str
) -> float | None:
    """Charges a round whose model is about to be published, and forgets its key; gives epsilon after it.

    `noise` is what the server added; where the clients did, their share of it is told instead.
    """
    if not isinstance(run.spec.privacy, BudgetedPrivacy):
        return None
    noise_keys.forget(tx, round_.round_id)
    charge, told = _spent_charge(tx, run, round_), _shared(tx, run.spec, round_) or noise
    _append(tx, run, round_, LedgerState.SPENT, charge=charge, noise=told, model_digest=model_digest)
    return charge.epsilon


def spend_unpublished(tx: WriteTx, run: RunRecord, round_id: str, *, num_survivors: int) -> None:
    """Charges a sum that clients have begun to unmask and that counts for nothing: the noise in it is theirs.

    A release of no model, which uses up what was set aside; what the round may yet cost is set aside anew.
    """
    round_, privacy = rounds.get(tx, round_id), run.spec.privacy
    if round_ is None or not isinstance(privacy, DistributedSkellamPrivacy):
        return
    charge = _charge(tx, run, _worst(tx, run), smallest_sum=num_survivors)
    told = _shared_noise(run.spec, privacy, num_survivors)
    _append(tx, run, round_, LedgerState.SPENT, charge=charge, noise=told)
    reserve(tx, run, round_, next_charge(tx, run, besides=round_id))


def give_back(tx: WriteTx, run: RunRecord, round_: RoundRecord) -> None:
    """Voids the reservation of an abandoned round; with noise added by clients, what has arrived is spent."""
    reserved = ledger.of_round(tx, round_.round_id)
    if reserved is None or reserved.state is not LedgerState.RESERVED:
        return
    noise_keys.forget(tx, round_.round_id)
    if isinstance(run.spec.privacy, NoisedByClients) and round_.num_updates:
        charge, told = _spent_charge(tx, run, round_), _shared(tx, run.spec, round_)
        _append(tx, run, round_, LedgerState.SPENT, charge=charge, noise=told)
    else:
        _append(tx, run, round_, LedgerState.VOID, charge=reserved.charge)


def claim(tx: ReadTx, run: RunRecord, client_id: str, *, round_number: int) -> PrivacyClaim | None:
    """Tells one client what it is promised, and what it will have spent after its next update."""
    promise = promise_of(run.spec.privacy)
    if promise is None:
        return None
    spec, (unit, adjacency, trust) = run.spec, promise
    counted, accepted = participations.of_client(tx, run.run_id, client_id)
    charged = accepted if isinstance(spec.privacy, NoisedByClients) else counted
    is_accounted = isinstance(spec.privacy, BudgetedPrivacy)
    newest, spent = ledger.last(tx, run.run_id), ledger.last_spent(tx, run.run_id)
    return PrivacyClaim(
        unit=unit,
        adjacency=adjacency,
        trust=trust,
        target_epsilon=getattr(spec.privacy, "target_epsilon", 0.0),
        delta=delta_of(spec) or None,
        epsilon_spent=0.0 if spent is None else spent.charge.epsilon,
        epsilon_yours=epsilon_spent(
            spec,
            num_participations=charged + 1,
            num_rounds=round_number,
            sums=_sums_after(spent, _fewest_survivors(spec)),
        )
        if is_accounted
        else getattr(spec.privacy, "target_epsilon", 0.0),
        noise_multiplier=getattr(spec.privacy, "noise_multiplier", None),
        num_participations=charged,
        max_participations=num_participations(spec),
        min_separation=spec.selection.min_separation,
        num_rounds=spec.num_rounds,
        num_abandoned=accepted - charged,
        ledger_head=None if newest is None else newest.hash,
        ledger_length=0 if newest is None else newest.sequence,
    )


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run's budget stands."""

    run: RunRecord
    spent: LedgerEntry | None
    newest: LedgerEntry | None
    next_charge: Charge | None


async def standing(flow: Flow, run_id: str) -> Standing:
    """Gives where a run's budget stands; raises `not-found`."""

    def body(tx: ReadTx) -> Standing:
        run = _run(tx, run_id)
        return Standing(run, ledger.last_spent(tx, run_id), ledger.last(tx, run_id), next_charge(tx, run))

    return await flow.transactions.read("privacy_standing", body)


async def list_entries(flow: Flow, run_id: str, *, after_sequence: int, limit: int) -> list[LedgerEntry]:
    """Lists a run's ledger from behind an entry; raises `not-found`."""

    def body(tx: ReadTx) -> list[LedgerEntry]:
        _run(tx, run_id)
        return ledger.page(tx, run_id, after_sequence=after_sequence, limit=limit)

    return await flow.transactions.read("list_ledger", body)


async def prepare(flow: Flow) -> None:
    """Loads the accounting library, which takes seconds, before the first transaction that needs it, if any will."""
    if await flow.transactions.read("find_private_runs", _has_private_run):
        await asyncio.to_thread(accounting_library)


def _has_private_run(tx: ReadTx) -> bool:
    return any(isinstance(spec.privacy, BudgetedPrivacy) for spec in runs.unfinished_specs(tx))


def _run(tx: ReadTx, run_id: str) -> RunRecord:
    run = runs.get(tx, run_id)
    if run is None:
        raise ProblemError(ProblemType.NOT_FOUND, f"there is no run {run_id!r}; list them with GET /v1/runs")
    return run


def _spread(tx: ReadTx, run: RunRecord, *, besides: str | None = None) -> list[tuple[int, int]]:
    """Gives (updates that count, updates that cost) of clients; an abandoned round's cost where clients noised them."""
    spread = participations.spread(tx, run.run_id, besides=besides)
    if isinstance(run.spec.privacy, NoisedByClients):
        return spread
    return [(counted, counted) for counted, _ in spread]


def _spent_charge(tx: ReadTx, run: RunRecord, round_: RoundRecord) -> Charge:
    """Gives what a round that has just ended brings the run to."""
    return _charge(tx, run, _worst(tx, run), smallest_sum=_smallest_sum(tx, run.spec, round_))


def _worst(tx: ReadTx, run: RunRecord) -> int:
    """Gives how often the client was in a release that has been in the most of them."""
    return max([1, *(charged for _, charged in _spread(tx, run))])


def _fewest_survivors(spec: RunSpec) -> int | None:
    """Gives how many clients a sum has at least, where that decides what it costs."""
    return min_members(spec) if isinstance(spec.privacy, DistributedSkellamPrivacy) else None


def _smallest_sum(tx: ReadTx, spec: RunSpec, round_: RoundRecord) -> int | None:
    """Gives how many clients the smallest sum of a round had; a client is in one, and has spent what that tells."""
    fewest = _fewest_survivors(spec)
    if fewest is None:
        return None
    done = sessions.done_of_round(tx, round_.round_id)
    # Nobody weighs more than another here, so that the weight of a sum is the number of its clients.
    return min((one.total_weight for one in done if one.total_weight is not None), default=fewest)


def _sums_after(spent: LedgerEntry | None, smallest_sum: int | None) -> SumSizes | None:
    """Gives the sizes of all releases' smallest sums, with one more."""
    if smallest_sum is None:
        return None
    sums = dict(spent.charge.smallest_sums or ()) if spent is not None else {}
    return sums | {smallest_sum: sums.get(smallest_sum, 0) + 1}


def _shared(tx: ReadTx, spec: RunSpec, round_: RoundRecord) -> ReleasedNoise | None:
    """Gives what the ledger says of noise that the clients of a round added."""
    privacy, survivors = spec.privacy, _smallest_sum(tx, spec, round_)
    if survivors is None or not isinstance(privacy, DistributedSkellamPrivacy):
        return None
    return _shared_noise(spec, privacy, survivors)


def _shared_noise(spec: RunSpec, privacy: DistributedSkellamPrivacy, survivors: int) -> ReleasedNoise:
    noise, release = shared_noise(spec), sum_release(spec, num_survivors=survivors)
    return ReleasedNoise(
        clipping_norm=privacy.clipping_norm,
        step=noise.step,
        sensitivity=ceil(noise.max_norm),
        stddev=release.stddev * noise.scale,
        num_elements=privacy.max_parameters,
    )


def _charge(tx: ReadTx, run: RunRecord, worst: int, *, smallest_sum: int | None) -> Charge:
    spec, num_releases = run.spec, ledger.count_spent(tx, run.run_id) + 1
    sums = _sums_after(ledger.last_spent(tx, run.run_id), smallest_sum)
    return Charge(
        mechanism=spec.privacy.kind,
        noise_multiplier=getattr(spec.privacy, "noise_multiplier", 0.0),
        num_releases=num_releases,
        num_participations=worst,
        epsilon=epsilon_spent(spec, num_participations=worst, num_rounds=num_releases, sums=sums),
        epsilon_renyi=renyi_epsilon_spent(spec, num_participations=worst, num_rounds=num_releases),
        delta=delta_of(spec),
        accountant=_accountant(),
        smallest_sums=None if sums is None else tuple(sorted(sums.items())),
    )


@cache
def _accountant() -> str:
    return f"dp-accounting {version('dp-accounting')}"


def _append(
    tx: WriteTx,
    run: RunRecord,
    round_: RoundRecord,
    state: LedgerState,
    *,
    charge: Charge,
    noise: ReleasedNoise | None = None,
    model_digest: str | None = None,
) -> None:
    before = ledger.last(tx, run.run_id)
    ledger.append(
        tx,
        LedgerEntry(
            run_id=run.run_id,
            sequence=1 if before is None else before.sequence + 1,
            round_id=round_.round_id,
            round=round_.number,
            attempt=round_.attempt,
            state=state,
            charge=charge,
            num_updates=round_.num_updates,
            noise=noise,
            model_digest=model_digest,
            created_at=tx.now(),
            previous_hash=genesis(run.run_id, runs.stored_spec(tx, run.run_id)) if before is None else before.hash,
        ),
    )
