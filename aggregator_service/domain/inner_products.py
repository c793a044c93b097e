"""The inner products of updates around a centre, in exact integers: no tile, thread, machine or order changes a bit.

Each update less the centre is rounded to integers of up to 20 bits on a grid of its own, one a tensor, that follows its
largest |delta|; so a huge update does not coarsen the others. Products of such integers over a tile stay within the 53
bits of float64, where a matrix product adds them without an error whatever its order, and tiles are added in int64.
(The idea of Ozaki et al. 2012, "Error-free transformations of matrix multiplication", with a single slice.)

The centre is one of the updates, which takes off what all of them have in common: distances between updates that differ
little keep their precision.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from fl_protocol.dtypes import Float64Array, Values

GRID_BITS: Final = 20
TILE_ELEMENTS: Final = 1 << 13
"""2 * 20 + 13 = 53 bits."""

_SUM_BITS: Final = 62
_CACHED_ELEMENTS: Final = 1 << 17
_MIN_TILE_ELEMENTS: Final = 1 << 9


def centre_of(magnitudes: Sequence[float]) -> int:
    """Chooses the update with the median largest |delta|: fewer than half of the updates cannot make it a huge one."""
    by_magnitude = sorted(range(len(magnitudes)), key=lambda number: (magnitudes[number], number))
    return by_magnitude[(len(by_magnitude) - 1) // 2]


class InnerProducts:
    """Adds up the matrix of inner products of n updates less their centre, tile by tile, tensor by tensor."""

    def __init__(self, num_updates: int, *, centre: int) -> None:
        self._centre = centre
        self._total = np.zeros((num_updates, num_updates))
        self._sums = np.zeros((num_updates, num_updates), dtype=np.int64)
        self._scales = np.zeros((num_updates, 1))
        # Smaller tiles for many updates, so that a tile stays in a core's cache.
        self._tile = min(max(_CACHED_ELEMENTS // num_updates, _MIN_TILE_ELEMENTS), TILE_ELEMENTS)
        self._scratch = np.empty((num_updates, self._tile))

    def begin_tensor(self, magnitudes: Sequence[float], num_elements: int) -> None:
        """Starts a tensor of so many elements, of which `magnitudes` are each update's largest |value|."""
        self._end_tensor()
        bits = min(GRID_BITS, (_SUM_BITS - (num_elements - 1).bit_length()) // 2)
        for number, magnitude in enumerate(magnitudes):
            bound = magnitude + magnitudes[self._centre]
            self._scales[number] = math.ldexp(1.0, bits - math.frexp(bound)[1]) if bound else 1.0

    def add(self, rows: Values) -> None:
        """Takes the next elements of the current tensor: float32 or float64 [n, elements], a row an update."""
        for begin in range(0, rows.shape[1], self._tile):
            tile = rows[:, begin : begin + self._tile]
            grid = self._scratch[:, : tile.shape[1]]
            np.copyto(grid, tile)
            np.subtract(grid, grid[self._centre].copy(), out=grid)
            np.multiply(grid, self._scales, out=grid)
            np.rint(grid, out=grid)
            self._sums += (grid @ grid.T).astype(np.int64)

    def result(self) -> Float64Array:
        """Gives the matrix [n, n] over all tensors; the centre's own row and column are zeros."""
        self._end_tensor()
        return self._total

    def _end_tensor(self) -> None:
        if self._sums.any():
            self._total += self._sums / self._scales / self._scales.T
            self._sums.fill(0)


def squared_distances(products: Float64Array) -> Float64Array:
    """Gives the squared distances [n, n] between updates from their inner products; never below zero, symmetric."""
    squares = products.diagonal()
    distances: Float64Array = np.maximum(squares[:, np.newaxis] + squares - 2 * products, 0.0)
    return distances
