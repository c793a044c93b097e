"""What DP-SGD has spent of a client's examples in a run: the steps it took, kept before their result can leave."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from client_sdk.durability import replace_file
from client_sdk.errors import UsageError
from fl_protocol.identifiers import is_identifier

FILE_NAME: Final = "dpsgd.json"

Steps = tuple[float, float, int]
"""Noise multiplier, sampling probability and number of steps, as Opacus' accountants keep their history."""


@dataclass(frozen=True, slots=True)
class ExampleAccount:
    """The noise multiplier that was calibrated for a client in a run, and all steps that it has taken with any."""

    noise_multiplier: float
    history: tuple[Steps, ...] = ()

    def after(self, sample_rate: float, num_steps: int) -> "ExampleAccount":
        """Gives the account with so many more steps."""
        before = self.history
        last = before[-1] if before else None
        if last is not None and last[:2] == (self.noise_multiplier, sample_rate):
            return replace(self, history=(*before[:-1], (*last[:2], last[2] + num_steps)))
        return replace(self, history=(*before, (self.noise_multiplier, sample_rate, num_steps)))


def load_account(state_dir: Path, run_id: str) -> ExampleAccount | None:
    """Reads a run's account, None before the first round; raises UsageError for a damaged file."""
    path = _path(state_dir, run_id)
    try:
        document = json.loads(path.read_text())
        steps = [(float(noise), float(rate), int(count)) for noise, rate, count in document["history"]]
        return ExampleAccount(float(document["noise_multiplier"]), tuple(steps))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({error}): it holds what training has spent of this client's examples and must not be "
            "begun anew; restore it from a copy, or leave the run"
        ) from None


def keep_account(state_dir: Path, run_id: str, account: ExampleAccount) -> None:
    """Replaces a run's account, durably and as a whole."""
    document = {"noise_multiplier": account.noise_multiplier, "history": account.history}
    replace_file(_path(state_dir, run_id), [json.dumps(document).encode()])


def _path(state_dir: Path, run_id: str) -> Path:
    if not is_identifier(run_id):
        raise UsageError(f"{run_id[:64]!r} is not a run's id; nothing can be kept for it in {state_dir}")
    return Path(state_dir) / run_id / FILE_NAME
