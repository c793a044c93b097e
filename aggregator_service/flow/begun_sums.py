"""The sum of a part of a round's updates: begun while the round collects, and gone on with when it is sealed.

It lies in a local file without a name, which the system removes with the process: whoever has no such sum folds all
updates from their stored bytes, to the same bits.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from aggregator_service.domain.exact_sum import Int64Array, Magnitudes
from aggregator_service.flow.contributions import Contribution, SealedUpdate
from aggregator_service.flow.encoded_windows import Encoded
from aggregator_service.flow.windows import Layout

_ELEMENT_BYTES: Final = 8


class Scratch:
    """int64 numbers in an unnamed file of a folder, by default the system's for temporary files.

    They are read and written as a file and not mapped, so that they are the page cache's and not the process's.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed with the sum

    def read(self, first: int, into: Int64Array) -> None:
        """Reads the numbers first, first + 1, ...; raises EOFError where none were written."""
        view, begin = into.view(np.uint8).data, first * _ELEMENT_BYTES
        while view:
            count = os.preadv(self._file.fileno(), [view], begin)
            if not count:
                raise EOFError(f"a begun sum has no byte {begin}")
            view, begin = view[count:], begin + count

    def write(self, first: int, values: Int64Array) -> None:
        """Writes the numbers first, first + 1, ...; raises OSError when the disk is full."""
        view, begin = values.view(np.uint8).data, first * _ELEMENT_BYTES
        while view:
            count = os.pwrite(self._file.fileno(), view, begin)
            view, begin = view[count:], begin + count

    def close(self) -> None:
        """Frees the disk."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class BegunUpdate:
    """How an update counts in a begun sum; `factor` is None where it counts as zero."""

    weight: int
    delta_weight: float | None
    layout: Layout | None
    factor: float | None
    encoded: Encoded | None


@dataclass(slots=True)
class BegunSum:
    """Exact sums of the updates in `members`, clipped to `bound` where there is one.

    `grids` has the shift of each tensor whose sum stands, by its number in the model: 0 for an integer tensor.
    `magnitudes` are those of the members, for each tensor that chooses its grid by them.
    """

    scratch: Scratch
    bound: float | None
    members: dict[str, BegunUpdate] = field(default_factory=dict)
    grids: Mapping[int, int] = field(default_factory=dict)
    magnitudes: Mapping[int, Magnitudes] = field(default_factory=dict)

    def fits(self, updates: Iterable[SealedUpdate], *, bound: float | None) -> bool:
        """Tells whether all its members are among a round's updates and count there as they do here."""
        counted = {one.update_id: (one.weight, one.delta_weight) for one in updates}
        return self.bound == bound and all(
            counted.get(update_id) == (member.weight, member.delta_weight) for update_id, member in self.members.items()
        )

    def take_in(self, updates: Iterable[SealedUpdate], contributions: Iterable[Contribution]) -> None:
        """Notes updates that its windows now hold; one without a contribution counts as zero."""
        opened = {one.update.update_id: one for one in contributions}
        for update in updates:
            one = opened.get(update.update_id)
            layout, factor, encoded = (None, None, None) if one is None else (one.layout, one.factor, one.encoded)
            self.members[update.update_id] = BegunUpdate(update.weight, update.delta_weight, layout, factor, encoded)

    def contribution(self, update: SealedUpdate) -> Contribution | None:
        """Gives a member as the fold reads it, without reading it; None if it counts as zero."""
        member = self.members[update.update_id]
        if member.layout is None or member.factor is None:
            return None
        return Contribution(update, member.layout, member.factor, member.encoded)
