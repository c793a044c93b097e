"""What a client keeps of a run between rounds and over restarts: the personal tensors that never leave it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from client_sdk.durability import replace_file
from client_sdk.errors import UsageError
from fl_protocol.arrays import Tensor, decode, encode
from fl_protocol.identifiers import is_identifier
from fl_protocol.problems import ProblemError

FILE_NAME: Final = "personal.safetensors"


class PersonalTensors:
    """One client's personal tensors of one run, in memory, and in `state_dir` under the run's id if that is given."""

    def __init__(self, run_id: str, state_dir: Path | None) -> None:
        if state_dir is not None and not is_identifier(run_id):
            raise UsageError(f"{run_id!r} is not a run's id; nothing can be kept for it in {state_dir}")
        self._path = None if state_dir is None else Path(state_dir) / run_id / FILE_NAME
        self._kept: Mapping[str, Tensor] | None = None

    def load(self) -> Mapping[str, Tensor]:
        """Gives what was kept last, nothing before the first accepted update; raises UsageError for a damaged file."""
        if self._kept is None:
            self._kept = {} if self._path is None else _read(self._path)
        return self._kept

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces what is kept; the file is replaced as a whole or not at all."""
        if self._path is not None and tensors:
            replace_file(self._path, encode(tensors, {}))
        self._kept = tensors


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ProblemError as error:
        raise UsageError(f"{path} is damaged: {error.detail}; remove it to start from the global model") from None
