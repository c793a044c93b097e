"""A client's masked rounds over the network; whoever opens them needs the extra [privacy], and nobody else does."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from client_sdk.client import AggregatorClient
from client_sdk.errors import UsageError
from client_sdk.masking.terms import MANIFESTS_FOLDER, wrong_manifest
from client_sdk.masking.trust import PeerTrust
from client_sdk.session.machine import is_masked
from client_sdk.session.progress import Progress
from fl_protocol.identifiers import is_identifier
from fl_protocol.tasks import Task, TaskKind

if TYPE_CHECKING:
    from client_sdk.masked_round.rounds import MaskedRounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """As whom a client takes part in masked rounds: its folder, its identifier, and whom it trusts."""

    state_dir: Path | None = None
    client_id: str | None = None
    trust: PeerTrust = field(default_factory=PeerTrust)

    def check_still_masked(self, task: Task) -> None:
        """Raises ManifestError for an update in the clear to a run that this client knows as a masked one."""
        if self.state_dir is None or task.kind is not TaskKind.TRAIN or is_masked(task):
            return
        # Asked for each task of every run: the log itself needs the extra [privacy].
        if is_identifier(task.run_id) and (Path(self.state_dir) / task.run_id / MANIFESTS_FOLDER).exists():
            raise wrong_manifest("secure_aggregation", "none", "masked", what="and this client knows the run as")


def open_masked_rounds(
    membership: Membership, client: AggregatorClient, *, run_id: str, folder: Path, tell: Callable[[Progress], None]
) -> "MaskedRounds":
    """Opens a run's masked rounds; raises UsageError without a folder or without the extra [privacy]."""
    if membership.state_dir is None:
        raise UsageError("a masked run needs a folder of this client's own as state_dir (--state-dir)")
    try:
        from client_sdk.masked_round.rounds import MaskedRounds  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UsageError(f"a masked run needs {error.name}: install fedquorum[privacy]") from None
    return MaskedRounds(
        client=client,
        run_id=run_id,
        state_dir=membership.state_dir,
        folder=folder,
        client_id=membership.client_id,
        trust=membership.trust,
        tell=tell,
    )
