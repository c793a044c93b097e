"""Files of a client's own: written as a whole or not at all, on the disk before anything depends on them."""

import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from client_sdk.durability import replace_file
from client_sdk.errors import UsageError

MAX_FILE_BYTES: Final = 64 << 20


def read_whole(path: Path) -> bytes | None:
    """Gives a file's bytes, None if there is none; raises UsageError for one that cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return content


def read_object(path: Path) -> dict[str, Any] | None:
    """Gives the JSON object in a file, None if there is no file; raises UsageError if it is damaged."""
    content = read_whole(path)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged: it is no JSON object; restore it from a copy")
    return found


def write_object(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object in place of the file of that name, which only its owner may read."""
    replace_file(path, [json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"])


def check_private(path: Path) -> None:
    """Raises UsageError for a file that others than its owner may read."""
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UsageError(f"{path} holds a private key and others may read it: chmod 600 {path}")
