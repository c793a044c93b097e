"""The names, shapes and types of a run's tensors, which every version of its model shares."""

from collections import OrderedDict
from typing import Final

from fl_protocol.tensors import Header

_MAX_REMEMBERED: Final = 64


class Layouts:
    """Remembers the headers of the runs lately used: at most 64, of at most 1 MiB each."""

    def __init__(self) -> None:
        self._headers: OrderedDict[str, Header] = OrderedDict()

    def get(self, run_id: str) -> Header | None:
        """Gives the header of a run's models if it is remembered."""
        header = self._headers.get(run_id)
        if header is not None:
            self._headers.move_to_end(run_id)
        return header

    def put(self, run_id: str, header: Header) -> None:
        """Remembers the header of a run's models and forgets the one unused for longest."""
        self._headers[run_id] = header
        while len(self._headers) > _MAX_REMEMBERED:
            self._headers.popitem(last=False)
