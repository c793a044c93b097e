"""What is measured of an update while it streams in, and what it is refused for."""

from aggregator_service.domain.update_norm import UpdateNorm
from fl_protocol.encodings.forms import INDICES_PREFIX, Sparse, form_of
from fl_protocol.encodings.measure import EncodedMeasure
from fl_protocol.encodings.sparse import IndexCheck
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.runs import RunSpec
from fl_protocol.specs.encodings import Encoding
from fl_protocol.specs.privacy import CentralPrivacy
from fl_protocol.streaming import Piece
from fl_protocol.tensors import Header
from fl_protocol.updates import control_tensors


class Unjudged:
    """Refuses nothing that depends on a client's data, and keeps nothing: both would tell something of it.

    Where indices travel, those that no tensor has are refused: no client's data leads to them.
    """

    def __init__(self, layout: Header, encoding: Encoding) -> None:
        forms = {spec.name: form_of(spec, encoding) for spec in layout.tensors}
        self._checks = {
            INDICES_PREFIX + name: IndexCheck(name, form)
            for name, form in forms.items()
            if isinstance(form, Sparse) and form.has_indices
        }

    @property
    def max_abs(self) -> dict[str, float]:
        """Nothing: the sum's grid is known beforehand."""
        return {}

    def __call__(self, piece: Piece) -> None:
        """Takes the next piece."""
        check = self._checks.get(piece.spec.name)
        if check is not None:
            check(piece)


def measure_of(layout: Header, spec: RunSpec) -> "UpdateMeasure | Unjudged":
    """Gives what measures an update of a run while it streams in."""
    if isinstance(spec.privacy, CentralPrivacy):
        return Unjudged(layout, spec.encoding)
    return UpdateMeasure(layout, spec)


class UpdateMeasure:
    """Keeps each tensor's largest |delta|, and refuses values, or a whole update, beyond the strategy's bounds.

    The norm is that of the model's deltas, without control variates, and is judged with the last of them, before
    anything that follows it. Raises ProblemError: non-finite; value-out-of-range naming the tensor, or the norm, with
    its bound.
    """

    def __init__(self, layout: Header, spec: RunSpec) -> None:
        self._encoded = EncodedMeasure(layout, spec.encoding, max_abs_delta=spec.strategy.max_abs_delta)
        bound = spec.strategy.max_update_norm
        self._bound = None if bound is None or bound.kind != "reject" else bound.norm
        self._norm = UpdateNorm()
        controls = {one.name for one in control_tensors(layout)}
        normed = [one for one in layout.tensors if one.is_float and one.name not in controls]
        self._normed = frozenset(one.name for one in normed)
        forms = [(one, form_of(one, spec.encoding)) for one in normed]
        self._num_left = sum(form.count if isinstance(form, Sparse) else one.num_elements for one, form in forms)

    @property
    def max_abs(self) -> dict[str, float]:
        """Each tensor's largest |delta|; complete when the whole update has been measured."""
        return self._encoded.max_abs

    def __call__(self, piece: Piece) -> None:
        """Measures the next piece."""
        self._encoded(piece)
        part = None if self._bound is None else self._encoded.part(piece)
        if self._bound is None or part is None or part.tensor not in self._normed:
            return
        self._norm.add(part.tensor, part.values, dtype=part.dtype)
        self._num_left -= part.values.size
        if self._num_left == 0:
            _check_norm(self._norm.result(), self._bound)


def _check_norm(norm: float, bound: float) -> None:
    if norm > bound:
        raise ProblemError(
            ProblemType.VALUE_OUT_OF_RANGE,
            f"the update's L2 norm over its floating-point tensors is {norm}; strategy.max_update_norm accepts at most "
            f"{bound}",
        )
