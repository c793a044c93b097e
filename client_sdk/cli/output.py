"""Tables for people, JSON for scripts."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from client_sdk.errors import printable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from fl_protocol.models import Model

WIDE: Final = 500
"""Characters a line of a table may have in a pipe or a file."""


def console(*, stderr: bool = False) -> "Console":
    """Opens the console that tables and bars are drawn on; where nobody looks at a terminal nothing is cut off."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else WIDE)


def print_json(value: object) -> None:
    """Prints one JSON document on one line."""
    sys.stdout.write(f"{json.dumps(value, default=_plain, ensure_ascii=False)}\n")
    sys.stdout.flush()


def _plain(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else str(value)


def print_messages(messages: Sequence["BaseModel"], *, columns: Sequence[str], as_json: bool) -> None:
    """Prints messages of the contract as a table of some of their fields, or all of them as a JSON list."""
    if as_json:
        print_json([message.model_dump(mode="json") for message in messages])
        return
    print_table(columns, ([getattr(message, column) for column in columns] for message in messages))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    count = 0
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
        count += 1
    if count == 0:
        out.print("none")
        return
    out.print(table)


def print_fields(fields: Mapping[str, object], *, as_json: bool) -> None:
    """Prints named values, one a line, or as a JSON object."""
    if as_json:
        print_json(fields)
        return
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        sys.stdout.write(f"{name.replace('_', ' '):<{width}}  {cell(value)}\n")


def print_model(model: "Model", *, as_json: bool) -> None:
    """Prints one model version."""
    if as_json:
        print_json(model)
        return
    fields = ("version", "round", "parent_version", "restored_from", "tags", "digest", "num_bytes", "created_at")
    print_fields({field: getattr(model, field) for field in fields}, as_json=False)


def cell(value: object) -> str:
    """Renders one value for a person; strings of the server cannot command the terminal."""
    match value:
        case None:
            return "-"
        case datetime():
            return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        case float():
            return f"{value:.4g}"
        case list():
            return ", ".join(map(cell, value)) or "-"
        case dict():
            return ", ".join(f"{printable(str(name))} {cell(item)}" for name, item in value.items()) or "-"
        case _:
            return printable(str(value))
