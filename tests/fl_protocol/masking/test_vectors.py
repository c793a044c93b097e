"""The vectors of the protocol `flsa/v1`, which implementations in other languages can test themselves against.

Of the session's three members it has the public keys alone: signatures and what is sealed under `share_key_0to2` are
checked. How `pair_mask_key_0_2`, `share_key_0to2`, `share_key_2to0`, `self_mask_key_1`, `masked` and
`sum_of_masked_minus_self` come about needs private keys and seeds that neither the vectors nor the specification tell:
`test_keys.py` has these derivations against HKDF itself, `test_whole_session.py` all of a session with keys of its own.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.masking import graph, keys, messages, prg, quantisation, ring, shamir
from fl_protocol.masking.messages import Advertise, Roster

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text(encoding="ascii"))
PRG = VECTORS["prg"]
KEY = bytes.fromhex(PRG["key"])


def drawn(first, count, dtype=np.uint32, stream=prg.MASK_STREAM):
    words = np.empty(count, dtype=dtype)
    prg.keystream(KEY, stream=stream, first=first, words=words)
    return words.tolist()


def test_keystream():
    assert drawn(0, 8) == PRG["w32_first8"]
    assert drawn(1_000_003, 4) == PRG["w32_at_1000003"]
    assert drawn(0, 4, np.uint64) == PRG["w64_first4"]
    assert drawn(0, 4, stream=1) == PRG["stream1_w32_first4"]
    whole = np.empty(1 << 18, dtype=np.uint32)
    prg.keystream(KEY, stream=0, first=0, words=whole)
    assert hashlib.sha256(whole.tobytes()).hexdigest() == PRG["sha256_first_1MiB"]


def test_shamir():
    vector = VECTORS["shamir"]
    assert int(vector["p"], 16) == shamir.PRIME
    secret, expected = (
        bytes.fromhex(vector["secret"]),
        {int(x) - 1: bytes.fromhex(y) for x, y in vector["shares"].items()},
    )
    assert shamir.split(secret, range(5), coefficients=[int(c, 16) for c in vector["coeff"]]) == expected
    for members in ((0, 1, 2), (2, 3, 4), (0, 2, 4)):
        assert shamir.join({member: expected[member] for member in members}, threshold=vector["t"]) == secret


@pytest.mark.parametrize("bits", [16, 24, 32, 40])
def test_packing(bits):
    vector = VECTORS["pack"]
    wide = np.array(vector["q"], dtype=np.int64).astype(np.uint32 if bits <= 32 else np.uint64)
    assert ring.pack(wide, bits).hex() == vector[f"b{bits}"]
    words = ring.unpack(bytes.fromhex(vector[f"b{bits}"]), bits)
    assert words.dtype == wide.dtype
    assert ring.signed(words, bits).tolist() == vector["q"]


def test_quantisation():
    vector = VECTORS["quantize"]
    delta = np.array(vector["delta_f32"], dtype=np.float32)
    chosen = ring.choose_ring(max_members=vector["n_max"], max_weight=vector["W_max"], max_abs=vector["clip"])
    assert (chosen.bits, chosen.levels, chosen.step) == (vector["bits"], vector["Q"], vector["step"])
    squared_norm = float(np.dot(delta.astype(np.float64), delta.astype(np.float64)))
    assert squared_norm**0.5 == pytest.approx(vector["norm"], rel=1e-15)
    factor = quantisation.clipping_factor(squared_norm, clipping_norm=vector["clip"])
    key = bytes.fromhex(vector["rounding_key"])
    assert quantisation.quantise(delta, ring=chosen, key=key, factor=factor).tolist() == vector["q"]


SESSION = VECTORS["session"]
CONTEXT, SESSION_ID = bytes.fromhex(SESSION["ctx"]), bytes.fromhex(SESSION["session_id"])
FIELDS = ("cid", "idpk", "c", "s", "sig")
ROSTER = Roster(2, tuple(Advertise(*(bytes.fromhex(one[name]) for name in FIELDS)) for one in SESSION["roster"]))


def test_session_identity_and_signatures():
    assert messages.session_id(ROSTER, context=CONTEXT) == SESSION_ID
    for member in ROSTER.members:
        message = messages.advertise_message(member, context=CONTEXT)
        assert keys.is_signed(member.identity_key, message, member.signature)
    bitmap = messages.render_bitmap({0, 1, 2}, num_members=3)
    signature = bytes.fromhex(VECTORS["consistency_sig_client0_U3_{0,1,2}"])
    assert keys.is_signed(ROSTER.members[0].identity_key, messages.survivors_message(SESSION_ID, bitmap), signature)
    assert messages.render_bitmap({0, 2}, num_members=3).hex() == VECTORS["bitmap_0_2_of_3"]


def test_sealing():
    association = messages.share_association(SESSION_ID, sender=0, receiver=2)
    key = bytes.fromhex(VECTORS["share_key_0to2"])
    sealed = keys.seal(key, bytes(66), nonce=bytes(12), associated=association)
    assert sealed.hex() == VECTORS["gcm_0to2_zero66_nonce0"]
    assert keys.unseal(key, sealed, nonce=bytes(12), associated=association) == bytes(66)


def test_helper_mask_key():
    assert keys.helper_mask_key(bytes(32), context=CONTEXT, helper=7).hex() == VECTORS["helper_mask_key_seed0_idx7"]


def test_graph():
    session_id = hashlib.sha256(b"sid").digest()
    assert list(graph.neighbours(session_id, 12, 4)[0]) == VECTORS["graph_n12_k4_neighbours_of_0"]
