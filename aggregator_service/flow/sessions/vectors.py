"""What the masked vectors of a run hold: how many coordinates of its model, on which ring, in how many bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from aggregator_service.domain.records import RunRecord
from aggregator_service.flow.context import Flow
from aggregator_service.flow.layouts import layout_of_run
from aggregator_service.flow.windows import read_header
from aggregator_service.storage import models
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.masked_vectors import coordinates_of, ring_of
from fl_protocol.masking.ring import WEIGHT, Ring
from fl_protocol.runs import RunSpec
from fl_protocol.tensors import Header


@dataclass(frozen=True, slots=True)
class Vector:
    """A masked run's vectors: so many coordinates of the model, then the ring's extras."""

    ring: Ring
    num_coordinates: int

    @property
    def num_elements(self) -> int:
        return self.num_coordinates + len(self.ring.extras)

    @property
    def num_bytes(self) -> int:
        return self.ring.num_bytes(self.num_coordinates)

    def total_weight(self, totals: Sequence[int], *, num_members: int) -> int:
        """Gives the sum of the weights by the sums of the extras; where updates have none, the number of members."""
        names = [extra.name for extra in self.ring.extras]
        return totals[names.index(WEIGHT)] if WEIGHT in names else num_members


def vector_of(model: Header, spec: RunSpec) -> Vector:
    """Gives what the vectors of a run hold by the header of its model."""
    return Vector(ring_of(spec), sum(one.num_elements for one in coordinates_of(model, spec).tensors))


async def vector_of_run(flow: Flow, run: RunRecord) -> Vector:
    """Gives the same, and reads the header if it is not remembered."""
    return vector_of(await layout_of_run(flow, run.run_id, version=0), run.spec)


def num_input_bytes(flow: Flow, tx: ReadTx, run: RunRecord) -> int:
    """Gives how long a masked input of a run is, within a transaction."""
    model = models.get(tx, run.run_id, 0)
    if model is None:
        raise LookupError(f"run {run.run_id} has no model")
    return vector_of(read_header(partial(flow.blobs.read_in, tx, model.blob_id)), run.spec).num_bytes
