"""What a run has at the server: updates, versions and the optimizer's states, as long as its retention keeps them."""

from dataclasses import dataclass

from fl_protocol.planning.sizes import state_bytes
from fl_protocol.runs import RunSpec
from fl_protocol.specs.retention import NewestVersions, UntilPublished
from fl_protocol.tensors import Header


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes at the server: what a round adds, and the most that the run has at once by its retention."""

    updates_a_round: int
    model: int
    optimizer_state: int
    run: int


def storage_of(spec: RunSpec, model: Header, *, updates_a_round: int) -> Storage:
    """Tells what a run stores whose rounds take so many bytes of updates; renditions for downloads are not counted."""
    state, versions = state_bytes(model, spec), versions_at_once(spec)
    kept = rounds_at_once(spec) * updates_a_round + versions * model.num_bytes + (versions - 1) * state
    return Storage(updates_a_round, model.num_bytes, state, kept)


def rounds_at_once(spec: RunSpec) -> int:
    """Tells of how many rounds a run has the updates at most: those that retention keeps, and the one under way."""
    policy = spec.retention.updates
    return min(spec.num_rounds, policy.rounds + 1) if isinstance(policy, UntilPublished) else spec.num_rounds


def versions_at_once(spec: RunSpec) -> int:
    """Tells how many versions a run has at most: the newest, version 0, those it may go back to, the one just made."""
    policy, every = spec.retention.models, 1 + spec.num_rounds
    if not isinstance(policy, NewestVersions):
        return every
    evaluation = spec.evaluation
    outstanding = (evaluation.watched is not None) + (evaluation.quarantine is not None)
    return min(every, policy.count + 2 + outstanding)
