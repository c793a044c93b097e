"""Whole sessions: the sum is exact for whoever vanishes when, and what the server holds tells it nothing else."""

import os
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fl_protocol.masking import keys, messages, prg, ring, shamir, unmasking
from fl_protocol.masking.errors import MessageError, ShareError
from fl_protocol.masking.graph import graph_of
from fl_protocol.masking.messages import Kind
from fl_protocol.masking.prg import Mask
from fl_protocol.masking.quantisation import quantise
from fl_protocol.masking.ring import Extra, choose_ring
from tests.support.masking import run


@pytest.fixture(autouse=True, scope="module")
def _each_signature_is_checked_once():
    """All members of a session check the same signatures, which takes most of its time in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "is_signed", lru_cache(maxsize=None)(keys.is_signed))
        yield


PHASES = ("shares", "input", "consistency", "unmask")
UNLIKELY = 1e-6


@st.composite
def sessions(draw):
    """Draws members, their vectors, a ring for them, and who vanishes in which phase, within what is tolerated."""
    count = draw(st.integers(3, 40))
    chosen = choose_ring(
        max_members=count,
        max_weight=draw(st.sampled_from([1, 255])),
        max_abs=1.0,
        min_levels=draw(st.sampled_from([32, 2**15, 2**22, 2**28, 2**40])),
    )
    gone = draw(st.permutations(range(count)))[: draw(st.integers(0, graph_of(count).tolerated_dropouts))]
    silent = {phase: [] for phase in PHASES}
    for member in gone:
        silent[draw(st.sampled_from(PHASES))].append(member)
    largest = chosen.levels * chosen.max_weight
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(0, 50))
    vectors = [rng.integers(-largest, largest + 1, size) for _ in range(count)]
    vectors[0] = np.full(size, draw(st.sampled_from([largest, -largest, 0])))
    return chosen, vectors, silent


@settings(max_examples=20, deadline=None)
@given(session=sessions(), window=st.integers(1, 60))
def test_the_sum_is_that_of_the_survivors_integers_bit_for_bit(session, window):
    chosen, vectors, silent = session
    server, _ = run(vectors, chosen, silent=silent, entropy=os.urandom)
    expected_to_stay = set(range(len(vectors))) - set(silent["shares"]) - set(silent["input"])
    assert server.survivors == expected_to_stay
    expected = sum((vectors[member] for member in expected_to_stay), np.zeros_like(vectors[0]))
    found = server.sum(window) if len(expected) else expected
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_a_sparse_session_adds_up_with_dropouts_in_every_phase():
    count = 129
    chosen = choose_ring(max_members=count, max_abs=1.0)
    vectors = [np.arange(20) * member for member in range(count)]
    silent = {phase: [10 * at, 10 * at + 1] for at, phase in enumerate(PHASES, start=1)}
    server, members = run(vectors, chosen, silent=silent)
    assert not server.cohort.graph.is_complete
    assert len(members[0].neighbours) == 38
    np.testing.assert_array_equal(server.sum(), sum(vectors[member] for member in server.survivors))


@settings(max_examples=10, deadline=None)
@given(weights=st.lists(st.integers(1, 255), min_size=3, max_size=8), data=st.data())
def test_the_masked_weighted_mean_is_the_plain_one_to_a_step(weights, data):
    """The weight is one more coordinate: the server learns the total alone, and divides by it."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    updates = [rng.uniform(-1, 1, 30).astype(np.float32) for _ in weights]
    chosen = choose_ring(max_members=8, max_weight=255, max_abs=1.0, extras=[Extra("weight", 255)])
    vectors = [
        np.concatenate(
            [
                quantise(update, ring=chosen, key=os.urandom(32), weight=weight),
                ring.encode_extras({"weight": weight}, chosen),
            ]
        )
        for update, weight in zip(updates, weights, strict=True)
    ]
    server, _ = run(vectors, chosen)
    *totals, total_weight = server.sum().tolist()
    assert total_weight == sum(weights)
    plain = np.average(np.array(updates, dtype=np.float64), axis=0, weights=weights)
    # Each update is rounded by less than a step, whatever it weighs.
    bound = chosen.step * len(weights) / total_weight * (1 + 1e-9)
    assert np.abs(chosen.step * np.array(totals) / total_weight - plain).max() <= bound
    measure = ring.measure_sum(np.array(totals))
    ring.check_sum(
        measure, np.array([total_weight]), ring=chosen, num_members=len(weights), num_coordinates=30, clipping_norm=6.0
    )


# What the server holds


SIZE = 200_000


def uniformity(words):
    """Gives the p-value of the bytes' frequencies under the uniform distribution."""
    counts = np.bincount(np.frombuffer(words.astype("<u4").tobytes(), dtype=np.uint8), minlength=256)
    return stats.chisquare(counts).pvalue


def looks_random(words, plain):
    values = words.astype(np.float64)
    correlation = np.corrcoef(values, plain)[0, 1]
    return uniformity(words) > UNLIKELY and abs(correlation) < 5 / np.sqrt(plain.size)


@pytest.fixture(scope="module")
def five():
    """A session of five with long vectors that are anything but uniform, and all members' masks."""
    chosen = choose_ring(max_members=5, max_abs=1.0, min_levels=2**22)
    assert chosen.bits == 32
    plain = np.arange(SIZE) % 1000
    server, members = run([plain] * 5, chosen)
    return server, members, plain


def own_mask(server, member):
    """Derives the mask of a member's own, as the server can once it has been told the shares."""
    session_id, collected = server.cohort.session_id, server.collected()
    seed = shamir.join(collected.seeds[member], threshold=server.cohort.graph.threshold)
    return Mask(keys.self_mask_key(seed, session_id=session_id, member=member))


def test_a_masked_vector_is_uniform_and_unrelated_to_the_update(five):
    server, _, plain = five
    assert uniformity(plain.astype(np.uint32)) < UNLIKELY
    for body in server.inputs.values():
        assert looks_random(ring.unpack(body, 32), plain)


def test_with_the_revealed_own_mask_removed_a_survivors_vector_still_is(five):
    server, _, plain = five
    for member, body in server.inputs.items():
        words = ring.unpack(body, 32)
        prg.remove_masks(words, [own_mask(server, member)])
        assert looks_random(words, plain)


def test_one_honest_neighbour_is_enough_and_without_any_the_update_is_bare():
    """The members' own masks are revealed; their neighbours, all but one or all, collude with the server."""
    chosen = choose_ring(max_members=5, max_abs=1.0, min_levels=2**22)
    plain = np.arange(SIZE) % 1000
    generator = np.random.default_rng(0)
    drawn = []

    def entropy(count):
        drawn.append(generator.bytes(count))
        return drawn[-1]

    server, _ = run([plain] * 5, chosen, entropy=entropy)
    session_id, members = server.cohort.session_id, server.cohort.roster.members
    pairs = []
    for peer in range(1, 5):
        (secret,) = keys.agree(drawn[peer][64:96], {0: members[0].mask_key}).values()
        key = keys.pair_mask_key(secret, session_id=session_id, member=0, peer=peer)
        pairs.append(Mask(key))
    words = ring.unpack(server.inputs[0], 32)
    prg.remove_masks(words, [own_mask(server, 0)])
    for mask in pairs[:3]:
        prg.remove_masks(words, [mask])
        assert looks_random(words, plain)
    prg.remove_masks(words, pairs[3:])
    np.testing.assert_array_equal(words, plain)


@pytest.mark.parametrize("count", [7, 10])
def test_colluders_up_to_the_bound_lack_a_share_of_one_secret_and_one_more_would_have_both(count):
    """A server shows two lists of survivors, which honest clients would never both sign, to disjoint halves of them.

    The members have not answered yet, so that each still has its shares of the first one's two secrets.
    """
    everyone, target = range(count), 0
    chosen = choose_ring(max_members=count, max_abs=1.0)
    server, members = run([np.zeros(4, dtype=np.int64)] * count, chosen, silent={"unmask": everyone})
    graph = server.cohort.graph

    def secrets_within_reach(num_colluders):
        colluders, honest = everyone[1 : 1 + num_colluders], everyone[1 + num_colluders :]
        missing = graph.threshold - num_colluders
        reached = []
        for place, half in enumerate((honest[:missing], honest[missing : 2 * missing])):
            shares = {one: members[one]._secrets.inbox[target][place] for one in (*colluders, *half)}
            if len(shares) >= graph.threshold:
                reached.append(shamir.join(shares, threshold=graph.threshold))
        return reached

    secrets = members[target]._secrets
    assert secrets_within_reach(graph.tolerated_colluders) == [secrets.seed]
    assert secrets_within_reach(graph.tolerated_colluders + 1) == [secrets.seed, secrets.mask_key]


# Bad shares


def spoil(server, responder, dealer):
    """Changes one share of a responder's answer."""
    server.answers[responder] = tuple(
        messages.UnmaskShare(share.member, share.kind, bytes([share.share[0], share.share[1] ^ 1]) + share.share[2:])
        if share.member == dealer
        else share
        for share in server.answers[responder]
    )


def test_bad_shares_are_told_by_who_sent_them_and_the_sum_is_still_exact():
    count = 12
    vectors = [np.arange(30) + member for member in range(count)]
    server, _ = run(vectors, choose_ring(max_members=count, max_abs=1.0), silent={"input": [9]})
    for responder in (0, 4):
        for dealer in (1, 2, 9):
            spoil(server, responder, dealer)
    collected = server.collected()
    found = {(bad.responder, bad.dealer, bad.kind) for bad in collected.bad}
    assert found == {(r, d, Kind.KEY if d == 9 else Kind.SEED) for r in (0, 4) for d in (1, 2, 9)}
    assert collected.lacking(server.cohort.graph.threshold) == []
    np.testing.assert_array_equal(server.sum(), sum(vectors) - vectors[9])


def test_too_many_bad_shares_of_one_member_leave_its_secret_unknown_and_it_is_named():
    count = 10
    server, _ = run([np.zeros(3, dtype=np.int64)] * count, choose_ring(max_members=count, max_abs=1.0))
    for responder in (0, 4, 5):
        spoil(server, responder, 1)
    assert server.collected().lacking(server.cohort.graph.threshold) == [1]
    with pytest.raises(ShareError, match=r"of member 1: .*6 shares of a secret; 7 are needed"):
        server.sum()


def test_a_dealer_whose_shares_join_to_another_key_is_named():
    """It announced the digests of wrong shares: nobody but the joined key can tell."""
    count = 5
    server, _ = run([np.zeros(3, dtype=np.int64)] * count, choose_ring(max_members=count, max_abs=1.0))
    collected = server.collected()
    threshold = server.cohort.graph.threshold
    wrong = shamir.split(os.urandom(32), range(4), coefficients=shamir.coefficients(os.urandom(48 * (threshold - 1))))
    evil = unmasking.Collected({m: s for m, s in collected.seeds.items() if m != 4}, {4: wrong}, ())
    with pytest.raises(ShareError, match="member 4 join to another key") as refusal:
        unmasking.masks_of_sum(evil, cohort=server.cohort)
    assert refusal.value.value == 4


def test_shares_of_the_wrong_kind_or_of_nobody_never_count():
    count = 5
    server, _ = run([np.zeros(3, dtype=np.int64)] * count, choose_ring(max_members=count, max_abs=1.0))
    swapped = messages.UnmaskShare(1, Kind.KEY, bytes(33))
    stranger = messages.UnmaskShare(0, Kind.SEED, bytes(33))
    server.answers[0] = (stranger, swapped)
    assert [(bad.responder, bad.dealer) for bad in server.collected().bad] == [(0, 0), (0, 1)]


# What the server's parser refuses


@pytest.fixture(scope="module")
def answered():
    return run([np.zeros(3, dtype=np.int64)] * 5, choose_ring(max_members=5, max_abs=1.0), silent={"input": [4]})[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer[1:],
        lambda answer: (),
        lambda answer: (messages.UnmaskShare(0, Kind.SEED, bytes(33)), *answer),
        lambda answer: (messages.UnmaskShare(1, Kind.KEY, bytes(33)), *answer[1:]),
        lambda answer: (*answer[:-1], messages.UnmaskShare(4, Kind.SEED, bytes(33))),
    ],
    ids=["one short", "empty", "of itself", "key of a survivor", "seed of a dropout"],
)
def test_an_answer_is_one_share_of_the_right_kind_of_each_neighbour(answered, change):
    body = messages.render_unmask(change(answered.answers[0]))
    with pytest.raises(MessageError, match="is expected"):
        answered.take_answer(0, body)


def test_a_dealing_is_one_record_for_each_neighbour(answered):
    records = answered.uploads[0]
    for wrong in (records[1:], (), records[:-1]):
        with pytest.raises(MessageError, match="one for each of 4 neighbours"):
            answered.take_shares(0, messages.render_share_records(wrong))
    answered.take_shares(0, messages.render_share_records(records))
