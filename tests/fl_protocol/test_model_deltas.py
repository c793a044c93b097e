"""The delta format: exact for every type and layout, bounded, and refused when it is not for this base."""

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol import model_deltas
from fl_protocol.dtypes import CARRIERS
from fl_protocol.model_deltas import BLOCK_NUM_BYTES, HEAD_NUM_BYTES, DeltaError, DeltaHead
from fl_protocol.tensors import render_header
from tests.docs.pages import CHECKOUT

VECTORS = json.loads((CHECKOUT / "docs" / "model-delta-vectors.json").read_text())


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def head_of(base: bytes, target: bytes) -> DeltaHead:
    return DeltaHead(digest_of(base), digest_of(target), len(target))


def made(base: bytes, target: bytes) -> bytes:
    pieces = model_deltas.encode(
        head_of(base, target), base=lambda begin, end: base[begin:end], target=lambda begin, end: target[begin:end]
    )
    return b"".join(pieces)


def applied(base: bytes, delta: bytes, expected: DeltaHead, *, piece: int = 1 << 16) -> bytes:
    pieces = (delta[begin : begin + piece] for begin in range(0, len(delta), piece))
    return b"".join(model_deltas.apply(pieces, base=lambda begin, end: base[begin:end], expected=expected))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two files of one layout with any bits, NaN among them; the second's metadata may be another."""
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    kinds = draw(st.lists(st.tuples(st.sampled_from(sorted(CARRIERS)), shapes), max_size=6))
    layout = [(f"t{number}", dtype, shape) for number, (dtype, shape) in enumerate(kinds)]
    size = sum(CARRIERS[dtype].itemsize * int(np.prod(shape)) for _, dtype, shape in layout)
    bits = st.binary(min_size=size, max_size=size)
    metadata = draw(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text(max_size=5), max_size=2))
    return render_header(layout, {}) + draw(bits), render_header(layout, metadata) + draw(bits)


@settings(max_examples=30, deadline=None)
@given(pairs(), st.integers(1, 200))
def test_a_delta_gives_the_targets_exact_bytes_for_any_bits_of_any_types(pair: tuple[bytes, bytes], piece: int) -> None:
    base, target = (bytes(part) for part in pair)
    assert applied(base, made(base, target), head_of(base, target), piece=piece) == target


@pytest.mark.parametrize("dtype", sorted(CARRIERS))
def test_tensors_of_more_than_a_block_come_back(dtype: str) -> None:
    width = CARRIERS[dtype].itemsize
    header = render_header([("w", dtype, (2 * BLOCK_NUM_BYTES // width + 5,))], {})
    generator = np.random.default_rng(1)
    base, target = (header + generator.bytes(2 * BLOCK_NUM_BYTES + 5 * width) for _ in range(2))
    assert applied(base, made(base, target), head_of(base, target)) == target


def test_near_versions_make_small_deltas() -> None:
    generator = np.random.default_rng(2)
    header = render_header([("w", "F32", (100_000,))], {})
    values = generator.normal(scale=0.02, size=100_000).astype(np.float32)
    moved = (values + generator.normal(scale=2e-6, size=100_000)).astype(np.float32)
    base, target = header + values.tobytes(), header + moved.tobytes()
    assert len(made(base, target)) < 0.6 * len(target)
    assert len(made(base, base)) < 0.01 * len(base)


def _layouts() -> Iterator[tuple[str, bytes]]:
    yield "another name", render_header([("v", "F32", (3,))], {}) + bytes(12)
    yield "another type", render_header([("w", "I32", (3,))], {}) + bytes(12)
    yield "another shape", render_header([("w", "F32", (3, 1))], {}) + bytes(12)
    yield "more", render_header([("w", "F32", (3,)), ("x", "F32", ())], {}) + bytes(16)


@pytest.mark.parametrize(("other"), [each for _, each in _layouts()], ids=[name for name, _ in _layouts()])
def test_no_delta_leads_to_another_layout(other: bytes) -> None:
    base = render_header([("w", "F32", (3,))], {}) + bytes(12)
    with pytest.raises(DeltaError, match="same tensors"):
        made(base, other)
    forged = DeltaHead(digest_of(base), digest_of(other), len(other))
    delta = made(other, other)
    with pytest.raises(DeltaError, match="the base's tensors"):
        applied(base, forged.render() + delta[HEAD_NUM_BYTES:], forged)


def test_whatever_is_not_the_delta_that_was_expected_is_refused() -> None:
    header = render_header([("w", "F32", (300,))], {})
    base, target = header + bytes(1200), header + np.random.default_rng(1).bytes(1200)
    delta, expected = made(base, target), head_of(base, target)
    rest = delta[HEAD_NUM_BYTES:]
    wrong = {
        b"": "begins with",
        delta[:50]: "begins with",
        b"X" + delta[1:]: "begins with",
        head_of(target, target).render() + rest: "another base",
        delta[:-1]: "cut",
        delta[: len(delta) // 2]: "cut",
        delta + b"!": "follow",
        expected.render() + b"no zstd frame": "cannot be read",
        expected.render() + made(base, base)[HEAD_NUM_BYTES:]: "digest",
        expected.render() + made(base, header + bytes(1199) + b"\1")[HEAD_NUM_BYTES:]: "digest",
    }
    for broken, reason in wrong.items():
        with pytest.raises(DeltaError, match=reason):
            applied(base, broken, expected)


def test_a_bomb_is_decompressed_no_further_than_the_target_reaches() -> None:
    header = render_header([("w", "F32", (3,))], {})
    base = header + bytes(12)
    frame = model_deltas.zstd.compress(header + bytes(1 << 26))
    with pytest.raises(DeltaError, match="more than the target"):
        applied(base, head_of(base, base).render() + frame, head_of(base, base))


def test_the_published_vectors_are_what_is_made_and_read() -> None:
    assert VECTORS["vectors"]
    for vector in VECTORS["vectors"]:
        base, target, delta = (bytes.fromhex(vector[name]) for name in ("base", "target", "delta"))
        assert (vector["base_digest"], vector["target_digest"]) == (digest_of(base), digest_of(target))
        assert applied(base, delta, head_of(base, target)) == target
        assert model_deltas.zstd.decompress(delta[HEAD_NUM_BYTES:]).hex() == vector["decompressed"]
        assert model_deltas.zstd.decompress(made(base, target)[HEAD_NUM_BYTES:]).hex() == vector["decompressed"]
