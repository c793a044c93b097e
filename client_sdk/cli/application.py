"""The commands and where they are."""

from typing import Final

import typer

from client_sdk.cli import (
    clients,
    demo,
    helper,
    identity,
    models,
    participation,
    planning,
    privacy,
    runs,
    service,
    tokens,
)

app: Final = typer.Typer(
    help="Federated learning over HTTP: serve it, run it, take part in it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
service.add_to(app)
app.command("demo")(demo.demo)
app.command("plan")(planning.plan)
app.command("participate")(participation.participate)
app.add_typer(runs.app, name="run", help="Create, steer and watch runs (operator).")
app.add_typer(clients.app, name="clients", help="List, enrol and revoke clients (operator).")
app.add_typer(identity.app, name="identity", help="A client's identity in masked runs: its key, and what others need.")
app.add_typer(helper.app, name="helper", help="Run a helper of masked runs: it tells sums of masks, never one.")
app.add_typer(tokens.app, name="token", help="Make tokens for new clients and for helpers (operator).")
app.add_typer(models.app, name="model", help="List and download models, with how they came about.")
app.add_typer(privacy.app, name="privacy", help="Plan the noise and the budget of a private run.")
