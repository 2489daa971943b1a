"""Run by alembic for every migration, on the connection that `store.database` supplies."""

from alembic import context

from control_plane.edge.store.models import metadata

# The caller holds the transaction: all migrations are applied, or none.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
