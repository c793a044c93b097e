"""Presets on the command line: what one puts into a specification, and what a run then promises."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import textwrap
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import typer

from client_sdk.cli.output import cell, print_json, print_table
from client_sdk.errors import UsageError

if TYPE_CHECKING:
    from fl_protocol.presets import Row
    from fl_protocol.promises import Promise
    from fl_protocol.runs import RunSpec

_WIDTH: Final = 100
_LEGEND: Final = (
    "In a run the sentences have its own numbers (`run show RUN`). n_min: the fewest clients of whom the server learns "
    "a sum, secure_aggregation.min_members. A: the members of a session that may collude. H: those hidden among each "
    "other then. epsilon, delta: privacy.target_epsilon and privacy.delta, for the whole run."
)

COLUMNS: Final = ("preset", "secure_aggregation", "privacy", "a single update", "ledger", "identity_trust")


class PresetName(StrEnum):
    """The presets' names, for the help of a command."""

    OPEN = "open"
    SHIELDED = "shielded"
    PRIVATE = "private"
    STRICT = "strict"
    LOCAL = "local"


def fill_in(document: dict[str, Any], name: PresetName, changes: Mapping[tuple[str, ...], object]) -> None:
    """Puts a preset's fields into a specification where it says nothing; raises UsageError without a budget.

    A part of another kind stays as it is: `check_preset` then tells what the specification is instead.
    """
    from fl_protocol.presets import BUDGETED, EXPANSIONS, Preset

    preset, epsilon = Preset(name), changes.get(("privacy", "target_epsilon"))
    if preset not in BUDGETED and (epsilon is not None or changes.get(("privacy", "delta")) is not None):
        raise UsageError(f"--preset {name} has no budget: leave --target-epsilon and --delta out")
    for part, fields in EXPANSIONS[preset].items():
        given = document.setdefault(part, {})
        if isinstance(given, dict) and given.get("kind", fields["kind"]) == fields["kind"]:
            document[part] = dict(fields) | given
    privacy = document["privacy"]
    if preset in BUDGETED and epsilon is None and isinstance(privacy, dict) and "target_epsilon" not in privacy:
        raise UsageError(
            f"--preset {name} needs --target-epsilon, the most that the whole run may cost a client: no default would "
            "be honest (`fedquorum privacy plan` tells the noise for it)"
        )


def check_preset(spec: "RunSpec", name: PresetName) -> None:
    """Raises UsageError for a specification that is not the preset that was asked for."""
    from fl_protocol.presets import Preset, preset_of

    found = preset_of(spec)
    if found != Preset(name):
        trust = getattr(spec.secure_aggregation, "identity_trust", None)
        told = "" if trust is None else f", secure_aggregation.identity_trust {trust!r}"
        raise UsageError(
            f"--preset {name}: the specification is {f'the preset {found}' if found else 'none of the presets'}, by "
            f"its privacy.kind {spec.privacy.kind!r}, secure_aggregation.kind {spec.secure_aggregation.kind!r}{told}"
        )


def promise_fields(promise: "Promise") -> dict[str, object]:
    """Gives what is shown of a promise beside its sentences."""
    fields = promise.model_dump(mode="json", exclude={"sentences"}, exclude_none=True)
    return {"preset": "none of them"} | fields


def print_sentences(promise: "Promise") -> None:
    """Prints a promise's sentences, one after the other."""
    for sentence in promise.sentences:
        typer.echo(textwrap.fill(f"- {cell(sentence)}", _WIDTH, subsequent_indent="  "))


def print_presets(*, as_json: bool) -> None:
    """Prints what each preset is and what it promises."""
    from fl_protocol.presets import EXPANSIONS, matrix

    if as_json:
        print_json([_described(row) | {"spec": _plain(EXPANSIONS[row.preset])} for row in matrix()])
        return
    print_table(COLUMNS, map(cells_of, matrix()))
    for row in matrix():
        typer.echo(f"\n{row.preset}")
        for sentence in row.sentences:
            typer.echo(textwrap.fill(f"- {sentence}", _WIDTH, subsequent_indent="  "))
    typer.echo(f"\n{textwrap.fill(_LEGEND, _WIDTH)}")


def cells_of(row: "Row") -> tuple[str, ...]:
    """Gives a row of the table of presets."""
    from fl_protocol.presets import EXPANSIONS

    parts = EXPANSIONS[row.preset]
    return (
        row.preset,
        parts["secure_aggregation"]["kind"],
        parts["privacy"]["kind"],
        "taken" if row.takes_single_updates else "refused",
        "kept" if row.has_ledger else "-",
        row.identity_trust or "-",
    )


def _described(row: "Row") -> dict[str, object]:
    return {
        "preset": row.preset,
        "takes_single_updates": row.takes_single_updates,
        "has_ledger": row.has_ledger,
        "identity_trust": row.identity_trust,
        "sentences": list(row.sentences),
    }


def _plain(expansion: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {part: dict(fields) for part, fields in expansion.items()}
