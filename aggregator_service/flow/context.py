"""What every stage of the flow is given."""

from collections.abc import Callable
from dataclasses import dataclass, field

from aggregator_service.domain.digests import Digests
from aggregator_service.domain.layouts import Layouts
from aggregator_service.flow.appends import Appends
from aggregator_service.flow.completions import Completions
from aggregator_service.flow.gathering import Gatherings
from aggregator_service.flow.handed_out import HandedOutTasks
from aggregator_service.flow.single_flight import SingleFlight
from aggregator_service.storage.blobs import Blobs
from aggregator_service.storage.transactions import Transactions
from aggregator_service.telemetry import Telemetry
from aggregator_service.wakeups import Wakeups
from fl_protocol.identifiers import identifier


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings that an operator of the server may set."""

    max_model_bytes: int


@dataclass(frozen=True, slots=True)
class Flow:
    """The rooms that the stages stand on; `entropy(n)` gives n unpredictable bytes."""

    transactions: Transactions
    blobs: Blobs
    wakeups: Wakeups
    telemetry: Telemetry
    entropy: Callable[[int], bytes]
    limits: Limits
    layouts: Layouts
    export_digests: Digests = field(default_factory=Digests)
    single_flight: SingleFlight = field(default_factory=SingleFlight)
    gatherings: Gatherings = field(default_factory=Gatherings)
    handed_out: HandedOutTasks = field(default_factory=HandedOutTasks)
    appends: Appends = field(default_factory=Appends)
    completions: Completions = field(default_factory=Completions)

    def new_id(self, prefix: str) -> str:
        """Makes a fresh identifier."""
        return identifier(prefix, self.entropy(16))
