"""What the tables are made of: their names' convention, and the types of their columns."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Instant(sa.types.TypeDecorator[datetime]):
    """An instant as microseconds since 1970 in UTC: exact and alike on both databases."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> int | None:  # noqa: ARG002 - given by SQLAlchemy
        """Turns an aware datetime into microseconds."""
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any, dialect: Any) -> datetime | None:  # noqa: ARG002 - given by SQLAlchemy
        """Turns microseconds into an aware datetime."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)


def identifier(name: str, *arguments: Any, **options: Any) -> sa.Column[str]:
    """Makes a column of identifiers."""
    return sa.Column(name, sa.String(64), *arguments, **options)
