"""What is measured of an update while it streams in, and what it is refused for."""

from aggregator_service.domain.update_norm import UpdateNorm
from fl_protocol.encodings.dense import DenseMeasure
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import CentralPrivacy
from fl_protocol.specs.strategies import Strategy
from fl_protocol.streaming import Piece
from fl_protocol.tensors import Header
from fl_protocol.updates import control_tensors


class Unjudged:
    """Refuses nothing and keeps nothing: in a private run both would tell something of what an update holds."""

    @property
    def max_abs(self) -> dict[str, float]:
        """Nothing: the sum's grid is known beforehand."""
        return {}

    def __call__(self, piece: Piece) -> None:
        """Takes the next piece as it is."""


def measure_of(layout: Header, spec: RunSpec) -> "UpdateMeasure | Unjudged":
    """Gives what measures an update of a run while it streams in."""
    return Unjudged() if isinstance(spec.privacy, CentralPrivacy) else UpdateMeasure(layout, spec.strategy)


class UpdateMeasure:
    """Keeps each tensor's largest |delta|, and refuses values, or a whole update, beyond the strategy's bounds.

    The norm is that of the model's deltas, without control variates, and is judged with the last floating-point element
    of them, before anything that follows it. Raises ProblemError: non-finite; value-out-of-range naming the tensor, or
    the norm, with its bound.
    """

    def __init__(self, layout: Header, strategy: Strategy) -> None:
        self._dense = DenseMeasure(layout, strategy.max_abs_delta)
        bound = strategy.max_update_norm
        self._bound = None if bound is None or bound.kind != "reject" else bound.norm
        self._norm = UpdateNorm()
        controls = {spec.name for spec in control_tensors(layout)}
        normed = [spec for spec in layout.tensors if spec.is_float and spec.name not in controls]
        self._normed = frozenset(spec.name for spec in normed)
        self._num_left = sum(spec.num_elements for spec in normed)

    @property
    def max_abs(self) -> dict[str, float]:
        """Each tensor's largest |delta|; complete when the whole update has been measured."""
        return self._dense.max_abs

    def __call__(self, piece: Piece) -> None:
        """Measures the next piece."""
        self._dense(piece)
        if self._bound is None or piece.spec.name not in self._normed:
            return
        self._norm.add(piece.spec.name, piece.values, dtype=piece.spec.dtype)
        self._num_left -= piece.values.size
        if self._num_left == 0:
            _check_norm(self._norm.result(), self._bound)


def _check_norm(norm: float, bound: float) -> None:
    if norm > bound:
        raise ProblemError(
            ProblemType.VALUE_OUT_OF_RANGE,
            f"the update's L2 norm over its floating-point tensors is {norm}; strategy.max_update_norm accepts at most "
            f"{bound}",
        )
