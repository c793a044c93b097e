"""Files of a client's own: written as a whole or not at all, on the disk before anything depends on them."""

import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any, Final

from client_sdk.errors import UsageError

MAX_FILE_BYTES: Final = 64 << 20


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file that only its owner may read, or leaves the one that is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}-{secrets.token_hex(8)}"
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


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
    """Writes a JSON object, as `write_whole` does."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


def check_private(path: Path) -> None:
    """Raises UsageError for a file that others than its owner may read."""
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UsageError(f"{path} holds a private key and others may read it: chmod 600 {path}")


def _sync_folder(folder: Path) -> None:
    # Windows has no handle of a folder to sync; there a rename is durable with the file system's own journal.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
