"""Whom the server chooses for a round: draws and coins, inside a transaction that has locked the run."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from aggregator_service.domain import allocation, cohort, presence, topics
from aggregator_service.domain.records import Candidate, DrawRecord, RoundRecord, RunRecord
from aggregator_service.flow import buffers
from aggregator_service.flow.context import Flow
from aggregator_service.storage import candidates, invitations, rounds
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.specs.rounds import MAX_COHORT_SIZE, BufferedRoundSpec
from fl_protocol.specs.selection import (
    DrawnSelection,
    OpenSelection,
    PoissonSelection,
    SelectionSpec,
    StratifiedSelection,
)

_ANYONE: Final = OpenSelection()


class CohortTooLargeError(Exception):
    """More coins came up than a round has room for; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """Where a client without a task stands in a collecting round.

    `may_claim`: a claim may end in a task. `draw_at`: until then a draw waits for more clients.
    """

    may_claim: bool
    draw_at: datetime | None = None


def open_cohort(flow: Flow, tx: WriteTx, run: RunRecord, round_: RoundRecord) -> None:
    """Tosses the coins of a round that has just been opened, or draws its cohort if enough clients are there.

    Raises CohortTooLargeError.
    """
    selection = run.spec.selection
    if isinstance(selection, OpenSelection):
        return
    key = flow.entropy(cohort.KEY_BYTES)
    if isinstance(selection, DrawnSelection) and selection.seed is not None:
        key = cohort.seeded_key(selection.seed, number=round_.number, attempt=round_.attempt)
    invitations.insert_draw(tx, DrawRecord(round_.round_id, key, None))
    if isinstance(selection, PoissonSelection):
        _toss_all(tx, selection, round_, key)
    else:
        draw_if_due(tx, run, round_)


def prospect(tx: ReadTx, run: RunRecord, round_: RoundRecord, client_id: str) -> Prospect:
    """Tells whether a client without a task may get one in a collecting round."""
    selection = run.spec.selection
    if isinstance(selection, OpenSelection):
        has_place = _has_place(tx, run, round_, client_id)
        return Prospect(has_place and (selection == _ANYONE or _may_take_part(tx, selection, round_, client_id)))
    is_invited = invitations.find(tx, round_.round_id, client_id)
    if is_invited is not None:
        return Prospect(is_invited)
    if isinstance(selection, PoissonSelection):
        return Prospect(_come_up_late(tx, selection, round_, client_id) is not None)
    return _prospect_undrawn(tx, selection, round_, client_id)


def may_evaluate(tx: ReadTx, run: RunRecord, client_id: str) -> bool:
    """Tells whether a client may evaluate a run's models: whoever is eligible to train, however often it has."""
    selection = run.spec.selection
    return selection == _ANYONE or candidates.belongs(tx, run.run_id, selection, client_id)


def count_admitted(tx: ReadTx, run: RunRecord, round_: RoundRecord) -> int:
    """Counts the enrolled clients that selection admits to a round, whether or not they come."""
    return candidates.count_enrolled(tx, round_, run.spec.selection)


def take_place(tx: WriteTx, run: RunRecord, round_: RoundRecord, client_id: str) -> bool:
    """Makes the choice that waits for a client's claim, if any does, and tells whether the client has a place.

    The client's `prospect` in this transaction was that it may claim.
    """
    selection = run.spec.selection
    if isinstance(selection, OpenSelection):
        return True
    if invitations.find(tx, round_.round_id, client_id) is None:
        if isinstance(selection, PoissonSelection):
            _invite_late(tx, selection, round_, client_id)
        else:
            draw_if_due(tx, run, round_)
    return invitations.find(tx, round_.round_id, client_id) is True


def withdraw(tx: WriteTx, round_id: str, client_id: str) -> None:
    """Takes a client's place in a drawn cohort back, so that another is drawn; no coin is tossed again."""
    if invitations.withdraw(tx, round_id, client_id):
        rounds.count_awaited(tx, round_id, -1)


def draw_if_due(tx: WriteTx, run: RunRecord, round_: RoundRecord) -> None:
    """Fills the vacant places of a drawn cohort from those who are there, and wakes those who wait."""
    selection, drawing = run.spec.selection, invitations.get_draw(tx, round_.round_id)
    if drawing is None or not isinstance(selection, DrawnSelection):
        return
    places = drawing.places
    vacancies = None if places is None else _vacancies(tx, round_, places)
    if vacancies is not None and not any(vacancies.values()):
        return
    present = candidates.seen(tx, round_, selection, since=_since(tx, selection))
    if vacancies is None:
        if not cohort.may_draw(round_, num_candidates=len(present), now=tx.now()):
            return
        vacancies = _places(tx, selection, round_)
        invitations.set_places(tx, round_.round_id, vacancies)
    drawn = _drawn(drawing.key, present, vacancies)
    if drawn:
        invitations.invite(tx, round_.round_id, drawn)
        tx.wake(topics.tasks_of(run.run_id))


def _has_place(tx: ReadTx, run: RunRecord, round_: RoundRecord, client_id: str) -> bool:
    if isinstance(run.spec.round, BufferedRoundSpec):
        return buffers.is_free(tx, run, run.spec.round, round_=round_, client_id=client_id)
    return cohort.has_place(round_)


def _may_take_part(tx: ReadTx, selection: SelectionSpec, round_: RoundRecord, client_id: str) -> bool:
    return candidates.find(tx, round_, selection, client_id) is not None


def _prospect_undrawn(tx: ReadTx, selection: DrawnSelection, round_: RoundRecord, client_id: str) -> Prospect:
    candidate, drawing = candidates.find(tx, round_, selection, client_id), invitations.get_draw(tx, round_.round_id)
    if candidate is None or drawing is None:
        return Prospect(may_claim=False)
    if drawing.places is not None:
        return Prospect(_vacancies(tx, round_, drawing.places).get(candidate.stratum, 0) > 0)
    num_candidates = candidates.count_seen(tx, round_, selection, since=_since(tx, selection))
    if cohort.may_draw(round_, num_candidates=num_candidates, now=tx.now()):
        return Prospect(may_claim=True)
    return Prospect(may_claim=False, draw_at=cohort.gathering_ends(round_))


def _toss_all(tx: WriteTx, selection: PoissonSelection, round_: RoundRecord, key: bytes) -> None:
    everyone = candidates.enrolled(tx, round_, selection)
    chosen = [one for one in everyone if cohort.coin(key, one.client_id, selection.probability)]
    if len(chosen) > MAX_COHORT_SIZE:
        raise CohortTooLargeError(
            f"the coins of round {round_.number} chose {len(chosen)} of {len(everyone)} clients, and at most "
            f"{MAX_COHORT_SIZE} may take part; create a run with a smaller selection.probability than "
            f"{selection.probability:g}"
        )
    invitations.invite(tx, round_.round_id, chosen)
    rounds.await_updates(
        tx,
        round_.round_id,
        num_awaited=len(chosen),
        expected_cohort=selection.probability * (selection.population or len(everyone)),
    )


def _come_up_late(tx: ReadTx, selection: PoissonSelection, round_: RoundRecord, client_id: str) -> Candidate | None:
    """Gives a client that came after the opening if its coin came up; every other coin was tossed at the opening."""
    drawing = invitations.get_draw(tx, round_.round_id)
    if drawing is None or not cohort.coin(drawing.key, client_id, selection.probability):
        return None
    if (round_.num_awaited or 0) >= MAX_COHORT_SIZE:
        return None
    return candidates.find(tx, round_, selection, client_id)


def _invite_late(tx: WriteTx, selection: PoissonSelection, round_: RoundRecord, client_id: str) -> None:
    late = _come_up_late(tx, selection, round_, client_id)
    if late is not None:
        invitations.invite(tx, round_.round_id, [late])
        rounds.count_awaited(tx, round_.round_id, 1)


def _since(tx: ReadTx, selection: DrawnSelection) -> datetime:
    return tx.now() - presence.seen_within(selection)


def _places(tx: ReadTx, selection: DrawnSelection, round_: RoundRecord) -> dict[str, int]:
    if not isinstance(selection, StratifiedSelection):
        return {"": round_.cohort_size}
    weights = candidates.strata(tx, round_.run_id, selection)
    if selection.allocation == "equal":
        weights = dict.fromkeys(weights, 1)
    return allocation.places(weights, number=round_.number, cohort_size=round_.cohort_size)


def _vacancies(tx: ReadTx, round_: RoundRecord, places: Mapping[str, int]) -> dict[str, int]:
    taken = invitations.count(tx, round_.round_id)
    return {stratum: number - taken.get(stratum, 0) for stratum, number in places.items()}


def _drawn(key: bytes, present: Sequence[Candidate], vacancies: Mapping[str, int]) -> list[Candidate]:
    members: defaultdict[str, list[str]] = defaultdict(list)
    for one in present:
        members[one.stratum].append(one.client_id)
    return [
        Candidate(client_id, stratum)
        for stratum, number in vacancies.items()
        for client_id in cohort.draw(key, members[stratum], number)
    ]
