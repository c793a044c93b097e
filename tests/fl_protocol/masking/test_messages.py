"""Messages: what is written is read back, and nothing that differs by a byte in length, order or range is taken."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.masking import messages, shamir
from fl_protocol.masking.errors import MaskingError, MessageError
from fl_protocol.masking.messages import Advertise, Kind, Roster, ShareRecord, UnmaskShare

N = 20
MEMBERS = st.sets(st.integers(0, N - 1))


def sized(size):
    return st.binary(min_size=size, max_size=size)


ADVERTISES = st.builds(Advertise, sized(16), sized(32), sized(32), sized(32), sized(64))
ROSTERS = st.lists(ADVERTISES, min_size=1, max_size=5).flatmap(
    lambda members: st.builds(Roster, st.integers(1, len(members)), st.just(tuple(members)))
)
SHARES = st.integers(0, shamir.PRIME - 1).map(lambda value: value.to_bytes(33, "big"))
RECORDS = MEMBERS.flatmap(
    lambda members: st.tuples(
        *(
            st.builds(ShareRecord, st.just(member), sized(12), sized(82), sized(32), sized(32))
            for member in sorted(members)
        )
    )
)
ANSWERS = MEMBERS.flatmap(
    lambda members: st.tuples(
        *(st.builds(UnmaskShare, st.just(member), st.sampled_from(Kind), SHARES) for member in sorted(members))
    )
)
SIGNATURES = st.dictionaries(st.integers(0, N - 1), sized(64))


@settings(max_examples=50, deadline=None)
@given(roster=ROSTERS, records=RECORDS, answers=ANSWERS, signatures=SIGNATURES, members=MEMBERS)
def test_what_is_written_is_read_back(roster, records, answers, signatures, members):
    assert messages.parse_roster(roster.render()) == roster
    assert messages.parse_advertise(roster.members[0].render()) == roster.members[0]
    assert messages.parse_share_records(messages.render_share_records(records[::-1]), num_members=N) == records
    assert messages.parse_unmask(messages.render_unmask(answers[::-1]), num_members=N) == answers
    assert messages.parse_consistency(messages.render_consistency(signatures), num_members=N) == signatures
    assert messages.parse_bitmap(messages.render_bitmap(members, num_members=N), num_members=N) == members


PARSERS = {
    "advertise": messages.parse_advertise,
    "roster": messages.parse_roster,
    "shares": lambda data: messages.parse_share_records(data, num_members=N),
    "unmask": lambda data: messages.parse_unmask(data, num_members=N),
    "consistency": lambda data: messages.parse_consistency(data, num_members=N),
    "survivors": lambda data: messages.parse_bitmap(data, num_members=N),
}
AN_ADVERTISE = Advertise(bytes(16), bytes(32), bytes(32), bytes(32), bytes(64))
EXAMPLES = {
    "advertise": AN_ADVERTISE.render(),
    "roster": Roster(2, (AN_ADVERTISE,) * 3).render(),
    "shares": ShareRecord(1, bytes(12), bytes(82), bytes(32), bytes(32)).render(),
    "unmask": UnmaskShare(1, Kind.SEED, bytes(33)).render(),
    "consistency": messages.render_consistency({1: bytes(64)}),
    "survivors": messages.render_bitmap({1}, num_members=N),
}
SIZES = {"advertise": 176, "roster": 8 + 3 * 176, "shares": 162, "unmask": 38, "consistency": 68, "survivors": 3}


@pytest.mark.parametrize("name", PARSERS)
def test_a_byte_more_or_less_is_refused(name):
    example = EXAMPLES[name]
    assert len(example) == SIZES[name]
    PARSERS[name](example)
    for wrong in (example + b"\0", example[:-1], example[: len(example) // 2]):
        with pytest.raises(MessageError) as refusal:
            PARSERS[name](wrong)
        assert refusal.value.field.startswith(name)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=600))
def test_any_bytes_are_read_or_refused_and_what_is_read_is_written_the_same(name, data):
    try:
        read = PARSERS[name](data)
    except MaskingError:
        return
    writers = {
        "shares": messages.render_share_records,
        "unmask": messages.render_unmask,
        "consistency": messages.render_consistency,
        "survivors": lambda members: messages.render_bitmap(members, num_members=N),
    }
    assert writers.get(name, lambda message: message.render())(read) == data


@pytest.mark.parametrize("name", ["shares", "unmask", "consistency"])
def test_members_rise_each_once_below_n(name):
    head, tail = EXAMPLES[name][:4], EXAMPLES[name][4:]
    assert head == (1).to_bytes(4, "big")

    def records(*members):
        return b"".join(member.to_bytes(4, "big") + tail for member in members)

    PARSERS[name](records(0, 1, N - 1))
    for members in ((1, 1), (2, 1), (0, 3, 2), (N,), (2**32 - 1,), (0, N)):
        with pytest.raises(MessageError, match="members rise, each once, below 20"):
            PARSERS[name](records(*members))
    with pytest.raises(MessageError, match="not at most 20 records"):
        PARSERS[name](records(*range(N + 1)))


@pytest.mark.parametrize("kind", [b"\0", b"B", b"S", b"a", b"\xff"])
def test_a_share_of_both_or_of_no_kind_cannot_be_asked_for(kind):
    record = bytes(4) + kind + bytes(33)
    with pytest.raises(MessageError, match="it is b or s"):
        messages.parse_unmask(record, num_members=N)


def test_a_share_outside_the_field_is_refused():
    record = bytes(4) + b"b" + shamir.PRIME.to_bytes(33, "big")
    with pytest.raises(MaskingError, match="share"):
        messages.parse_unmask(record, num_members=N)


@pytest.mark.parametrize(("count", "threshold"), [(0, 0), (0, 1), (3, 0), (3, 4), (10_001, 3), (2**32 - 1, 3)])
def test_a_rosters_counts_have_bounds(count, threshold):
    head = count.to_bytes(4, "big") + threshold.to_bytes(4, "big")
    with pytest.raises(MessageError, match="roster"):
        messages.parse_roster(head + AN_ADVERTISE.render() * min(count, 3))


@pytest.mark.parametrize("num_members", [1, 7, 8, 9, 20, 1000])
def test_a_bitmap_has_no_bits_beyond_the_last_member(num_members):
    everyone = messages.render_bitmap(range(num_members), num_members=num_members)
    assert len(everyone) == -(-num_members // 8)
    assert messages.parse_bitmap(everyone, num_members=num_members) == set(range(num_members))
    if num_members % 8:
        beyond = everyone[:-1] + bytes([everyone[-1] | 1 << num_members % 8])
        with pytest.raises(MessageError, match=f"a bit for {num_members} of {num_members}"):
            messages.parse_bitmap(beyond, num_members=num_members)
    for member in (-1, num_members):
        with pytest.raises(MessageError, match="there is no member"):
            messages.render_bitmap([member], num_members=num_members)


def test_a_sessions_identity_is_of_the_context_and_of_every_byte_of_the_roster():
    roster = Roster(2, (AN_ADVERTISE,) * 3)
    context = hashlib.sha256(b"ctx").digest()
    identity = messages.session_id(roster, context=context)
    assert identity == hashlib.sha256(b"flsa/v1/session\0" + context + roster.render()).digest()
    others = {messages.session_id(Roster(3, roster.members), context=context)}
    others.add(messages.session_id(roster, context=hashlib.sha256(b"other").digest()))
    body = roster.render()
    for at in range(8, len(body), 16):
        changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        others.add(messages.session_id(messages.parse_roster(changed), context=context))
    assert identity not in others
    assert len(others) == 2 + len(range(8, len(body), 16))


def test_no_share_is_shown():
    share = UnmaskShare(3, Kind.KEY, bytes(range(33)))
    assert repr(share.share) not in repr(share)
