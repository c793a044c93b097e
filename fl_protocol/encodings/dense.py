"""The dense encoding: each tensor whole, in the model's own type; measured while it streams, never repaired."""

from typing import Final

import numpy as np

from fl_protocol.dtypes import FLOAT_FORMATS, as_float64, magnitude_bits, magnitude_from_bits
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.streaming import Piece
from fl_protocol.tensors import Header

MAX_ABS_INTEGER: Final = 1 << 53


class DenseMeasure:
    """Refuses values that are not finite or out of range, and keeps each tensor's largest |delta| in `max_abs`.

    `max_abs` holds every floating-point tensor of the model from the start, and an integer tensor once it was seen.
    Raises ProblemError: non-finite naming tensor and element, value-out-of-range naming tensor, value and bound.
    """

    def __init__(self, model: Header, max_abs_delta: float) -> None:
        self.max_abs: dict[str, float] = {spec.name: 0.0 for spec in model.tensors if spec.is_float}
        self._max_abs_delta = max_abs_delta

    def __call__(self, piece: Piece) -> None:
        """Measures one piece; a whole update has been measured when its decoder has closed."""
        if piece.spec.dtype == "BOOL":
            return
        largest = self._measure_floats(piece) if piece.spec.is_float else _measure_integers(piece)
        name = piece.spec.name
        self.max_abs[name] = max(largest, self.max_abs.get(name, 0.0))

    def _measure_floats(self, piece: Piece) -> float:
        spec = piece.spec
        bits = magnitude_bits(piece.values, spec.dtype)
        if bits >= FLOAT_FORMATS[spec.dtype].infinity_bits:
            element = piece.first_element + int(np.flatnonzero(~np.isfinite(as_float64(piece.values, spec.dtype)))[0])
            detail = f"tensor {spec.name!r} holds NaN or infinity at element {element}; every value must be finite"
            raise ProblemError(ProblemType.NON_FINITE, detail)
        largest = magnitude_from_bits(bits, spec.dtype)
        if largest > self._max_abs_delta:
            raise _out_of_range(spec.name, magnitude=largest, bound=self._max_abs_delta)
        return largest


def _measure_integers(piece: Piece) -> float:
    largest = max(int(piece.values.max()), -int(piece.values.min()))
    if largest > MAX_ABS_INTEGER:
        raise _out_of_range(piece.spec.name, magnitude=largest, bound=MAX_ABS_INTEGER)
    return float(largest)


def _out_of_range(name: str, *, magnitude: float, bound: float) -> ProblemError:
    detail = f"tensor {name!r} holds an element of magnitude {magnitude}; at most {bound} is accepted"
    return ProblemError(ProblemType.VALUE_OUT_OF_RANGE, detail)
