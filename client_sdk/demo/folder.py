"""The demo's folder: what an earlier demo left is replaced, what is not the demo's is left alone."""

import shutil
from pathlib import Path
from typing import Final

from client_sdk.errors import UsageError

MARKER: Final = ".fedquorum-demo"
_FILES: Final = (
    "fedquorum.db",
    "fedquorum.db-shm",
    "fedquorum.db-wal",
    "fedquorum.db-journal",
    "model.safetensors",
    "server.log",
)
_FOLDERS: Final = ("clients", "models")


def prepare_folder(folder: Path) -> Path:
    """Makes the folder, or empties an earlier demo's; raises UsageError for a folder that holds anything else."""
    folder = folder.expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the demo with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARKER).exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} holds files that are not the demo's; name an empty folder with --folder")
    (folder / MARKER).touch()
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    return folder
