"""Reads a RunSpec from a file and from options."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client_sdk.cli.promises import PresetName, check_preset, fill_in
from client_sdk.errors import UsageError, printable

if TYPE_CHECKING:
    from fl_protocol.runs import RunSpec


def read_spec(
    file: Path | None, changes: Mapping[tuple[str, ...], object], *, preset: PresetName | None = None
) -> "RunSpec":
    """Reads the specification and puts in what options give (path of keys -> value, None: not given).

    A preset fills in what the file leaves open, and options change both. Raises UsageError naming the key that cannot
    be, or what makes the specification another preset's.
    """
    from pydantic import ValidationError

    from fl_protocol.faults import describe_fault
    from fl_protocol.runs import RunSpec

    document = {} if file is None else _read(file)
    if preset is not None:
        fill_in(document, preset, changes)
    for keys, value in changes.items():
        if value is not None:
            _put(document, keys, value)
    try:
        spec = RunSpec.model_validate_json(json.dumps(document))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(f"the specification: {printable(describe_fault(fault, document))}") from None
    if preset is not None:
        check_preset(spec, preset)
    return spec


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{file} holds no JSON object")
    return document


def _put(document: dict[str, Any], keys: tuple[str, ...], value: object) -> None:
    *groups, last = keys
    for group in groups:
        inner = document.setdefault(group, {})
        if not isinstance(inner, dict):
            raise UsageError(f"the specification's {group} is no JSON object")
        document = inner
    document[last] = value
