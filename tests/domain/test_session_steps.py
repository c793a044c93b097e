"""What moves a session on, as a function of who has sent what."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_service.domain.sessions import steps
from aggregator_service.domain.sessions.records import MemberRecord, SessionRecord
from aggregator_service.domain.sessions.steps import Abort, Enter, Stay, next_step
from fl_protocol.masking.messages import render_bitmap
from fl_protocol.sessions import AbortCode, SeatState, SessionState
from fl_protocol.specs.secure_aggregation import PairwiseSecureAggregation
from tests.support.records import member_records, session_record

MASKED = PairwiseSecureAggregation(kind="pairwise", min_members=3, phase_seconds=10, min_bytes_per_second=100)


def session(state: SessionState, num_members: int, *, expected: int, arrived: int) -> SessionRecord:
    return session_record(state=state, num_members=num_members, num_expected=expected, num_messages=arrived)


def with_flags(num_members: int, **flags: set[int]) -> list[MemberRecord]:
    """Makes members of whom those in each set have sent that message."""
    values = {"shares_digest": "x", "input_digest": "x", "signature": b"x", "unmask_digest": "x"}
    return [
        replace(member, **{name: values[name] for name, places in flags.items() if member.place in places})  # type: ignore[arg-type]
        for member in member_records(num_members=num_members)
    ]


def upto(number: int) -> set[int]:
    return set(range(number))


@pytest.mark.parametrize("state", [SessionState.SHARES, SessionState.INPUT, SessionState.CONSISTENCY])
def test_a_phase_goes_on_while_messages_are_missing_and_there_is_time(state: SessionState) -> None:
    flags = {"shares_digest": upto(9), "input_digest": upto(9), "signature": upto(9)}
    found = next_step(session(state, 10, expected=10, arrived=9), with_flags(10, **flags), min_members=3, is_due=False)
    assert found == Stay()


def test_shares_end_with_all_or_with_enough_at_the_deadline() -> None:
    all_in = session(SessionState.SHARES, 10, expected=10, arrived=10)
    assert next_step(all_in, with_flags(10, shares_digest=upto(10)), min_members=3, is_due=False) == Enter(
        SessionState.INPUT, 10
    )
    late = session(SessionState.SHARES, 10, expected=10, arrived=8)
    assert next_step(late, with_flags(10, shares_digest=upto(8)), min_members=3, is_due=True) == Enter(
        SessionState.INPUT, 8
    )
    step = next_step(late, with_flags(10, shares_digest=upto(7)), min_members=8, is_due=True)
    assert isinstance(step, Abort)
    assert step.code is AbortCode.NOT_ENOUGH_CLIENTS
    # Of 7 members each has 6 neighbours left, and 7 shares join to a secret.
    step = next_step(late, with_flags(10, shares_digest=upto(7)), min_members=3, is_due=True)
    assert isinstance(step, Abort)
    assert step.code is AbortCode.TOO_FEW_SHARES


def test_inputs_end_with_those_whose_shares_arrived() -> None:
    members = with_flags(10, shares_digest=upto(9), input_digest=upto(8))
    waiting = session(SessionState.INPUT, 10, expected=9, arrived=8)
    assert next_step(waiting, members, min_members=3, is_due=False) == Stay()
    assert next_step(waiting, members, min_members=3, is_due=True) == Enter(SessionState.CONSISTENCY, 8)


def test_a_quorum_of_signatures_is_needed_and_all_survivors_are_asked_to_unmask() -> None:
    waiting = session(SessionState.CONSISTENCY, 10, expected=9, arrived=7)
    members = with_flags(10, input_digest=upto(9), signature=upto(7))
    assert next_step(waiting, members, min_members=3, is_due=True) == Enter(SessionState.UNMASK, 9)
    step = next_step(waiting, with_flags(10, input_digest=upto(9), signature=upto(6)), min_members=3, is_due=True)
    assert isinstance(step, Abort)
    assert step.code is AbortCode.QUORUM_FAILED


def answered(num_members: int, answers: dict[int, set[int]]) -> list[MemberRecord]:
    members = with_flags(num_members, shares_digest=upto(num_members), unmask_digest=set(answers))
    return [
        replace(member, right_shares=render_bitmap(answers[member.place], num_members=num_members))
        if member.place in answers
        else member
        for member in members
    ]


def test_unmasking_ends_as_soon_as_every_secret_has_enough_right_shares() -> None:
    # Of 5 members 3 shares join; a member holds none of its own secret.
    full = {place: upto(5) - {place} for place in range(4)}
    waiting = session(SessionState.UNMASK, 5, expected=5, arrived=4)
    assert next_step(waiting, answered(5, full), min_members=3, is_due=False) == Enter(SessionState.SUMMING, 0)
    wrong = full | {3: {4}}
    members = answered(5, wrong)
    assert steps.lacking_secrets(members, threshold=3) == [0, 1, 2]
    assert next_step(waiting, members, min_members=3, is_due=False) == Stay()
    everyone = replace(waiting, num_messages=5)
    members[3] = replace(members[3], blamed=True)
    step = next_step(everyone, members, min_members=3, is_due=False)
    assert isinstance(step, Abort)
    assert step.code is AbortCode.BAD_SHARE


@given(num_waiting=st.integers(0, 20), others=st.booleans(), overdue=st.booleans())
def test_a_session_never_begins_with_too_few_and_never_waits_for_nobody(
    num_waiting: int, others: bool, overdue: bool
) -> None:
    begins = steps.may_form(MASKED, num_waiting=num_waiting, target=8, others_may_come=others, is_overdue=overdue)
    assert begins is (num_waiting >= 3 and (num_waiting >= 8 or overdue or not others))


def test_inputs_have_time_for_their_bytes() -> None:
    assert steps.phase_length(SessionState.SHARES, MASKED, num_bytes=1000).total_seconds() == 10
    assert steps.phase_length(SessionState.INPUT, MASKED, num_bytes=1000).total_seconds() == 20


@pytest.mark.parametrize("state", [SessionState.INPUT, SessionState.UNMASK, SessionState.SUMMING])
def test_only_who_was_asked_for_shares_and_answered_is_spent(state: SessionState) -> None:
    quiet, vocal = with_flags(2, unmask_digest={1})
    found = [steps.seat_after(member, session(state, 3, expected=3, arrived=0)) for member in (quiet, vocal)]
    assert found == [SeatState.FREE, SeatState.FREE if state is SessionState.INPUT else SeatState.SPENT]


def test_every_state_that_is_not_an_end_leads_to_one() -> None:
    ends = {SessionState.DONE, SessionState.ABORTED}
    for state, targets in steps.SESSION_TRANSITIONS.items():
        assert bool(targets) is (state not in ends)
        assert state in ends or SessionState.ABORTED in targets
    assert set(steps.SESSION_TRANSITIONS) == set(SessionState)
    assert set(steps.SEAT_TRANSITIONS) == set(SeatState)
