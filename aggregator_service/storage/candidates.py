"""Which clients may take part in a round: eligible by attributes, not excluded, rested, and seen lately if need be."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from aggregator_service.domain.records import Candidate, RoundRecord
from aggregator_service.storage.tables import clients, invitations, rounds, run_clients, updates
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.rounds import RoundState
from fl_protocol.specs.selection import SelectionSpec, StratifiedSelection

Condition = sa.ColumnElement[bool]


def find(tx: ReadTx, round_: RoundRecord, selection: SelectionSpec, client_id: str) -> Candidate | None:
    """Gives a client as a candidate for a round; None if it may not take part."""
    found = _candidates(tx, selection, [*_may_take_part(round_, selection), clients.c.client_id == client_id])
    return found[0] if found else None


def belongs(tx: ReadTx, run_id: str, selection: SelectionSpec, client_id: str) -> bool:
    """Tells whether a client is eligible for a run and not excluded from it, rested or not."""
    return bool(_candidates(tx, selection, [*_belongs(run_id, selection), clients.c.client_id == client_id]))


def enrolled(tx: ReadTx, round_: RoundRecord, selection: SelectionSpec) -> list[Candidate]:
    """Lists every enrolled client that may take part in a round."""
    return _candidates(tx, selection, _may_take_part(round_, selection))


def count_enrolled(tx: ReadTx, round_: RoundRecord, selection: SelectionSpec) -> int:
    """Counts the enrolled clients that may take part in a round."""
    return _count(tx, _may_take_part(round_, selection))


def seen(tx: ReadTx, round_: RoundRecord, selection: SelectionSpec, *, since: datetime) -> list[Candidate]:
    """Lists the clients that may still be drawn for a round: seen since an instant and never invited to it."""
    return _candidates(tx, selection, _may_be_drawn(round_, selection, since=since))


def count_seen(tx: ReadTx, round_: RoundRecord, selection: SelectionSpec, *, since: datetime) -> int:
    """Counts the clients that may still be drawn for a round."""
    return _count(tx, _may_be_drawn(round_, selection, since=since))


def strata(tx: ReadTx, run_id: str, selection: StratifiedSelection) -> dict[str, int]:
    """Counts the enrolled clients of each stratum that belong to the run: eligible and not excluded, rested or not."""
    stratum = _stratum(selection).label("stratum")
    # By its name: Postgres would not see that two expressions with parameters are the same.
    query = sa.select(stratum, sa.func.count()).where(*_belongs(run_id, selection)).group_by("stratum")
    return dict(tx.connection.execute(query).all())


def _candidates(tx: ReadTx, selection: SelectionSpec, conditions: Sequence[Condition]) -> list[Candidate]:
    query = sa.select(clients.c.client_id, _stratum(selection)).where(*conditions)
    return [Candidate(client_id, stratum) for client_id, stratum in tx.connection.execute(query)]


def _count(tx: ReadTx, conditions: Sequence[Condition]) -> int:
    total: int = tx.connection.execute(sa.select(sa.func.count()).select_from(clients).where(*conditions)).scalar_one()
    return total


def _stratum(selection: SelectionSpec) -> Any:
    return _attribute(selection.attribute) if isinstance(selection, StratifiedSelection) else sa.literal("")


def _attribute(name: str) -> sa.ColumnElement[str]:
    value: sa.ColumnElement[str] = clients.c.attributes[name].as_string()
    return value


def _belongs(run_id: str, selection: SelectionSpec) -> list[Condition]:
    excluded = sa.exists().where(
        run_clients.c.run_id == run_id,
        run_clients.c.client_id == clients.c.client_id,
        run_clients.c.excluded_at.is_not(None),
    )
    conditions = [clients.c.revoked_at.is_(None), ~excluded]
    conditions += [_attribute(name).in_(allowed) for name, allowed in selection.eligibility.items()]
    if isinstance(selection, StratifiedSelection):
        conditions.append(_attribute(selection.attribute).is_not(None))
    return conditions


def _may_take_part(round_: RoundRecord, selection: SelectionSpec) -> list[Condition]:
    """Adds rest and the most participations; what counts is each update of a round that was not abandoned."""
    conditions = _belongs(round_.run_id, selection)
    participations = (
        sa.select(sa.func.count())
        .select_from(updates.join(rounds, rounds.c.round_id == updates.c.round_id))
        .where(
            updates.c.run_id == round_.run_id,
            updates.c.client_id == clients.c.client_id,
            rounds.c.state != RoundState.ABANDONED.value,
        )
    )
    if selection.min_separation:
        resting = participations.where(
            rounds.c.number.between(round_.number - selection.min_separation, round_.number - 1)
        )
        conditions.append(resting.scalar_subquery() == 0)
    if selection.max_participations is not None:
        conditions.append(participations.scalar_subquery() < selection.max_participations)
    return conditions


def _may_be_drawn(round_: RoundRecord, selection: SelectionSpec, *, since: datetime) -> list[Condition]:
    """Adds presence: a claim, or an update, which a client sends that has trained for longer than the window."""
    has_claimed = sa.exists().where(
        run_clients.c.run_id == round_.run_id,
        run_clients.c.client_id == clients.c.client_id,
        run_clients.c.seen_at >= since,
    )
    has_answered = sa.exists().where(
        updates.c.run_id == round_.run_id, updates.c.client_id == clients.c.client_id, updates.c.accepted_at >= since
    )
    is_invited = sa.exists().where(
        invitations.c.round_id == round_.round_id, invitations.c.client_id == clients.c.client_id
    )
    return [*_may_take_part(round_, selection), has_claimed | has_answered, ~is_invited]
