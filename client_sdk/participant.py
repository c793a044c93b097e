"""The loop of a participant: an action at a time until the run is over."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from client_sdk.client import AggregatorClient
from client_sdk.controls import ControlStore
from client_sdk.masked_round import Membership
from client_sdk.masking.trust import PeerTrust
from client_sdk.performer import OnEvent, Participation, Performer
from client_sdk.personal import PersonalTensors
from client_sdk.privacy.history import PrivacyHistory
from client_sdk.privacy.policy import PrivacyPolicy
from client_sdk.residuals import ResidualStore
from client_sdk.session import machine
from client_sdk.session.progress import Progress, RunFinished
from client_sdk.session.work import Evaluator, Trainer


async def participate(
    client: AggregatorClient,
    run_id: str,
    trainer: Trainer,
    *,
    evaluator: Evaluator | None = None,
    cache_dir: Path | None = None,
    state_dir: Path | None = None,
    policy: PrivacyPolicy | None = None,
    client_id: str | None = None,
    peer_trust: PeerTrust | None = None,
    on_event: OnEvent | None = None,
) -> Participation:
    """Takes part in a run until it is over: claims a task, pulls its model, trains, sends the update, and again.

    Trainer and evaluator are called in a worker thread. Models are kept in `cache_dir` by their digest, one at a time
    (by default in a temporary folder). `state_dir` is a folder of this client's own for what it must keep from round to
    round and over restarts: personal tensors (`RunSpec.parameters`) after each accepted update, and what its sparse
    updates have not sent yet (`RunSpec.encoding.error_feedback`), by default both in memory until this function
    returns; SCAFFOLD's control variates, which need the folder; its own count of the updates that
    it sent in a private run, without which no `policy` can be held; and its identity in masked runs, which need the
    folder, and `client_id` until the identity is made. `peer_trust` is what this client judges its peers and its server
    by. An update that comes too late is told to `on_event` and is no fault. If anything else fails, the task is handed
    back and the error is raised: the trainer's own, TrainerError for what cannot be sent, UntrustedAnswerError for a
    model, a manifest or a session that must not be used, PolicyError for a run that `policy` does not allow (before
    anything is trained), any other FedQuorumError for the rest.
    """
    session = machine.ParticipantSession(
        run_id,
        can_evaluate=evaluator is not None,
        has_folder=state_dir is not None,
        structure=getattr(trainer, "structure", None),
        max_model_bytes=client.limits.max_model_bytes,
        policy=policy,
    )
    with _cache_folder(cache_dir) as folder:
        performer = Performer(
            client=client,
            run_id=run_id,
            session=session,
            trainer=trainer,
            evaluator=evaluator,
            folder=folder,
            controls=None if state_dir is None else ControlStore(state_dir, run_id),
            personal=PersonalTensors(run_id, state_dir),
            residuals=ResidualStore(run_id, state_dir),
            history=PrivacyHistory(run_id, state_dir),
            membership=Membership(state_dir=state_dir, client_id=client_id, trust=_trust(peer_trust, policy)),
            tell=on_event or _ignore,
        )
        action: machine.Action = machine.Claim()
        while not isinstance(action, machine.Finish):
            action = await performer.perform(action)
        performer.tell(RunFinished(action.reason))
        performer.done.reason = action.reason
    return performer.done


def _trust(peer_trust: PeerTrust | None, policy: PrivacyPolicy | None) -> PeerTrust:
    """Gives what peers are judged by; a policy that insists on a complete graph does so in each session, too."""
    trust = peer_trust or PeerTrust()
    return (
        replace(trust, require_complete_graph=True) if policy is not None and policy.require_complete_graph else trust
    )


def _ignore(event: Progress) -> None:
    """Tells nobody."""


@contextlib.contextmanager
def _cache_folder(cache_dir: Path | None) -> Iterator[Path]:
    if cache_dir is not None:
        yield Path(cache_dir)
        return
    with tempfile.TemporaryDirectory(prefix="fedquorum-") as folder:
        yield Path(folder)
