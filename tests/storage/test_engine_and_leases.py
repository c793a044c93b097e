"""Opening databases, bringing schemas up to date, and leases that let one process at a time do a piece of work."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from aggregator_service.storage import schema
from aggregator_service.storage.engine import DatabaseUrlError, open_database
from aggregator_service.storage.leases import exclusive
from aggregator_service.storage.notifications import NotificationListener
from aggregator_service.storage.tables import metadata
from aggregator_service.storage.transactions import WriteTx
from tests.support.store import open_store
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no url at all", "write sqlite:///fedquorum.db or postgresql://user@host/name"),
        ("mysql://root@localhost/x", "'mysql' is not supported; use sqlite or postgresql"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_what_would_be_right(url: str, message: str) -> None:
    with pytest.raises(DatabaseUrlError, match=message):
        open_database(url)


def test_a_sqlite_file_is_private_durable_and_opened_by_one_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/folder/fedquorum.db"
    database = open_database(url)
    try:
        with database.writer.connect() as connection:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
        # 2 is FULL: a commit that was answered outlives a power cut.
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        for path in (tmp_path / "folder").iterdir():
            assert path.stat().st_mode & 0o077 == 0, path
        with pytest.raises(DatabaseUrlError, match="another server process uses"):
            open_database(url)
    finally:
        database.dispose()
    open_database(url).dispose()


def test_postgres_answers_a_commit_when_it_is_durable(postgres_server_url: str) -> None:
    database = open_database(postgres_server_url)
    try:
        with database.writer.connect() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    finally:
        database.dispose()


def test_a_migrated_schema_has_every_table_and_is_current(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    try:
        assert not schema.is_current(database)
        for _ in range(2):
            schema.migrate(database)
            assert schema.is_current(database)
        with database.readers.connect() as connection:
            found = set(sa.inspect(connection).get_table_names())
        assert found == {*metadata.tables, "alembic_version"}
    finally:
        database.dispose()


def test_many_may_migrate_at_once(empty_database_url: str) -> None:
    if empty_database_url.startswith("sqlite"):
        return  # a second process is refused by the file's lock
    databases = [open_database(empty_database_url) for _ in range(6)]
    try:
        with ThreadPoolExecutor(6) as pool:
            for job in [pool.submit(schema.migrate, database) for database in databases]:
                job.result()
        assert all(schema.is_current(database) for database in databases)
    finally:
        for database in databases:
            database.dispose()


def test_a_lease_is_held_by_one_and_let_go_with_its_connection(database_url: str) -> None:
    with open_store(database_url) as first:
        database = first.transactions.database
        with exclusive(database, "round_1") as held:
            assert held
            if database.dialect == "sqlite":
                return  # SQLite serves one process, which needs no lease
            with open_store(database_url) as second:
                other = second.transactions.database
                with exclusive(other, "round_1") as also, exclusive(other, "round_2") as another:
                    assert (also, another) == (False, True)
        with open_store(database_url) as second, exclusive(second.transactions.database, "round_1") as again:
            assert again


def test_a_process_hears_what_another_one_committed(database_url: str) -> None:
    if database_url.startswith("sqlite"):
        return  # there is no other process
    heard: set[str] = set()
    with open_store(database_url) as listening, open_store(database_url) as writing:
        listener = NotificationListener(listening.transactions.database, heard.update)
        try:

            def tell() -> bool:
                # Told again until the listener has connected; from then on nothing is lost.
                writing.write(lambda tx: tx.wake("hello"))
                return "hello" in heard

            eventually(tell)
            for number in range(100):
                writing.write(lambda tx, number=number: tx.wake(f"topic-{number}"))  # type: ignore[misc]
            eventually(lambda: {f"topic-{number}" for number in range(100)} <= heard)
            with pytest.raises(ValueError, match="no"):
                writing.write(_wake_and_fail)
            writing.write(lambda tx: tx.wake("end"))
            eventually(lambda: "end" in heard)
            assert "undone" not in heard
        finally:
            listener.close()


def _wake_and_fail(tx: WriteTx) -> None:
    tx.wake("undone")
    raise ValueError("no")
