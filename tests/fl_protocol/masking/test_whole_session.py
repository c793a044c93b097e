"""A whole session of five, byte for byte, of which one vanishes after its shares: an oracle for other languages.

`whole_session.json` has every secret that went in and every message that came out. What is derived there is derived
again here, by this package and where that is short by hand.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.masking import keys, messages, prg, ring, shamir, unmasking
from fl_protocol.masking.participant import Participant
from fl_protocol.masking.ring import choose_ring
from fl_protocol.masking.terms import Terms
from tests.support.masking import Server

PATH = Path(__file__).with_name("whole_session.json")


def random_bytes(what, member, count):
    """Gives what stands for random bytes here: SHA-256 of a text and a counter, as often as needed."""
    blocks = range(-(-count // 32))
    return b"".join(hashlib.sha256(f"{what} {member} {block}".encode()).digest() for block in blocks)[:count]


def play(identities, vectors, *, context, chosen, dropout):
    """Plays a session and gives all that was sent in it."""
    entropy = [random_bytes("enrol", index, 96) for index in range(len(identities))]
    members = [
        Participant.enrol(
            Terms(context, min_members=3, max_members=10),
            client_id=index.to_bytes(16, "big"),
            identity_key=keys.identity_public_key(private),
            signer=lambda message, private=private: keys.sign(private, message),
            entropy=entropy[index],
        )
        for index, private in enumerate(identities)
    ]
    server = Server(chosen)
    roster = server.freeze([member.advertise for member in members], context=context)
    dealings = {}
    for index, member in enumerate(members):
        member.accept_roster(roster)
        dealings[index] = member.deal(random_bytes("deal", index, member.dealing_entropy_bytes))
        server.take_shares(index, dealings[index])
    mask_keys, inboxes = {}, {}
    for index, member in enumerate(members):
        inboxes[index] = server.inbox(index)
        member.open_inbox(inboxes[index])
        masks = member.masks()
        mask_keys[index] = [bytes(mask.key).hex() for mask in masks]
        if index != dropout:
            words = ring.to_words(np.array(vectors[index]), chosen)
            prg.apply_masks(words, masks)
            server.inputs[index] = ring.pack(words, chosen.bits)
    bitmap, answers = server.bitmap, {}
    for index in server.inputs:
        private = identities[index]
        server.signatures[index] = members[index].sign_survivors(
            bitmap, signer=lambda message, private=private: keys.sign(private, message)
        )
    for index in server.inputs:
        members[index].check_consistency(server.consistency())
        answers[index] = members[index].unmask(bitmap)
        server.take_answer(index, answers[index])
    return {
        "random": {
            "enrol": [one.hex() for one in entropy],
            "deal": [random_bytes("deal", i, m.dealing_entropy_bytes).hex() for i, m in enumerate(members)],
        },
        "roster": roster.hex(),
        "session_id": server.cohort.session_id.hex(),
        "shares": [dealings[index].hex() for index in range(len(members))],
        "inboxes": [inboxes[index].hex() for index in range(len(members))],
        "mask_keys": [mask_keys[index] for index in range(len(members))],
        "inputs": {str(index): body.hex() for index, body in server.inputs.items()},
        "survivors": bitmap.hex(),
        "consistency": server.consistency().hex(),
        "unmask": {str(index): body.hex() for index, body in answers.items()},
        "sum": server.sum().tolist(),
    }


def session():
    """Gives what goes into the session, and what comes out of it."""
    identities = [random_bytes("identity", index, 32) for index in range(5)]
    chosen = choose_ring(max_members=10, max_abs=1.0)
    vectors = [[index, -index, 1000 * index, chosen.levels, -chosen.levels, 1] for index in range(5)]
    context = keys.context(b'{"an": "example"}')
    given = {
        "manifest": '{"an": "example"}',
        "context": context.hex(),
        "identities": [private.hex() for private in identities],
        "bits": chosen.bits,
        "levels": chosen.levels,
        "vectors": vectors,
        "dropout": 3,
    }
    return given | play(identities, vectors, context=context, chosen=chosen, dropout=3)


@pytest.fixture(scope="module")
def written():
    return json.loads(PATH.read_text(encoding="ascii"))


def test_the_session_comes_out_byte_for_byte(written):
    found = session()
    for name, value in found.items():
        assert written[name] == value, name
    assert found.keys() == written.keys()


def test_the_sum_is_that_of_the_four_who_stayed(written):
    expected = [sum(column) for column in zip(*(written["vectors"][index] for index in (0, 1, 2, 4)), strict=True)]
    assert written["sum"] == expected


def test_masks_are_added_and_subtracted_by_the_formula(written):
    """y_u = q_u + PRG(self_u) + sum of PRG(pair) over v > u - sum over v < u, modulo 2^32, low bits packed."""
    for name, body in written["inputs"].items():
        index = int(name)
        own, *pairs = (bytes.fromhex(key) for key in written["mask_keys"][index])
        total = np.array(written["vectors"][index]).astype(np.uint32)
        for sign, key in [(1, own), *zip([-1 if v < index else 1 for v in range(5) if v != index], pairs, strict=True)]:
            words = np.empty(total.size, dtype=np.uint32)
            prg.keystream(key, stream=0, first=0, words=words)
            total = total + words if sign > 0 else total - words
        assert ring.pack(total, written["bits"]).hex() == body


def test_both_of_a_pair_have_the_same_key(written):
    others = [[v for v in range(5) if v != u] for u in range(5)]
    pairs = {(u, v): written["mask_keys"][u][1 + at] for u in range(5) for at, v in enumerate(others[u])}
    assert all(pairs[u, v] == pairs[v, u] for u, v in pairs)
    assert len(set(pairs.values())) == 10


def test_the_dropouts_key_and_a_survivors_seed_come_back_of_the_answers(written):
    answers = {
        int(name): messages.parse_unmask(bytes.fromhex(body), num_members=5) for name, body in written["unmask"].items()
    }
    entropy = [bytes.fromhex(one) for one in written["random"]["enrol"]]
    for member, expected in ((3, entropy[3][64:96]), (1, entropy[1][:32])):
        shares = {
            responder: share.share for responder, given in answers.items() for share in given if share.member == member
        }
        assert shamir.join(shares, threshold=3) == expected


def test_digests_and_associations_are_those_of_the_protocol(written):
    records = messages.parse_share_records(bytes.fromhex(written["shares"][0]), num_members=5)
    session_id, entropy = bytes.fromhex(written["session_id"]), bytes.fromhex(written["random"]["enrol"][0])
    dealt = bytes.fromhex(written["random"]["deal"][0])
    shares = shamir.split(entropy[:32], range(1, 5), coefficients=shamir.coefficients(dealt[:96]))
    for record in records:
        head = session_id + (0).to_bytes(4, "big") + record.peer.to_bytes(4, "big")
        assert record.seed_digest == hashlib.sha256(b"flsa/v1/hb\0" + head + shares[record.peer]).digest()
    assert unmasking.share_digests({0: records}).keys() == {(0, peer) for peer in range(1, 5)}
