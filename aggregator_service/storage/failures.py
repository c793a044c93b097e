"""Tells apart what a database error means: try again, come back later, no space left, or a bug."""

import errno
from typing import Final

import sqlalchemy as sa

from fl_protocol.problems import ProblemError, ProblemType

_CONFLICTS: Final = frozenset({"40001", "40P01", "55P03", "23505"})
"""Postgres: serialization failure, deadlock, lock not available, and the unique violation of two racing inserts."""

_FULL: Final = frozenset({"53100"})


def _sqlstate(error: BaseException) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def is_conflict(error: BaseException) -> bool:
    """Tells whether the transaction lost against another one and was rolled back."""
    if _sqlstate(error) in _CONFLICTS:
        return True
    return isinstance(error, sa.exc.OperationalError) and "database is locked" in str(error.orig)


def is_disconnect(error: BaseException) -> bool:
    """Tells whether the connection broke or none could be had."""
    if isinstance(error, sa.exc.TimeoutError):
        return True
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = _sqlstate(error)
    is_postgres = "psycopg" in type(error.orig).__module__
    return is_postgres and isinstance(error, sa.exc.OperationalError) and (state is None or state[:2] in ("08", "57"))


def as_problem(error: BaseException) -> ProblemError | None:
    """Gives the problem a caller should be told of; None for a bug."""
    if _is_full(error):
        return ProblemError(
            ProblemType.INSUFFICIENT_STORAGE,
            "the server has no space left to store this; nothing was kept, try again later",
            retry_after_seconds=30,
        )
    if is_disconnect(error) or is_conflict(error):
        return ProblemError(
            ProblemType.UNAVAILABLE, "the database cannot be reached right now; try again", retry_after_seconds=1
        )
    return None


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if _sqlstate(error) in _FULL:
        return True
    original = str(getattr(error, "orig", ""))
    return "database or disk is full" in original or "disk I/O error" in original
