"""Shows what the newest evaluation says of each part of the federation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from client_sdk.cli.output import cell, print_table

if TYPE_CHECKING:
    from fl_protocol.rounds import Round


def print_newest_strata(rounds: "Sequence[Round]", *, attribute: str | None) -> None:
    """Prints a line for each stratum of the newest round that was evaluated by strata; nothing where none was."""
    evaluated = [done for done in rounds if done.evaluation_by_stratum]
    if not evaluated or attribute is None:
        return
    newest = evaluated[-1]
    typer.echo(f"\nevaluation of round {newest.number} by {cell(attribute)}")
    strata = (newest.evaluation_by_stratum or {}).items()
    print_table(
        (attribute, "num_reports", "num_examples", "metrics"),
        ([name or "(none)", told.num_reports, told.num_examples, told.metrics] for name, told in strata),
    )
