"""Helper mode's bytes: seeds open only where they belong, and no request is read two ways."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fl_protocol.masking import hpke, keys
from fl_protocol.masking.contributions import (
    Head,
    contribution_message,
    head_bytes,
    masks_of,
    open_seed,
    parse_head,
    seal_seed,
)
from fl_protocol.masking.errors import KeyRefusedError, MessageError, ShareError
from fl_protocol.masking.mask_requests import (
    Contributor,
    MaskRequest,
    mask_sum_message,
    members_digest,
    parse_request,
)
from fl_protocol.masking.prg import apply_masks
from fl_protocol.masking.ring import pack

VECTORS = json.loads((Path(__file__).parents[3] / "docs" / "privacy" / "helper-mode-vectors.json").read_text())
RFC_9180 = {
    "ephemeral": "52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736",
    "enc": "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
    "private": "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
    "public": "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d",
    "shared_secret": "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc",
}
"""Appendix A.1.1 of RFC 9180, whose KEM is this one."""

PRIVATE = bytes(range(32))
PLACE = {"context": bytes(32), "helper": 1, "client_id": b"c" * 16, "vector_digest": b"d" * 32}


def raw(name: str) -> bytes:
    return bytes.fromhex(RFC_9180[name])


def sealed_seed(seed: bytes = b"s" * 32) -> bytes:
    return seal_seed(seed, keys.agreement_public_key(PRIVATE), ephemeral=os.urandom(32), **PLACE)


def member(number: int, num_helpers: int = 2) -> Contributor:
    seeds = tuple(bytes([number, helper]) * 40 for helper in range(num_helpers))
    return Contributor(bytes([number]) * 16, b"i" * 32, b"v" * 32, b"s" * 64, seeds)


def test_the_key_encapsulation_is_that_of_the_rfc() -> None:
    assert keys.agreement_public_key(raw("ephemeral")) == raw("enc")
    assert keys.agreement_public_key(raw("private")) == raw("public")
    shared = keys.agree(raw("ephemeral"), {0: raw("public")})[0]
    encapsulated = hpke._encapsulated(shared, enc=raw("enc"), public_key=raw("public"))
    assert encapsulated == raw("shared_secret")


def test_what_is_sealed_here_opens_in_the_library_and_the_other_way_round() -> None:
    other = pytest.importorskip("cryptography.hazmat.bindings._rust").openssl.hpke
    suite = other.Suite(other.KEM.X25519, other.KDF.HKDF_SHA256, other.AEAD.AES_256_GCM)
    public_key = keys.agreement_public_key(PRIVATE)
    for length in (0, 1, 32, 1000):
        plaintext, info, associated = os.urandom(length), os.urandom(length), os.urandom(7)
        sealed = hpke.seal_to(public_key, plaintext, info=info, associated=associated, ephemeral=os.urandom(32))
        private = X25519PrivateKey.from_private_bytes(PRIVATE)
        assert other._decrypt_with_aad(suite, sealed, private, info, associated) == plaintext
        theirs = other._encrypt_with_aad(
            suite, plaintext, X25519PublicKey.from_public_bytes(public_key), info, associated
        )
        assert hpke.open_sealed(PRIVATE, theirs, info=info, associated=associated) == plaintext


@pytest.mark.parametrize(
    "changed",
    [{"context": b"x" * 32}, {"helper": 0}, {"client_id": b"e" * 16}, {"vector_digest": b"e" * 32}],
)
def test_a_seed_opens_only_for_its_round_helper_client_and_vector(changed: dict[str, object]) -> None:
    sealed = sealed_seed()
    assert open_seed(sealed, PRIVATE, **PLACE) == b"s" * 32
    with pytest.raises(ShareError):
        open_seed(sealed, PRIVATE, **PLACE | changed)


def test_a_seed_that_was_changed_or_is_for_another_key_does_not_open() -> None:
    sealed = sealed_seed()
    spoiled = [bytes([*sealed[:at], sealed[at] ^ 1, *sealed[at + 1 :]]) for at in (0, 31, 32, 79)]
    for wrong in [*spoiled, sealed[:-1], sealed[:47], b"", bytes(80)]:
        with pytest.raises(ShareError):
            open_seed(wrong, PRIVATE, **PLACE)
    with pytest.raises(ShareError):
        open_seed(sealed, bytes(range(1, 33)), **PLACE)
    with pytest.raises(ShareError, match="no seed"):
        open_seed(sealed_seed(b"short"), PRIVATE, **PLACE)


def test_nothing_is_sealed_to_a_point_of_low_order() -> None:
    with pytest.raises(KeyRefusedError):
        seal_seed(b"s" * 32, bytes(32), ephemeral=os.urandom(32), **PLACE)


def test_a_head_has_a_signature_and_a_seed_for_each_helper() -> None:
    head = Head(b"s" * 64, (b"a" * 80, b"b" * 80))
    assert parse_head(head.render(), num_helpers=2) == head
    assert head_bytes(2) == len(head.render()) == 224
    for wrong in (head.render()[:-1], head.render() + b"x", b""):
        with pytest.raises(MessageError):
            parse_head(wrong, num_helpers=2)


def test_a_request_is_read_as_it_was_written() -> None:
    request = MaskRequest(1, 2, b"{}", (member(1), member(2), member(9)))
    assert parse_request(request.render()) == request
    assert request.members_digest == members_digest(parse_request(request.render()).members)
    other_helper = MaskRequest(0, 2, b"{}", request.members)
    assert other_helper.members_digest == request.members_digest


@pytest.mark.parametrize(
    ("members", "cut"),
    [
        ((member(2), member(1)), None),
        ((member(1), member(1)), None),
        ((member(1),), -1),
        ((member(1),), 20),
        ((member(1),), 3),
    ],
)
def test_a_request_out_of_order_or_cut_off_is_refused(members: tuple[Contributor, ...], cut: int | None) -> None:
    data = MaskRequest(0, 2, b"{}", members).render()
    with pytest.raises(MessageError):
        parse_request(data if cut is None else data[:cut])


def test_a_request_with_a_tail_or_a_helper_that_cannot_be_is_refused() -> None:
    data = MaskRequest(0, 2, b"{}", (member(1),)).render()
    for wrong in (data + b"x", b"y" + data, MaskRequest(2, 2, b"{}", (member(1),)).render()):
        with pytest.raises(MessageError):
            parse_request(wrong)
    with pytest.raises(MessageError):
        parse_request(MaskRequest(0, 9, b"{}", (member(1, 9),)).render())


def test_the_published_vectors_are_what_this_code_makes() -> None:
    given, client = VECTORS["given"], VECTORS["contribution"]
    context = keys.context(given["manifest"].encode())
    assert context.hex() == VECTORS["context"]
    seeds = [bytes.fromhex(seed) for seed in given["seeds"]]
    masks = masks_of(seeds, context=context)
    assert [bytes(mask.key).hex() for mask in masks] == client["mask_keys"]
    words = np.array([value % 2**32 for value in given["vector"]], dtype=np.uint32)
    apply_masks(words, masks)
    vector = pack(words, 24)
    assert vector.hex() == client["vector"]
    digest, client_id = hashlib.sha256(vector).digest(), bytes.fromhex(given["client_id"])
    sealed = tuple(
        seal_seed(
            seed,
            keys.agreement_public_key(bytes.fromhex(given["sealing_private_keys"][helper])),
            context=context,
            helper=helper,
            client_id=client_id,
            vector_digest=digest,
            ephemeral=bytes.fromhex(given["ephemeral_keys"][helper]),
        )
        for helper, seed in enumerate(seeds)
    )
    identity = bytes.fromhex(given["identity_private_key"])
    message = contribution_message(context=context, client_id=client_id, vector_digest=digest, sealed=sealed)
    head = Head(keys.sign(identity, message), sealed)
    assert head.render().hex() == client["head"]
    one = Contributor(client_id, keys.identity_public_key(identity), digest, head.signature, sealed)
    assert one.is_signed(context)
    request = MaskRequest(1, 2, given["manifest"].encode(), (one,))
    assert request.render().hex() == VECTORS["request"]
    assert request.members_digest.hex() == VECTORS["members_digest"]
    total = np.zeros(len(given["vector"]), dtype=np.uint32)
    apply_masks(total, masks[1:])
    packed = pack(total, 24)
    signed = mask_sum_message(
        context=context,
        helper=1,
        members_digest=request.members_digest,
        sum_digest=hashlib.sha256(packed).digest(),
    )
    signature = keys.sign(bytes.fromhex(given["signing_private_key"]), signed)
    assert (signature + packed).hex() == VECTORS["mask_sum"]
