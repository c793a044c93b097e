"""topk and random_mask: some elements of a tensor as float32, the others zero."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.encodings.forms import INDICES_PREFIX, Sparse
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.streaming import Piece

Indices = NDArray[np.unsignedinteger[Any]]


class IndexCheck:
    """Refuses indices that do not increase strictly or lie outside their tensor, naming tensor, element and value."""

    def __init__(self, name: str, form: Sparse) -> None:
        self._name = INDICES_PREFIX + name
        self._num_elements = form.num_elements
        self._last = -1

    def __call__(self, piece: Piece) -> None:
        """Takes the next indices of the tensor."""
        indices: Indices = piece.values
        if int(indices[0]) <= self._last:
            raise self._not_increasing(piece.first_element, int(indices[0]), before=self._last)
        wrong = np.flatnonzero(indices[1:] <= indices[:-1])
        if wrong.size:
            at = int(wrong[0]) + 1
            raise self._not_increasing(piece.first_element + at, int(indices[at]), before=int(indices[at - 1]))
        self._last = int(indices[-1])
        if self._last >= self._num_elements:
            at = int(np.searchsorted(indices, self._num_elements))
            raise _out_of_range(
                f"tensor {self._name!r} holds {int(indices[at])} at element {piece.first_element + at}; the tensor has "
                f"{self._num_elements} elements, counted from 0"
            )

    def _not_increasing(self, at: int, value: int, *, before: int) -> ProblemError:
        return _out_of_range(
            f"tensor {self._name!r} holds {value} at element {at} behind {before}; indices increase strictly"
        )


def _out_of_range(detail: str) -> ProblemError:
    return ProblemError(ProblemType.VALUE_OUT_OF_RANGE, detail)
