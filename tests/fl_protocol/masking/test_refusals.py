"""An evil server, step by step: whatever it changes, a client refuses by name, forgets its secrets and answers nothing.

Each test lets honest members come as far as the step that is attacked, and hands one of them something else.
"""

import dataclasses
import os

import numpy as np
import pytest

from fl_protocol.masking import keys, messages, prg
from fl_protocol.masking.errors import MessageError, RefusalError
from fl_protocol.masking.graph import graph_of
from fl_protocol.masking.messages import Kind, Roster
from fl_protocol.masking.participant import Stage
from fl_protocol.masking.ring import choose_ring, to_words
from tests.support.masking import CONTEXT, Server, client_id, enrol, identity, masked, signer

N = 5
VECTOR = np.arange(10)
RING = choose_ring(max_members=N, max_abs=1.0)
LOW_ORDER = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")


class Federation:
    """Five members and an honest server, led on one phase at a time."""

    def __init__(self, count=N, **terms):
        self.members = [enrol(number, os.urandom, **terms) for number in range(count)]
        self.server = Server(RING)
        self.roster = self.server.freeze([member.advertise for member in self.members])

    @property
    def victim(self):
        return self.members[0]

    def seat(self):
        for member in self.members:
            member.accept_roster(self.roster)
        return self

    def deal(self):
        self.seat()
        for index, member in enumerate(self.members):
            self.server.take_shares(index, member.deal(os.urandom(member.dealing_entropy_bytes)))
        return self

    def mask(self, but=()):
        self.deal()
        for index, member in enumerate(self.members):
            member.open_inbox(self.server.inbox(index))
            if index not in but:
                self.server.inputs[index] = masked(member, to_words(VECTOR, RING), RING)
        return self

    def sign(self, but=()):
        self.mask(but=but)
        for index in self.server.inputs:
            self.server.signatures[index] = self.members[index].sign_survivors(self.server.bitmap, signer=signer(index))
        return self

    def agree(self, but=()):
        self.sign(but=but)
        for index in self.server.inputs:
            self.members[index].check_consistency(self.server.consistency())
        return self


def refused(rule, field, step, *arguments, **options):
    """Lets a member take a step that it must refuse, and sees that it has left the session for good."""
    with pytest.raises(RefusalError) as refusal:
        step(*arguments, **options)
    assert (refusal.value.rule, refusal.value.field) == (rule, field)
    assert f"(rule {rule})" in str(refusal.value)
    member = step.__self__
    assert secrets_of(member) == []
    for later, later_arguments in (
        (member.deal, (b"",)),
        (member.masks, ()),
        (member.check_consistency, (b"",)),
        (member.unmask, (b"\x1f",)),
    ):
        with pytest.raises((RuntimeError, RefusalError)):
            later(*later_arguments)
    return refusal.value


def secrets_of(member):
    """Gives every array of a member's secrets that has any bytes left."""
    secrets = member._secrets
    arrays = [secrets.seed, secrets.share_key, secrets.mask_key, *secrets.mask_keys]
    arrays += [share for pair in secrets.inbox.values() for share in pair]
    arrays += [*secrets.share_secrets.values(), *secrets.mask_secrets.values()]
    return [array for array in arrays if array]


def resigned(number, **changes):
    """Gives a client's advertisement with other keys, signed by the client itself."""
    advertise = dataclasses.replace(enrol(number, os.urandom).advertise, **changes)
    message = messages.advertise_message(advertise, context=CONTEXT)
    return dataclasses.replace(advertise, signature=signer(number)(message))


def with_member(roster, index, advertise):
    members = list(messages.parse_roster(roster).members)
    members[index] = advertise
    return Roster(messages.parse_roster(roster).threshold, tuple(members)).render()


def with_threshold(roster, threshold):
    return Roster(threshold, messages.parse_roster(roster).members).render()


def test_an_honest_session_is_not_refused():
    federation = Federation().agree()
    for index, member in enumerate(federation.members):
        federation.server.take_answer(index, member.unmask(federation.server.bitmap))
        assert member.stage is Stage.SPENT
        assert secrets_of(member) == []
    np.testing.assert_array_equal(federation.server.sum(), N * VECTOR)


# C2: the roster


def test_c2_a_swapped_key_is_not_signed_by_its_owner():
    federation = Federation()
    honest = federation.members[3].advertise
    for name in ("share_key", "mask_key"):
        evil = dataclasses.replace(honest, **{name: keys.agreement_public_key(os.urandom(32))})
        victim = enrol(0, os.urandom)
        roster = with_member(with_member(federation.roster, 3, evil), 0, victim.advertise)
        assert refused("C2", "roster.signature", victim.accept_roster, roster).value == 3


def test_c2_a_signature_for_another_manifest_does_not_count():
    federation = Federation()
    other = enrol(3, os.urandom, context=bytes(32)).advertise
    roster = with_member(federation.roster, 3, other)
    refused("C2", "roster.signature", federation.victim.accept_roster, roster)


def test_c2_ones_own_record_must_be_there_unchanged():
    federation = Federation()
    first, second = federation.members[0], federation.members[1]
    refused("C2", "roster", first.accept_roster, with_member(federation.roster, 0, resigned(0)))
    missing = with_member(federation.roster, 1, resigned(77))
    refused("C2", "roster", second.accept_roster, missing)


def test_c2_nobody_is_there_twice():
    federation = Federation()
    fields = dataclasses.asdict(federation.members[2].advertise)
    whole = with_member(federation.roster, 3, federation.members[2].advertise)
    refused("C2", "roster.client_id", federation.members[0].accept_roster, whole)
    same_identity = with_member(federation.roster, 3, resigned(2, client_id=client_id(99)))
    refused("C2", "roster.identity_key", federation.members[1].accept_roster, same_identity)
    same_key = with_member(federation.roster, 3, resigned(3, share_key=fields["share_key"]))
    refused("C2", "roster.share_key or mask_key", federation.members[2].accept_roster, same_key)
    crossed = with_member(federation.roster, 3, resigned(3, mask_key=fields["share_key"]))
    refused("C2", "roster.share_key or mask_key", federation.members[4].accept_roster, crossed)


@pytest.mark.parametrize(("min_members", "max_members"), [(6, 100), (3, 4)])
def test_c2_the_session_has_a_size_within_the_manifests_bounds(min_members, max_members):
    federation = Federation(min_members=min_members, max_members=max_members)
    refusal = refused("C2", "roster.n", federation.victim.accept_roster, federation.roster)
    assert (refusal.value, refusal.bound) == (N, (min_members, max_members))


def test_c2_two_are_no_session_whatever_the_manifest_says():
    federation = Federation(min_members=1)
    roster = Roster(2, messages.parse_roster(federation.roster).members[:2]).render()
    refused("C2", "roster.n", federation.victim.accept_roster, roster)


@pytest.mark.parametrize("threshold", [1, 2, 4, 5])
def test_c2_the_threshold_is_the_rules(threshold):
    federation = Federation()
    refusal = refused("C2", "roster.t", federation.victim.accept_roster, with_threshold(federation.roster, threshold))
    assert (refusal.value, refusal.bound) == (threshold, graph_of(N).threshold)


def known(*numbers):
    return {client_id(number): identity(number)[1] for number in numbers}


def test_c2_pinned_and_certified_identities_are_the_only_ones():
    federation = Federation(known=known(1, 2, 3), must_know_all=True)
    refusal = refused("C2", "roster.identity_key", federation.victim.accept_roster, federation.roster)
    assert refusal.value == identity(4)[1].hex()
    assert Federation(known=known(0, 1, 2, 3, 4), must_know_all=True).seat()


def test_c2_another_key_for_a_known_client_is_refused_even_if_strangers_are_let_in():
    mine = known(1, 2) | {client_id(3): identity(9)[1]}
    federation = Federation(known=mine)
    refusal = refused("C2", "roster.identity_key", federation.victim.accept_roster, federation.roster)
    assert (refusal.value, refusal.bound) == (identity(3)[1].hex(), identity(9)[1].hex())
    assert Federation(known=known(1, 2)).seat()


def test_c2_enough_of_the_others_must_be_known_and_oneself_does_not_count():
    refusal = refused(
        "C2",
        "roster",
        (federation := Federation(known=known(0, 1, 2), min_known_peers=3)).victim.accept_roster,
        federation.roster,
    )
    assert (refusal.value, refusal.bound) == (2, 3)
    federation = Federation(known=known(0, 1, 2), min_known_peers=2)
    federation.victim.accept_roster(federation.roster)


def test_c2_a_client_may_insist_on_the_complete_graph():
    members = [enrol(number, os.urandom, must_be_complete=number == 0) for number in range(129)]
    roster = Server(RING).freeze([member.advertise for member in members])
    refusal = refused("C2", "roster.n", members[0].accept_roster, roster)
    assert "sparse graph" in str(refusal)
    members[1].accept_roster(roster)
    assert len(members[1].neighbours) == 38


@pytest.mark.parametrize("cut", [0, 4, 7, 8, 9, 183, -1])
def test_c2_what_is_no_roster_ends_the_session(cut):
    federation = Federation()
    with pytest.raises(MessageError):
        federation.victim.accept_roster(federation.roster[:cut])
    assert federation.victim.stage is Stage.LEFT
    assert secrets_of(federation.victim) == []


# C3: keys of low order


@pytest.mark.parametrize("name", ["share_key", "mask_key"])
def test_c3_a_point_of_low_order_is_refused_even_when_its_owner_signed_it(name):
    federation = Federation()
    roster = with_member(federation.roster, 3, resigned(3, **{name: LOW_ORDER}))
    refusal = refused("C3", f"roster.{name}.3", federation.victim.accept_roster, roster)
    assert refusal.value == LOW_ORDER.hex()


# C4: the inbox


def changed(body, record, at, *, mask=1):
    at += record * messages.SHARE_RECORD_BYTES
    return body[:at] + bytes([body[at] ^ mask]) + body[at + 1 :]


@pytest.mark.parametrize(("what", "at"), [("nonce", 4), ("ciphertext", 16), ("tag", 97), ("seed", 98), ("key", 130)])
def test_c4_a_tampered_record_does_not_open_or_is_not_what_was_announced(what, at):
    federation = Federation().deal()
    evil = changed(federation.server.inbox(0), 2, at)
    assert refused("C4", "shares", federation.victim.open_inbox, evil).value == 3


def test_c4_a_record_of_another_sender_receiver_or_session_does_not_open():
    federation, other = Federation().deal(), Federation().deal()
    uploads = federation.server.uploads
    for sender, record in (
        (1, uploads[2][0]),  # 2's record for 0 under the name of 1
        (1, uploads[1][1]),  # 1's record for 2
        (1, uploads[0][0]),  # 0's own record for 1, sent back to it
        (1, other.server.uploads[1][0]),  # 1's record for 0 of another session
    ):
        evil = messages.render_share_records([dataclasses.replace(record, peer=sender)])
        (parsed,) = messages.parse_share_records(evil, num_members=N)
        with pytest.raises(RefusalError, match=r"does not open \(rule C4\)"):
            federation.victim._open(parsed)
    refused("C4", "shares", federation.victim.open_inbox, evil)


def test_c4_records_of_strangers_and_of_oneself_are_refused():
    federation = Federation().deal()
    (record, *others) = messages.parse_share_records(federation.server.inbox(1), num_members=N)
    mine = messages.render_share_records([dataclasses.replace(record, peer=1), *others])
    refused("C4", "shares", federation.members[1].open_inbox, mine)
    beyond = messages.render_share_records([*others, dataclasses.replace(record, peer=N)])
    with pytest.raises(MessageError):
        federation.members[2].open_inbox(beyond)
    assert federation.members[2].stage is Stage.LEFT


def test_c4_too_few_shares_end_the_session():
    federation = Federation().deal()
    body = federation.server.inbox(0)
    threshold = graph_of(N).threshold
    enough = body[: threshold * messages.SHARE_RECORD_BYTES]
    refusal = refused("C4", "shares", federation.victim.open_inbox, enough[: -messages.SHARE_RECORD_BYTES])
    assert (refusal.value, refusal.bound) == (threshold - 1, threshold)
    assert federation.members[1].open_inbox(federation.server.inbox(1)[: len(enough)]) == {1, 0, 2, 3}


def test_two_views_of_the_roster_make_two_sessions():
    """A server that shows members different rosters gets shares that do not open, and masks that do not cancel."""
    federation = Federation()
    spare = enrol(4, os.urandom)
    other = with_member(federation.roster, 4, spare.advertise)
    left, right = federation.members[0], federation.members[1]
    left.accept_roster(federation.roster)
    right.accept_roster(other)
    assert left.cohort.session_id != right.cohort.session_id
    federation.server.uploads[0] = messages.parse_share_records(
        left.deal(os.urandom(left.dealing_entropy_bytes)), num_members=N
    )
    right.deal(os.urandom(right.dealing_entropy_bytes))
    refused("C4", "shares", right.open_inbox, federation.server.inbox(1))


def test_clients_with_different_manifests_never_share_a_session():
    federation = Federation()
    deceived = enrol(0, os.urandom, context=bytes(32))
    roster = with_member(federation.roster, 0, deceived.advertise)
    refused("C2", "roster.signature", deceived.accept_roster, roster)
    refused("C2", "roster.signature", federation.members[1].accept_roster, roster)


# C5: the survivors


def bitmap(*members, count=N):
    return messages.render_bitmap(members, num_members=count)


def test_c5_ones_own_input_must_count():
    federation = Federation().mask()
    refused("C5", "survivors", federation.victim.sign_survivors, bitmap(1, 2, 3, 4), signer=signer(0))


def test_c5_nobody_survives_whose_shares_never_came():
    federation = Federation().deal()
    body = federation.server.inbox(0)[: 3 * messages.SHARE_RECORD_BYTES]
    federation.victim.open_inbox(body)
    federation.victim.masks()
    refusal = refused("C5", "survivors", federation.victim.sign_survivors, bitmap(0, 1, 2, 4), signer=signer(0))
    assert refusal.value == 4


@pytest.mark.parametrize(("min_members", "survivors"), [(3, (0, 1, 2)), (5, (0, 1, 2, 3))])
def test_c5_quorum_and_least_session_hold_for_survivors_too(min_members, survivors):
    federation = Federation(min_members=min_members).mask()
    refusal = refused("C5", "survivors", federation.victim.sign_survivors, bitmap(*survivors), signer=signer(0))
    assert (refusal.value, refusal.bound) == (len(survivors), len(survivors) + 1)


@pytest.mark.parametrize("body", [b"", b"\x1f\x00", b"\x3f"])
def test_c5_what_is_no_bitmap_ends_the_session(body):
    federation = Federation().mask()
    with pytest.raises(MessageError):
        federation.victim.sign_survivors(body, signer=signer(0))
    assert secrets_of(federation.victim) == []


def test_c5_one_list_is_signed_and_no_other():
    federation = Federation().sign()
    with pytest.raises(RuntimeError, match="follows masked; the member has signed"):
        federation.victim.sign_survivors(bitmap(0, 1, 2, 3), signer=signer(0))


# C6: the signatures


def test_c6_a_quorum_must_have_signed():
    federation = Federation().sign()
    signatures = federation.server.signatures
    few = messages.render_consistency({index: signatures[index] for index in range(3)})
    refusal = refused("C6", "consistency", federation.victim.check_consistency, few)
    assert (refusal.value, refusal.bound) == (3, 4)
    federation.members[1].check_consistency(
        messages.render_consistency({index: signatures[index] for index in range(4)})
    )


@pytest.mark.parametrize("forged", ["flipped", "of another member", "of another list", "of another session"])
def test_c6_one_forged_signature_ends_the_session(forged):
    federation = Federation().sign()
    session_id, signatures = federation.server.cohort.session_id, dict(federation.server.signatures)
    signatures[3] = {
        "flipped": bytes([signatures[3][0] ^ 1]) + signatures[3][1:],
        "of another member": signatures[2],
        "of another list": signer(3)(messages.survivors_message(session_id, bitmap(0, 1, 2, 3))),
        "of another session": signer(3)(messages.survivors_message(bytes(32), federation.server.bitmap)),
    }[forged]
    evil = messages.render_consistency(signatures)
    assert refused("C6", "consistency", federation.victim.check_consistency, evil).value == 3


def test_c6_signatures_of_those_who_vanished_do_not_count():
    federation = Federation().sign(but=[4])
    session_id, signatures = federation.server.cohort.session_id, dict(federation.server.signatures)
    del signatures[3]
    signatures[4] = signer(4)(messages.survivors_message(session_id, federation.server.bitmap))
    refusal = refused("C6", "consistency", federation.victim.check_consistency, messages.render_consistency(signatures))
    assert (refusal.value, refusal.bound) == (3, 4)


# C7: one answer, for the list that was signed


def test_c7_one_answer_and_no_second_one_for_any_list():
    federation = Federation().agree()
    victim, signed = federation.victim, federation.server.bitmap
    victim.unmask(signed)
    for again in (signed, bitmap(0, 1, 2, 3)):
        with pytest.raises(RefusalError, match="answered already") as refusal:
            victim.unmask(again)
        assert refusal.value.rule == "C7"
    assert victim.stage is Stage.SPENT
    assert secrets_of(victim) == []


@pytest.mark.parametrize("evil", [(0, 1, 2, 3), (1, 2, 3, 4), (0,), ()])
def test_c7_no_answer_for_another_list_than_the_one_signed(evil):
    federation = Federation().agree()
    refusal = refused("C7", "survivors", federation.victim.unmask, bitmap(*evil))
    assert refusal.bound == federation.server.bitmap.hex()


def test_c7_one_share_a_neighbour_of_the_kind_that_the_list_says():
    federation = Federation().agree(but=[2])
    answer = messages.parse_unmask(federation.victim.unmask(federation.server.bitmap), num_members=N)
    kinds = {share.member: share.kind for share in answer}
    assert kinds == {1: Kind.SEED, 2: Kind.KEY, 3: Kind.SEED, 4: Kind.SEED}


@pytest.mark.parametrize("stage", ["seat", "deal", "mask", "sign"])
def test_c7_no_answer_before_a_quorum_was_checked(stage):
    federation = getattr(Federation(), stage)()
    with pytest.raises(RuntimeError, match="follows consistent"):
        federation.victim.unmask(bitmap(0, 1, 2, 3, 4))


# Secrets


def test_each_step_is_taken_once_and_in_order():
    member = enrol(0, os.urandom)
    for step, arguments in (("deal", (b"",)), ("open_inbox", (b"",)), ("masks", ()), ("check_consistency", (b"",))):
        with pytest.raises(RuntimeError, match="the member has advertised"):
            getattr(member, step)(*arguments)
    federation = Federation().mask()
    with pytest.raises(RuntimeError, match="the member has masked"):
        federation.victim.masks()
    with pytest.raises(RuntimeError, match="the member has masked"):
        federation.victim.deal(b"")


def test_masks_of_a_session_that_was_left_mask_nothing():
    """Overwritten keys must not become keys of zeros, which everybody could take off again."""
    federation = Federation().deal()
    federation.victim.open_inbox(federation.server.inbox(0))
    masks = federation.victim.masks()
    federation.victim.leave()
    vector = np.zeros(4, dtype=np.uint32)
    with pytest.raises(ValueError, match="not 0"):
        prg.apply_masks(vector, masks)


def test_leaving_overwrites_every_array_in_place():
    federation = Federation().mask()
    arrays = secrets_of(federation.victim)
    assert len(arrays) == 3 + 2 * 4 + 2 * 4 + 5
    federation.victim.leave()
    assert not any(arrays)
    assert federation.victim.stage is Stage.LEFT
    with pytest.raises(RuntimeError, match="has left"):
        federation.victim.sign_survivors(bitmap(0, 1, 2, 3, 4), signer=signer(0))


def test_fresh_entropy_of_the_right_length_is_asked_for():
    with pytest.raises(ValueError, match="96 random bytes"):
        enrol(0, lambda count: bytes(count - 1))
    federation = Federation().seat()
    with pytest.raises(ValueError, match="random bytes, not 0"):
        federation.victim.deal(b"")


def test_the_two_keys_and_the_seed_are_of_different_entropy():
    """And none of what is sent is a private key."""
    entropy = os.urandom(96)
    member = enrol(0, lambda count: entropy)
    sent = member.advertise.render()
    assert all(entropy[at : at + 32] not in sent for at in range(0, 96, 32))
    assert member.advertise.share_key != member.advertise.mask_key
    assert member.advertise.share_key == keys.agreement_public_key(entropy[32:64])
    assert member.advertise.mask_key == keys.agreement_public_key(entropy[64:])
