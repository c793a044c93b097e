"""SCAFFOLD's server control variate: c + (|S| / N) * mean of the round's control deltas, as one exact sum over N.

Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1, lines 16-17.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from aggregator_service.flow.fold import RangeReader, SealedUpdate, Writer, aggregate
from fl_protocol.runs import RunSpec
from fl_protocol.specs.encodings import DenseEncoding, Encoding
from fl_protocol.specs.server_optimizers import SgdServerOptimizer
from fl_protocol.specs.strategies import MeanStrategy
from fl_protocol.tensors import Header, TensorSpec, render_header
from fl_protocol.updates import control_tensors

_WHOLE: Final = DenseEncoding()
_PLAIN_SUM: Final = RunSpec(strategy=MeanStrategy(weighting="uniform"), server_optimizer=SgdServerOptimizer())


def fold_controls(
    base: RangeReader | None,
    updates: Sequence[SealedUpdate],
    *,
    layout: Header,
    num_clients: int,
    write: Writer,
    encoding: Encoding = _WHOLE,
) -> None:
    """Writes the next control variate as safetensors bytes: a tensor `control:NAME` for each floating-point tensor.

    `base` is the one before, None for zeros; `layout` is what an update holds, and `encoding` how it has all but the
    control variates. Every update counts the same, whatever its weight in the model. The control variate is kept in its
    own wire type (float32; float64 for float64 tensors) and rounded to it once a round. Raises ModelOverflowError
    naming the control's tensor.
    """
    aggregate(
        base or _zeros(control_tensors(layout)),
        [replace(update, weight=1, delta_weight=None) for update in updates],
        spec=_PLAIN_SUM.model_copy(update={"encoding": encoding}),
        round_number=1,
        optimizer_state=None,
        write_model=write,
        write_state=_write_nothing,
        holds=layout,
        divisor=num_clients,
    )


def _zeros(tensors: Sequence[TensorSpec]) -> RangeReader:
    header = render_header([(spec.name, spec.dtype, spec.shape) for spec in tensors], {})
    return lambda begin, end: header[begin:end] + bytes(end - max(begin, min(end, len(header))))


def _write_nothing(data: bytes) -> None:
    if data:
        raise AssertionError(f"a control variate has no optimizer's state, and {len(data)} bytes of one were written")
