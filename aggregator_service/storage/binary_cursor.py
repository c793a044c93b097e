"""Takes Postgres's answers in binary form: as text, stored bytes come as hexadecimal digits and take five times longer.

Needs psycopg, which comes with the extra [postgres].
"""

from typing import Any

import psycopg
from psycopg.pq import Format


class BinaryCursor(psycopg.Cursor[Any]):
    """A cursor whose answers are binary."""

    def __init__(self, connection: psycopg.Connection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self.format = Format.BINARY
