"""Shows what a run promises about its clients' data, and what each round has cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import typer

from client_sdk.cli.output import cell, print_fields, print_json, print_table
from client_sdk.cli.promises import print_sentences, promise_fields

if TYPE_CHECKING:
    from fl_protocol.privacy_reports import LedgerEntry, PrivacyReport

_COLUMNS: Final = (
    "round", "attempt", "state", "epsilon", "epsilon_renyi", "num_participations", "num_updates", "created_at",
)  # fmt: skip
_HIDDEN: Final = ("run_id", "sentence", "promise", "ledger_head", "ledger_length")


def print_budget(report: "PrivacyReport", entries: "Sequence[LedgerEntry]", *, as_json: bool) -> None:
    """Prints a run's promise, its budget, and what became of each round's charge."""
    if as_json:
        ledger = [entry.model_dump(mode="json") for entry in entries]
        print_json(report.model_dump(mode="json") | {"ledger": ledger})
        return
    fields = {name: value for name, value in report.model_dump(mode="json").items() if name not in _HIDDEN}
    print_fields(fields | ({} if report.promise is None else promise_fields(report.promise)), as_json=False)
    typer.echo("")
    if report.promise is None:
        typer.echo(cell(report.sentence))
    else:
        print_sentences(report.promise)
    if report.epsilon_spent is None:
        return
    typer.echo("\nWhat the client that has taken part most often has spent:")
    reserved = {(entry.round, entry.attempt) for entry in entries if entry.state != "reserved"}
    settled = [entry for entry in entries if entry.state != "reserved" or (entry.round, entry.attempt) not in reserved]
    print_table(_COLUMNS, ([getattr(entry, column) for column in _COLUMNS] for entry in settled))
    if entries:
        typer.echo(f"The ledger's {len(entries)} entries are a chain that ends in {cell(report.ledger_head)}.")
