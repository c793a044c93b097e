"""What is measured of an encoded update while it streams in, on the bytes as they are encoded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fl_protocol.dtypes import Values
from fl_protocol.encodings.dense import DenseMeasure
from fl_protocol.encodings.forms import INDICES_PREFIX, SCALES_PREFIX, Dense, Quantised, form_of
from fl_protocol.encodings.quantised import QuantisedMeasure
from fl_protocol.encodings.sparse import IndexCheck
from fl_protocol.specs.encodings import Encoding
from fl_protocol.streaming import Piece
from fl_protocol.tensors import Header


@dataclass(frozen=True, slots=True)
class Part:
    """The next floating-point deltas of a tensor of the model, all that are not zero for certain, in their order."""

    tensor: str
    values: Values
    dtype: str


Take = Callable[[Piece], float]

_NOTHING: Final = 0.0


class EncodedMeasure:
    """Refuses what the run's encoding does not allow, and keeps each tensor's largest |delta| in `max_abs`, exactly.

    `max_abs` holds every floating-point tensor of the layout from the start, and an integer tensor once it was seen.
    Raises ProblemError: non-finite or value-out-of-range, naming the tensor, the element, its value and the bound.
    """

    def __init__(self, layout: Header, encoding: Encoding, *, max_abs_delta: float) -> None:
        self._dense = DenseMeasure(layout, max_abs_delta)
        self._quantised: dict[str, QuantisedMeasure] = {}
        self._special: dict[str, tuple[str, Take]] = {}
        for spec in layout.tensors:
            form = form_of(spec, encoding)
            if isinstance(form, Quantised):
                measure = QuantisedMeasure(spec.name, form, max_abs_delta=max_abs_delta)
                self._quantised[spec.name] = measure
                self._special[SCALES_PREFIX + spec.name] = spec.name, _taking_nothing(measure.take_scales)
                self._special[spec.name] = spec.name, measure.take_codes
            elif not isinstance(form, Dense) and form.has_indices:
                check = IndexCheck(spec.name, form)
                self._special[INDICES_PREFIX + spec.name] = spec.name, _taking_nothing(check)

    @property
    def max_abs(self) -> dict[str, float]:
        """Each tensor's largest |delta|; complete when the whole update has been measured."""
        return self._dense.max_abs

    def __call__(self, piece: Piece) -> None:
        """Measures the next piece."""
        special = self._special.get(piece.spec.name)
        if special is None:
            self._dense(piece)
            return
        tensor, take = special
        self.max_abs[tensor] = max(self.max_abs[tensor], take(piece))

    def part(self, piece: Piece) -> Part | None:
        """Gives the deltas of a piece that was measured; None for what has none."""
        name = piece.spec.name
        if name in self._quantised:
            return Part(name, self._quantised[name].deltas(piece), "F64")
        if name in self._special or not piece.spec.is_float:
            return None
        return Part(name, piece.values, piece.spec.dtype)


def _taking_nothing(take: Callable[[Piece], None]) -> Take:
    def taking(piece: Piece) -> float:
        take(piece)
        return _NOTHING

    return taking
