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
from typing import Any, Final

import numpy as np

from fl_protocol.dtypes import Float64Array, Values

GRID_BITS: Final = 20
TILE_ELEMENTS: Final = 1 << 13
"""2 * 20 + 13 = 53 bits."""

_SUM_BITS: Final = 62
_CACHED_ELEMENTS: Final = 1 << 16
_MIN_TILE_ELEMENTS: Final = 1 << 9
_KERNEL_ROWS: Final = 8


def centre_of(magnitudes: Sequence[float]) -> int:
    """Chooses the update with the median largest |delta|: fewer than half of the updates cannot make it a huge one."""
    by_magnitude = sorted(range(len(magnitudes)), key=lambda number: (magnitudes[number], number))
    return by_magnitude[(len(by_magnitude) - 1) // 2]


class InnerProducts:
    """Adds up the matrix of inner products of n updates less their centre, tile by tile, tensor by tensor.

    The centre itself takes no part in the work: its row and column are zeros. `dtype` is what rows come in.
    """

    def __init__(self, num_updates: int, *, centre: int, dtype: np.dtype[Any]) -> None:
        self._centre = centre
        self._total = np.zeros((num_updates, num_updates))
        num_others = num_updates - 1
        self._sums = np.zeros((num_others, num_others), dtype=np.int64)
        self._scales = np.ones((num_others, 1))
        self._max_scale_bits = np.finfo(dtype).maxexp - 1
        # Smaller tiles for many updates, so that a tile stays in a core's cache.
        self._tile = min(max(_CACHED_ELEMENTS // num_updates, _MIN_TILE_ELEMENTS), TILE_ELEMENTS)
        self._differences = np.empty((num_others, self._tile), dtype=dtype)
        self._grid = np.empty((num_others, self._tile))

    def begin_tensor(self, magnitudes: Sequence[float], num_elements: int) -> None:
        """Starts a tensor of so many elements, of which `magnitudes` are each update's largest |value|."""
        self._end_tensor()
        bits = min(GRID_BITS, (_SUM_BITS - (num_elements - 1).bit_length()) // 2)
        others = [*magnitudes[: self._centre], *magnitudes[self._centre + 1 :]]
        for number, magnitude in enumerate(others):
            exponent = math.frexp(magnitude + magnitudes[self._centre])[1]
            self._scales[number] = math.ldexp(1.0, min(bits - exponent, self._max_scale_bits))

    def add(self, rows: Values) -> None:
        """Takes the next elements of the current tensor: [n, elements], a row an update."""
        scales = self._scales.astype(self._differences.dtype)
        for begin in range(0, rows.shape[1], self._tile):
            tile = rows[:, begin : begin + self._tile]
            steps, grid = self._differences[:, : tile.shape[1]], self._grid[:, : tile.shape[1]]
            np.subtract(tile[: self._centre], tile[self._centre], out=steps[: self._centre])
            np.subtract(tile[self._centre + 1 :], tile[self._centre], out=steps[self._centre :])
            np.multiply(steps, scales, out=steps)
            np.rint(steps, out=steps)
            np.copyto(grid, steps)
            self._sums += _products(grid).astype(np.int64)

    def result(self) -> Float64Array:
        """Gives the matrix [n, n] over all tensors."""
        self._end_tensor()
        return self._total

    def _end_tensor(self) -> None:
        if self._sums.any():
            products = self._sums / self._scales / self._scales.T
            for axis in (0, 1):
                products = np.insert(products, self._centre, 0.0, axis=axis)
            self._total += products
            self._sums.fill(0)


def _products(grid: Float64Array) -> Float64Array:
    """Gives grid @ grid.T; BLAS takes eight rows at a time, and a ninth by itself costs half of another eight."""
    whole = len(grid) // _KERNEL_ROWS * _KERNEL_ROWS
    products = np.empty((len(grid), len(grid)))
    np.matmul(grid[:whole], grid[:whole].T, out=products[:whole, :whole])
    for row in range(whole, len(grid)):
        products[row] = products[:, row] = grid @ grid[row]
    return products


def squared_distances(products: Float64Array) -> Float64Array:
    """Gives the squared distances [n, n] between updates from their inner products; never below zero, symmetric."""
    squares = products.diagonal()
    distances: Float64Array = np.maximum(squares[:, np.newaxis] + squares - 2 * products, 0.0)
    return distances
