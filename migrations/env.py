"""Runs the migrations on the connection that the service hands over, or compares them with the tables."""

from alembic import context

from aggregator_service.storage import (  # their tables belong to the metadata, too
    helper_mode_tables,  # noqa: F401
    upload_tables,  # noqa: F401
)
from aggregator_service.storage.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
