"""A client's control variates on disk (SCAFFOLD): each beside the digest of the update that it was computed with.

Which of them is the client's is the server's to say: a task names the digest of the newest update that a published
model holds (`counted_update`). So nothing has to be promoted or taken back here, whenever the process dies: before the
PUT, between PUT and receipt, or after the receipt of an update whose round is abandoned later.
"""

import re
from pathlib import Path
from typing import Final

from client_sdk.durability import replace_file
from client_sdk.errors import UsageError
from client_sdk.session.controls import Controls
from fl_protocol.arrays import Tensor, decode, encode
from fl_protocol.identifiers import DIGEST_PATTERN, is_identifier
from fl_protocol.problems import ProblemError
from fl_protocol.tasks import Task

_DIGEST: Final = re.compile(DIGEST_PATTERN[1:-1], re.ASCII)


class ControlStore:
    """The control variates of one client in one run, in `state_dir`/RUN_ID/controls; a folder is one client's only.

    A file is whole once it has its name, which says round, attempt and digest. Files are safetensors, never unpickled.
    """

    def __init__(self, state_dir: Path, run_id: str) -> None:
        if not is_identifier(run_id):
            raise UsageError(f"{run_id[:64]!r} is not a run's id; nothing can be kept for it in {state_dir}")
        self._folder: Final = Path(state_dir) / run_id / "controls"

    def load(self, task: Task) -> dict[str, Tensor] | None:
        """Gives the control variate that counts now, None for zeros, and removes those that never can again.

        Raises UsageError if an update of this client was counted whose control variate is not here.
        """
        if task.counted_update is None:
            return None
        digits = _digits(task.counted_update)
        found = sorted(self._folder.glob(f"*-{digits}.safetensors"))
        if not found:
            raise UsageError(
                f"the server has counted this client's update {task.counted_update} in this run, and {self._folder} "
                "does not hold the control variate that belongs to it: give the state_dir that was used then, or "
                "enrol as a new client, which begins with zeros"
            )
        control = _read(found[0])
        current = f"{task.round}-{task.attempt}-"
        for path in self._folder.iterdir():
            if path not in found and not path.name.startswith(current):
                path.unlink(missing_ok=True)
        return control

    def keep(self, task: Task, digest: str, control: Controls) -> None:
        """Keeps the control variate that belongs to an update, durably, before the update is sent."""
        path = self._folder / f"{task.round}-{task.attempt}-{_digits(digest)}.safetensors"
        replace_file(path, encode(control, {}))


def _digits(digest: str) -> str:
    if _DIGEST.fullmatch(digest) is None:
        raise UsageError(f"{digest[:80]!r} is not sha256: and 64 hexadecimal digits")
    return digest.removeprefix("sha256:")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return decode(path.read_bytes())
    except ProblemError as error:
        raise UsageError(f"{path} is not the safetensors file that was kept there: {error.detail}") from None
