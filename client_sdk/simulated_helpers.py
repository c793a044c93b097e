"""The helpers of a simulated run: what `fedquorum helper` runs, each with a folder and keys of its own."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from anyio.from_thread import BlockingPortal

from client_sdk.client import AggregatorClient
from client_sdk.errors import UsageError
from fl_protocol.helper_mode import HelperTokenRequest
from fl_protocol.runs import RunSpec
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation

if TYPE_CHECKING:
    from client_sdk.mask_helper import HelperKeys, MaskHelper


@dataclass(slots=True, kw_only=True)
class SimulatedHelpers:
    """The helpers of one simulated run; none where its spec has none."""

    spec: RunSpec
    folder: Path
    keys: Sequence["HelperKeys"] = ()
    opened: list["MaskHelper"] = field(default_factory=list)
    tasks: list["Future[None]"] = field(default_factory=list)

    @classmethod
    def of(cls, spec: RunSpec, folder: Path) -> Self:
        """Makes keys for each helper of a spec, which names these then; raises UsageError without [privacy]."""
        masked = spec.secure_aggregation
        if not isinstance(masked, HelperSecureAggregation):
            return cls(spec=spec, folder=folder)
        try:
            # Only a run in helper mode needs the extra [privacy].
            from client_sdk.mask_helper import HelperKeys  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise UsageError(f"a run in helper mode needs {error.name}: install fedquorum[privacy]") from None
        made = [HelperKeys.fresh(helper.name) for helper in masked.helpers]
        masked = masked.model_copy(update={"helpers": [keys.public for keys in made]})
        return cls(spec=spec.model_copy(update={"secure_aggregation": masked}), folder=folder, keys=made)

    def start(
        self,
        portal: BlockingPortal,
        operator: AggregatorClient,
        connect: Callable[[str], AggregatorClient],
        *,
        clients: Mapping[str, Path],
    ) -> None:
        """Begins to answer, in the portal's loop; `clients` are the folders in which clients keep their identities."""
        if not self.keys:
            return
        from client_sdk.mask_helper import MaskHelper, serve  # noqa: PLC0415
        from client_sdk.masking.identity import IdentityStore  # noqa: PLC0415
        from client_sdk.masking.trust import client_id_bytes  # noqa: PLC0415

        roster = {
            client_id_bytes(client_id): IdentityStore(folder).load_or_create(client_id).public_key
            for client_id, folder in clients.items()
        }
        for keys in self.keys:
            request = HelperTokenRequest(signing_key=keys.signing_key.hex())
            made = portal.call(operator.create_helper_token, request)
            folder = self.folder / "helpers" / keys.name
            helper = MaskHelper(keys, folder, roster=roster, min_members=3)
            self.opened.append(helper)
            call = partial(serve, connect(made.token), helper, tell=_ignore)
            self.tasks.append(portal.start_task_soon(call))

    def check(self) -> None:
        """Raises the error of a helper that has failed."""
        for task in self.tasks:
            if task.done():
                task.result()

    def stop(self) -> None:
        """Ends them; called from outside the portal's loop."""
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            with suppress(CancelledError):
                task.result()
        for helper in self.opened:
            helper.close()


def _ignore(line: str) -> None:
    """Tells nobody."""
