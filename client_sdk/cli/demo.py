"""`fedquorum demo`."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import functools
import importlib.util
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from client_sdk.cli.options import Json
from client_sdk.cli.output import console, print_json
from client_sdk.errors import UsageError

if TYPE_CHECKING:
    from client_sdk.demo.report import DemoResult

MIN_MASKED_CLIENTS: Final = 3
"""Of two clients' sum each could take its own part off, and know the other's."""


def demo(
    clients: Annotated[int, typer.Option(min=1, max=100, help="How many clients take part.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How many rounds are trained.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same model.")] = 0,
    folder: Annotated[Path, typer.Option(help="Where the database and the model are kept.")] = Path("fedquorum-demo"),
    secure_aggregation: Annotated[
        bool, typer.Option("--secure-aggregation", help="Mask the updates: the server learns only their sum.")
    ] = False,
    keep_serving: Annotated[bool, typer.Option("--keep-serving", help="Leave the server running at the end.")] = False,
    as_json: Json = False,
) -> None:
    """Watch clients train a network on MNIST: a real server on SQLite, real HTTP, all on this machine."""
    for name, extra in (("torch", "torch"), ("fastapi", "server"), ("uvicorn", "server"), ("sqlalchemy", "server")):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"the demo needs {name} (the extra [{extra}]): pip install 'fedquorum[demo]'")
    import anyio

    from client_sdk.demo.run import DemoSettings, run_demo

    if secure_aggregation and clients < MIN_MASKED_CLIENTS:
        raise UsageError(f"--clients {clients} are too few for --secure-aggregation: at least {MIN_MASKED_CLIENTS}")
    settings = DemoSettings(
        folder=folder,
        num_clients=clients,
        num_rounds=rounds,
        seed=seed,
        secure_aggregation=secure_aggregation,
        keep_serving=keep_serving,
    )
    out = console(stderr=as_json)

    def tell(result: "DemoResult") -> None:
        if as_json:
            print_json(result.as_json())

    token = secrets.token_urlsafe(32)
    anyio.run(functools.partial(run_demo, settings, out, operator_token=token, on_result=tell))
