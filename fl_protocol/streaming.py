"""Reads a safetensors body as it arrives: whole items across any chunk boundary, nothing kept but the header."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fl_protocol.dtypes import CARRIERS, Values
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.tensors import LENGTH_BYTES, Header, TensorSpec, header_length, malformed, parse_header


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of whole items of one tensor: `values` is 1-D and starts at the tensor's element `first_element`."""

    spec: TensorSpec
    first_element: int
    values: Values


class StreamDecoder:
    """Decodes one safetensors body fed to it in chunks of any size; it performs no I/O.

    `check_header` is called with the parsed header before any byte of the body is looked at. Pieces are views of the
    chunk that was fed, valid as long as the chunk is; tensors without elements have none. Raises ProblemError:
    malformed-update for bytes that are not safetensors, too-large as soon as the body is known to exceed
    `max_num_bytes`, and whatever `check_header` raises.
    """

    def __init__(self, *, max_header_bytes: int, max_num_bytes: int, check_header: Callable[[Header], None]) -> None:
        self.num_bytes = 0
        self._max_header_bytes = max_header_bytes
        self._max_num_bytes = max_num_bytes
        self._check_header = check_header
        self._prologue = bytearray()
        self._header: Header | None = None
        self._partial_item = bytearray()
        self._tensors: Iterator[TensorSpec] = iter(())
        self._spec: TensorSpec | None = None
        self._num_done = 0

    @property
    def header(self) -> Header:
        """The checked header; reading it before it has arrived is a bug."""
        if self._header is None:
            raise RuntimeError("the header has not arrived yet")
        return self._header

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Piece]:
        """Takes the next chunk and yields its pieces; the iterator must be exhausted before the next chunk is fed."""
        view = memoryview(data).cast("B")
        self.num_bytes += len(view)
        if self.num_bytes > self._max_num_bytes:
            raise self._too_large(self.num_bytes)
        if self._header is None:
            view = self._feed_prologue(view)
        return self._feed_body(view)

    def close(self) -> None:
        """Ends the body; raises ProblemError (malformed-update) if it is shorter than it announced."""
        if self._header is None:
            raise malformed(f"the body ends after {self.num_bytes} bytes, within its header")
        if self.num_bytes != self._header.num_bytes:
            name = "" if self._spec is None else f", within tensor {self._spec.name!r}"
            raise malformed(f"the body ends after {self.num_bytes} of {self._header.num_bytes} bytes{name}")

    def _feed_prologue(self, view: memoryview) -> memoryview:
        view = self._fill_prologue(view, LENGTH_BYTES)
        if len(self._prologue) < LENGTH_BYTES:
            return view
        length = header_length(bytes(self._prologue[:LENGTH_BYTES]), self._max_header_bytes)
        view = self._fill_prologue(view, LENGTH_BYTES + length)
        if len(self._prologue) == LENGTH_BYTES + length:
            self._accept_header(parse_header(bytes(self._prologue[LENGTH_BYTES:])))
            self._prologue.clear()
        return view

    def _fill_prologue(self, view: memoryview, target: int) -> memoryview:
        wanted = max(0, target - len(self._prologue))
        self._prologue += view[:wanted]
        return view[wanted:]

    def _accept_header(self, header: Header) -> None:
        self._check_header(header)
        if header.num_bytes > self._max_num_bytes:
            raise self._too_large(header.num_bytes)
        self._header = header
        self._tensors = iter(header.tensors)
        self._next_tensor()

    def _too_large(self, num_bytes: int) -> ProblemError:
        detail = f"the body has {num_bytes} bytes or more; at most {self._max_num_bytes} are accepted"
        return ProblemError(ProblemType.TOO_LARGE, detail)

    def _next_tensor(self) -> None:
        self._num_done = 0
        self._spec = next((spec for spec in self._tensors if spec.num_bytes), None)

    def _feed_body(self, view: memoryview) -> Iterator[Piece]:
        while len(view):
            if self._spec is None:
                raise malformed(f"{len(view)} bytes or more follow the last tensor; the body must end with it")
            item_bytes = CARRIERS[self._spec.dtype].itemsize
            if self._partial_item or len(view) < item_bytes:
                taken = min(item_bytes - len(self._partial_item), len(view))
                self._partial_item += view[:taken]
                items = memoryview(bytes(self._partial_item)) if len(self._partial_item) == item_bytes else view[:0]
            else:
                left = self._spec.num_bytes - self._num_done * item_bytes
                taken = min(left, len(view) - len(view) % item_bytes)
                items = view[:taken]
            view = view[taken:]
            if len(items):
                self._partial_item.clear()
                yield self._piece(self._spec, items)

    def _piece(self, spec: TensorSpec, items: memoryview) -> Piece:
        values = np.frombuffer(items, dtype=CARRIERS[spec.dtype])
        if spec.dtype == "BOOL" and values.max() > 1:
            raise malformed(f"tensor {spec.name!r} holds a byte of {values.max()}; a BOOL is 0 or 1")
        piece = Piece(spec=spec, first_element=self._num_done, values=values)
        self._num_done += values.size
        if self._num_done == spec.num_elements:
            self._next_tensor()
        return piece
