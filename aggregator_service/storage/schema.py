"""Brings the database's schema up to date, under a lock, with Alembic."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from aggregator_service.storage.engine import Database

_ADVISORY_LOCK: Final = 0x46514D47
_WAIT_SECONDS: Final = 60.0

_log = structlog.get_logger()


class SchemaError(Exception):
    """The schema cannot be used by this version; the message says what to do."""


def migrations_folder() -> Path:
    """Finds the migrations: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def alembic_config() -> Config:
    """Gives Alembic's configuration for this project's migrations."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    return config


def migrate(database: Database) -> None:
    """Applies missing migrations; waits for a database that starts, refuses one from a newer version (SchemaError)."""
    _wait_until_reachable(database)
    with _locked(database) as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        script = ScriptDirectory.from_config(config)
        found = _revision(connection)
        _refuse_unknown(script, found)
        command.upgrade(config, "head")
        if found != script.get_current_head():
            _check_references(connection)


def is_current(database: Database) -> bool:
    """Tells whether the database answers and has exactly this version's schema."""
    with database.readers.connect() as connection:
        return _revision(connection) == ScriptDirectory.from_config(alembic_config()).get_current_head()


def _revision(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_unknown(script: ScriptDirectory, revision: str | None) -> None:
    if revision is None:
        return
    try:
        script.get_revision(revision)
    except CommandError:
        raise SchemaError(
            f"the database's schema {revision!r} is newer than this version of fedquorum knows; upgrade fedquorum"
        ) from None


@contextmanager
def _locked(database: Database) -> Iterator[sa.Connection]:
    with database.writer.connect() as connection, _rebuilding(connection), connection.begin():
        if database.dialect == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        yield connection


def _wait_until_reachable(database: Database) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    pause = 0.1
    while True:
        try:
            with database.writer.connect() as connection:
                connection.execute(sa.select(1))
                return
        except sa.exc.OperationalError as error:
            if time.monotonic() > deadline:
                raise SchemaError(
                    f"the database could not be reached for {_WAIT_SECONDS:.0f} s: {error.orig}"
                ) from error
            _log.warning("waiting_for_database", error=str(error.orig))
            time.sleep(pause)
            pause = min(2.0, pause * 2)


@contextmanager
def _rebuilding(connection: sa.Connection) -> Iterator[None]:
    """Lets SQLite change a table that others refer to, which it does by building it anew and dropping the old one."""
    # The pragma does nothing inside a transaction, and the pool's connection would begin one.
    driver = connection.connection.driver_connection
    if connection.dialect.name != "sqlite" or driver is None:
        yield
        return
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _check_references(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken is not None:
            raise SchemaError(f"a migration left a row of {broken[0]!r} without the {broken[2]!r} it refers to")
