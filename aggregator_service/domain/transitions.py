"""Which states follow which, as data."""

from collections.abc import Mapping
from typing import Final

from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import RoundState
from fl_protocol.runs import FINISHED_RUN_STATES, RunState

RUN_TRANSITIONS: Final[Mapping[RunState, frozenset[RunState]]] = {
    RunState.DRAFT: frozenset({RunState.RUNNING, RunState.STOPPED}),
    RunState.RUNNING: frozenset({RunState.PAUSED, RunState.COMPLETED, RunState.STOPPED, RunState.FAILED}),
    RunState.PAUSED: frozenset({RunState.RUNNING, RunState.COMPLETED, RunState.STOPPED, RunState.FAILED}),
    RunState.COMPLETED: frozenset(),
    RunState.STOPPED: frozenset(),
    RunState.FAILED: frozenset(),
}

ROUND_TRANSITIONS: Final[Mapping[RoundState, frozenset[RoundState]]] = {
    RoundState.COLLECTING: frozenset({RoundState.AGGREGATING, RoundState.ABANDONED}),
    RoundState.AGGREGATING: frozenset({RoundState.COMPLETED, RoundState.ABANDONED}),
    RoundState.COMPLETED: frozenset(),
    RoundState.ABANDONED: frozenset(),
}


def check_run_transition(state: RunState, wanted: RunState, *, action: str) -> None:
    """Raises a `state-conflict` problem unless a run may go from one state to the other."""
    if wanted in RUN_TRANSITIONS[state]:
        return
    if state in FINISHED_RUN_STATES:
        detail = f"the run is {state.value} and cannot {action}; create a new run"
    else:
        sources = " or ".join(source.value for source, targets in RUN_TRANSITIONS.items() if wanted in targets)
        detail = f"the run is {state.value}; it can {action} only when {sources}"
    raise ProblemError(ProblemType.STATE_CONFLICT, detail)


def check_can_roll_back(state: RunState) -> None:
    """Raises a `state-conflict` problem unless a run in this state can go back to an earlier version."""
    if state in FINISHED_RUN_STATES:
        detail = (
            f"the run is {state.value} and cannot be rolled back; create a new run whose initial_model is "
            "of kind 'version' and names the version to go on from"
        )
        raise ProblemError(ProblemType.STATE_CONFLICT, detail)
    if state is RunState.DRAFT:
        raise ProblemError(ProblemType.STATE_CONFLICT, "the run is a draft; it has nothing to go back from")
