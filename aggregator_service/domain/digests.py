"""The digests of exported models, which cost a pass over the whole model."""

from collections import OrderedDict
from typing import Final

_MAX_REMEMBERED: Final = 1024


class Digests:
    """Remembers the digests of the versions exported lately, by run and version: at most 1024."""

    def __init__(self) -> None:
        self._digests: OrderedDict[tuple[str, int], str] = OrderedDict()

    def get(self, run_id: str, version: int) -> str | None:
        """Gives the digest of a version's export if it is remembered."""
        return self._digests.get((run_id, version))

    def put(self, run_id: str, version: int, *, digest: str) -> None:
        """Remembers a digest and forgets the one that came first."""
        self._digests[run_id, version] = digest
        while len(self._digests) > _MAX_REMEMBERED:
            self._digests.popitem(last=False)
