"""What a client's sparse updates have not sent yet (error feedback), kept from round to round and over restarts.

What is left over by an update counts once that update does. So it is written beside the digest of its update before the
update is sent, and takes the place of the one before with the receipt. If the process dies between the two, the next
task says whether the update was counted (`counted_update`).
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client_sdk.durability import replace_file, sync_folder
from client_sdk.errors import UsageError
from fl_protocol.arrays import Tensor, decode, encode
from fl_protocol.identifiers import is_identifier
from fl_protocol.problems import ProblemError
from fl_protocol.tasks import Task

_FILE_NAME: Final = "residual.safetensors"
_PENDING_NAME: Final = "residual-of-{digits}.safetensors"

Left = dict[str, NDArray[Any]]


class ResidualStore:
    """One client's residual of one run: in memory, and in `state_dir`/RUN_ID over restarts if that is given."""

    def __init__(self, run_id: str, state_dir: Path | None) -> None:
        if state_dir is not None and not is_identifier(run_id):
            raise UsageError(f"{run_id[:64]!r} is not a run's id; nothing can be kept for it in {state_dir}")
        self._folder = None if state_dir is None else Path(state_dir) / run_id
        self._left: Left | None = None
        self._pending: Left = {}

    def load(self, task: Task) -> Left:
        """Gives what is left of the updates that count; raises UsageError for a damaged file."""
        if self._left is None:
            self._left = {} if self._folder is None else self._recover(self._folder, task)
        return self._left

    def prepare(self, digest: str, left: Left) -> None:
        """Keeps what an update leaves, durably, before the update is sent."""
        if self._folder is not None:
            replace_file(self._pending_path(self._folder, digest), encode(dict(left), {}))
        self._pending = left

    def accepted(self, digest: str) -> None:
        """Lets what the update left take the place of what was left before."""
        if self._folder is not None:
            self._pending_path(self._folder, digest).replace(self._folder / _FILE_NAME)
            sync_folder(self._folder)
        self._left, self._pending = self._pending, {}

    def refused(self, digest: str) -> None:
        """Forgets what the update would have left: what was left before it is still to be sent."""
        if self._folder is not None:
            self._pending_path(self._folder, digest).unlink(missing_ok=True)
        self._pending = {}

    def _recover(self, folder: Path, task: Task) -> Left:
        for path in folder.glob(_PENDING_NAME.format(digits="*")):
            if task.counted_update is not None and path == self._pending_path(folder, task.counted_update):
                path.replace(folder / _FILE_NAME)
                sync_folder(folder)
            else:
                path.unlink()
        return _read(folder / _FILE_NAME)

    def _pending_path(self, folder: Path, digest: str) -> Path:
        digits = digest.removeprefix("sha256:")
        if len(digits) != 64 or not digits.isalnum():
            raise UsageError(f"{digest[:80]!r} is not sha256: and 64 hexadecimal digits")
        return folder / _PENDING_NAME.format(digits=digits)


def _read(path: Path) -> Left:
    try:
        return {name: _array(tensor) for name, tensor in decode(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except ProblemError as error:
        raise UsageError(f"{path} is damaged: {error.detail}; remove it, and what was not sent is lost") from None


def _array(tensor: Tensor) -> NDArray[Any]:
    if not isinstance(tensor, np.ndarray):
        raise UsageError("a residual is kept in float32 or float64")
    return tensor
