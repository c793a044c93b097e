"""Hears on Postgres what other server processes changed (LISTEN/NOTIFY)."""

import threading
import time
from collections.abc import Callable

import psycopg
import structlog

from aggregator_service.storage.engine import Database
from aggregator_service.storage.transactions import NOTIFICATION_CHANNEL

_log = structlog.get_logger()


class NotificationListener:
    """A thread that passes on the topics which any process announced; reconnects after a break."""

    def __init__(self, database: Database, on_topics: Callable[[frozenset[str]], None]) -> None:
        url = database.url.set(drivername="postgresql")
        self._connection_info = url.render_as_string(hide_password=False)
        self._on_topics = on_topics
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen_forever, name="listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def _listen_forever(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except psycopg.Error as error:
                _log.warning("notifications_lost", error=str(error))
                self._stopping.wait(0.5)

    def _listen(self) -> None:
        with psycopg.connect(self._connection_info, autocommit=True, connect_timeout=5) as connection:
            connection.execute(f"LISTEN {NOTIFICATION_CHANNEL}")
            started = time.monotonic()
            while not self._stopping.is_set():
                for notification in connection.notifies(timeout=0.5, stop_after=1):
                    self._on_topics(frozenset({notification.payload}))
                if time.monotonic() - started > 10:
                    connection.execute("SELECT 1")
                    started = time.monotonic()
