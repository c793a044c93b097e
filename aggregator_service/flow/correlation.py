"""Correlates the noise of a round with that of the rounds before it, tile by tile, from and to a stored state."""

from collections.abc import Callable

import numpy as np

from aggregator_service.domain.privacy import blt
from aggregator_service.domain.privacy.blt import Blt
from aggregator_service.flow.optimizer_state import pack, unpack
from aggregator_service.flow.windows import RangeReader
from fl_protocol.dtypes import Float64Array


class Correlation:
    """Turns independent normals, which come in the order of their elements, into a round's correlated ones.

    The state is read, and the next one written, in the same order: as many float64 an element as there are buffers.
    """

    def __init__(self, matrix: Blt, *, read: RangeReader | None, write: Callable[[bytes], None]) -> None:
        self._matrix = matrix
        self._read = read
        self._write = write
        self._at = 0

    def __call__(self, independent: Float64Array) -> Float64Array:
        """Gives the next elements' noise."""
        correlated, buffers = blt.step(self._matrix, independent, buffers=self._buffers(independent.size))
        self._write(pack(buffers))
        return correlated

    def _buffers(self, num_elements: int) -> tuple[Float64Array, ...]:
        if self._read is None:
            return blt.init(self._matrix, num_elements)
        num_buffers = len(self._matrix.theta)
        begin, self._at = self._at, self._at + 8 * num_buffers * num_elements
        rows = np.frombuffer(self._read(begin, self._at), dtype="<f8").reshape(num_elements, num_buffers)
        return unpack(rows)
