"""Rounds a tensor to codes of 8 or 4 bits at random, so that the codes' mean is what was rounded.

Alistarh et al. 2017, "QSGD", arXiv 1610.02132, with the largest magnitude of a row in place of its norm.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fl_protocol.encodings.forms import Quantised
from fl_protocol.encodings.quantised import Codes, Scales, multiply_rows

_TILE_ELEMENTS: Final = 1 << 18


def quantise(values: NDArray[Any], form: Quantised, *, random: np.random.Generator) -> tuple[Codes, Scales]:
    """Gives the codes [elements] and the scales [rows] of finite values that fit float32.

    A row's scale is its largest magnitude divided by the largest code, rounded up to float32.
    """
    flat = values.reshape(-1)
    scales = _scales(flat, form)
    wide = scales.astype(np.float64)
    inverses = np.divide(1.0, wide, out=np.zeros_like(wide), where=wide > 0)
    codes = np.empty(flat.size, dtype=np.int8)
    row = form.row_elements
    for begin in range(0, flat.size, _TILE_ELEMENTS):
        tile = flat[begin : begin + _TILE_ELEMENTS].astype(np.float64)
        multiply_rows(tile, inverses[begin // row :], row_elements=row, first_in_row=begin % row)
        tile += random.random(tile.size)
        np.floor(tile, out=tile)
        codes[begin : begin + tile.size] = np.clip(tile, -form.most, form.most)
    return codes, scales


def _scales(flat: NDArray[Any], form: Quantised) -> Scales:
    rows = flat.reshape(form.num_rows, -1) if flat.size else flat.reshape(0, 1)
    peaks = np.abs(np.maximum(rows.max(axis=1), -rows.min(axis=1))).astype(np.float64)
    with np.errstate(under="ignore"):
        scales: Scales = (peaks / form.most).astype(np.float32)
    too_small = scales.astype(np.float64) * form.most < peaks
    scales[too_small] = np.nextafter(scales[too_small], np.float32(np.inf))
    return scales
