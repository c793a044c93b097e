"""The draws and invitations tables: who was drawn for an attempt at a round, and with which key."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import Candidate, DrawRecord
from aggregator_service.storage.rows import change_one, changes_one, fields
from aggregator_service.storage.tables import draws, invitations
from aggregator_service.storage.transactions import ReadTx, WriteTx

_GET_DRAW: Final = sa.select(draws).where(draws.c.round_id == sa.bindparam("round_id"))
_FIND: Final = sa.select(invitations.c.withdrawn).where(
    invitations.c.round_id == sa.bindparam("round_id"), invitations.c.client_id == sa.bindparam("client_id")
)
_COUNT: Final = (
    sa.select(invitations.c.stratum, sa.func.count())
    .where(invitations.c.round_id == sa.bindparam("round_id"), invitations.c.withdrawn == sa.false())
    .group_by(invitations.c.stratum)
)
_INVITE: Final = sa.insert(invitations)


def insert_draw(tx: WriteTx, draw: DrawRecord) -> None:
    """Adds the draw of an attempt at a round."""
    places = None if draw.places is None else dict(draw.places)
    tx.connection.execute(sa.insert(draws).values(round_id=draw.round_id, key=draw.key, places=places))


def get_draw(tx: ReadTx, round_id: str) -> DrawRecord | None:
    """Gives the draw of an attempt; None where nobody is drawn."""
    row = tx.connection.execute(_GET_DRAW, {"round_id": round_id}).one_or_none()
    return None if row is None else DrawRecord(**fields(row))


def set_places(tx: WriteTx, round_id: str, places: Mapping[str, int]) -> None:
    """Fixes the places of each stratum in an attempt."""
    change_one(tx, sa.update(draws).where(draws.c.round_id == round_id).values(places=dict(places)))


def invite(tx: WriteTx, round_id: str, drawn: Iterable[Candidate]) -> None:
    """Adds those who were drawn."""
    rows: list[dict[str, Any]] = [
        {"round_id": round_id, "client_id": one.client_id, "stratum": one.stratum, "withdrawn": False} for one in drawn
    ]
    if rows:
        tx.connection.execute(_INVITE, rows)


def find(tx: ReadTx, round_id: str, client_id: str) -> bool | None:
    """Tells whether a client's invitation stands; False if it was withdrawn, None if there never was one."""
    withdrawn = tx.connection.execute(_FIND, {"round_id": round_id, "client_id": client_id}).scalar_one_or_none()
    return None if withdrawn is None else not withdrawn


def count(tx: ReadTx, round_id: str) -> dict[str, int]:
    """Counts the invitations of an attempt that stand, by stratum."""
    return dict(tx.connection.execute(_COUNT, {"round_id": round_id}).all())


def withdraw(tx: WriteTx, round_id: str, client_id: str) -> bool:
    """Takes an invitation back; False if none stands."""
    return changes_one(
        tx,
        sa.update(invitations)
        .where(
            invitations.c.round_id == round_id,
            invitations.c.client_id == client_id,
            invitations.c.withdrawn == sa.false(),
        )
        .values(withdrawn=True),
    )
