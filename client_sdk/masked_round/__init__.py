"""A client's masked rounds over the network; whoever opens them needs the extra [privacy], and nobody else does."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from client_sdk.client import AggregatorClient
from client_sdk.errors import UsageError
from client_sdk.masking.trust import PeerTrust
from client_sdk.session.progress import Progress

if TYPE_CHECKING:
    from client_sdk.masked_round.rounds import MaskedRounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """As whom a client takes part in masked rounds: its folder, its identifier, and whom it trusts."""

    state_dir: Path | None = None
    client_id: str | None = None
    trust: PeerTrust = field(default_factory=PeerTrust)


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
