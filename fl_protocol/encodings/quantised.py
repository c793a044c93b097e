"""int8 and int4: an element is its code times its row's float32 scale, a product that float64 holds exactly."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fl_protocol.dtypes import Float64Array
from fl_protocol.encodings.forms import SCALES_PREFIX, Quantised
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.streaming import Piece

Codes = NDArray[np.int8]
Scales = NDArray[np.float32]

_NIBBLE: Final = np.uint8(15)
_SIGN: Final = np.uint8(8)


def pack_int4(codes: Codes) -> NDArray[np.uint8]:
    """Packs codes from -8 to 7 as two's complement, two in a byte, the first one in the low half."""
    nibbles = np.zeros(codes.size + codes.size % 2, dtype=np.uint8)
    nibbles[: codes.size] = codes.view(np.uint8) & _NIBBLE
    return nibbles[::2] | nibbles[1::2] << np.uint8(4)


def unpack_int4(packed: NDArray[np.uint8]) -> Codes:
    """Gives the codes of whole bytes, two for each."""
    nibbles = np.empty(2 * packed.size, dtype=np.uint8)
    np.bitwise_and(packed, _NIBBLE, out=nibbles[::2])
    np.right_shift(packed, np.uint8(4), out=nibbles[1::2])
    return ((nibbles ^ _SIGN) - _SIGN).view(np.int8)


def multiply_rows(values: Float64Array, factors: Float64Array, *, row_elements: int, first_in_row: int) -> None:
    """Multiplies each element in place by its row's factor; values[0] is element `first_in_row` of factors[0]'s row."""
    head = min(-first_in_row % row_elements, values.size)
    if head:
        values[:head] *= factors[0]
        factors = factors[1:]
    whole = (values.size - head) // row_elements
    tail = head + whole * row_elements
    rows = values[head:tail].reshape(whole, row_elements)
    rows *= factors[:whole, np.newaxis]
    if tail < values.size:
        values[tail:] *= factors[whole]


def dequantise(codes: Codes, scales: Scales, *, row_elements: int, first_in_row: int) -> Float64Array:
    """Gives what codes stand for, exactly; `scales` are those of the rows that they lie in."""
    values = codes.astype(np.float64)
    # A private run counts an update with such a scale as zero, once its norm is known.
    with np.errstate(invalid="ignore"):
        multiply_rows(values, scales.astype(np.float64), row_elements=row_elements, first_in_row=first_in_row)
    return values


class QuantisedMeasure:
    """Judges the scales and then the codes of one tensor as they come.

    Raises ProblemError: non-finite for a scale; value-out-of-range for a negative scale, a code beyond its range, and
    an element larger than `max_abs_delta`, naming tensor, element, value and bound.
    """

    def __init__(self, name: str, form: Quantised, *, max_abs_delta: float) -> None:
        self._name = name
        self._form = form
        self._max_abs_delta = max_abs_delta
        self._scales: Scales = np.empty(form.num_rows, dtype=np.float32)

    def take_scales(self, piece: Piece) -> None:
        """Takes the next scales."""
        scales = piece.values
        wrong = np.flatnonzero(~np.isfinite(scales) | (scales < 0))
        if wrong.size:
            at, value = piece.first_element + int(wrong[0]), float(scales[wrong[0]])
            kind = ProblemType.VALUE_OUT_OF_RANGE if np.isfinite(value) else ProblemType.NON_FINITE
            detail = (
                f"tensor {SCALES_PREFIX + self._name!r} holds {value} at element {at}; a scale is finite and at least 0"
            )
            raise ProblemError(kind, detail)
        self._scales[piece.first_element : piece.first_element + scales.size] = scales

    def take_codes(self, piece: Piece) -> float:
        """Takes the next codes and gives the largest magnitude that they stand for, exactly."""
        first, codes = self._codes(piece)
        self._check_codes(codes, first)
        self._check_padding(piece)
        row = self._form.row_elements
        starts = np.maximum(np.arange(first // row, -(-(first + codes.size) // row)) * row - first, 0)
        largest = np.maximum.reduceat(np.abs(codes), starts).astype(np.float64)
        largest *= self._rows(first, codes.size)
        if largest.max() > self._max_abs_delta:
            self._refuse(int(starts[largest.argmax()]), codes, first=first, magnitude=float(largest.max()))
        return float(largest.max())

    def deltas(self, piece: Piece) -> Float64Array:
        """Gives what the codes of a piece stand for."""
        first, codes = self._codes(piece)
        row = self._form.row_elements
        rows = self._rows(first, codes.size)
        return dequantise(codes, rows, row_elements=row, first_in_row=first % row)

    def _rows(self, first: int, count: int) -> Scales:
        row = self._form.row_elements
        return self._scales[first // row : -(-(first + count) // row)]

    def _codes(self, piece: Piece) -> tuple[int, Codes]:
        if self._form.bits == 8:
            return piece.first_element, piece.values
        first, codes = 2 * piece.first_element, unpack_int4(piece.values)
        return first, codes[: self._form.num_elements - first]

    def _check_padding(self, piece: Piece) -> None:
        is_padded = self._form.bits == 4 and 2 * (piece.first_element + piece.values.size) > self._form.num_elements
        if is_padded and int(piece.values[-1]) >> 4:
            raise _out_of_range(
                f"tensor {self._name!r} holds {int(piece.values[-1]) >> 4} in the high half of its last byte, behind "
                f"its {self._form.num_elements} codes; 0 is expected"
            )

    def _check_codes(self, codes: Codes, first: int) -> None:
        if int(codes.min()) < -self._form.most:
            at = int(codes.argmin())
            raise _out_of_range(
                f"tensor {self._name!r} holds the code {codes[at]} at element {first + at}; codes from "
                f"{-self._form.most} to {self._form.most} are accepted"
            )

    def _refuse(self, start: int, codes: Codes, *, first: int, magnitude: float) -> None:
        row = self._form.row_elements
        end = start + row - (first + start) % row
        at = first + start + int(np.abs(codes[start:end]).argmax())
        raise _out_of_range(
            f"tensor {self._name!r} holds an element of magnitude {magnitude} at element {at}; at most "
            f"{self._max_abs_delta} is accepted"
        )


def _out_of_range(detail: str) -> ProblemError:
    return ProblemError(ProblemType.VALUE_OUT_OF_RANGE, detail)
