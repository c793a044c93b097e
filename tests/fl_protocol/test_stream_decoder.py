"""Bodies that arrive in chunks: every chunking gives the same values, and damage is found as early as it can be."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.arrays import RawTensor, encode
from fl_protocol.dtypes import CARRIERS
from fl_protocol.encodings.dense import DenseMeasure
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.streaming import Piece, StreamDecoder
from fl_protocol.tensors import parse_header, render_header

ARRAYS = {
    "w": np.arange(5, dtype=np.float32) / 7,
    "empty": np.zeros((2, 0), dtype=np.float32),
    "d": np.array([[1.0, -2.0], [3.0, 4.0]]),
    "h": np.array([1, 2, 3], dtype=np.float16),
    "b": RawTensor("BF16", np.array([0x3F80], dtype=np.uint16)),
    "n": np.array(9, dtype=np.int64),
    "flags": np.array([True, False]),
    "last": np.zeros(0, dtype=np.float32),
}
BLOB = b"".join(encode(ARRAYS, {"num_examples": "5"}))


def decoder(check_header=lambda header: None, **limits):
    return StreamDecoder(
        **({"max_header_bytes": 1 << 20, "max_num_bytes": 1 << 20} | limits), check_header=check_header
    )


def feed_all(stream, data, size):
    for at in range(0, len(data), size):
        list(stream.feed(data[at : at + size]))


def collect(chunks):
    stream, found = decoder(), {}
    for chunk in chunks:
        for piece in stream.feed(chunk):
            assert piece.values.ndim == 1
            assert piece.values.size
            assert piece.first_element == sum(part.size for part in found.get(piece.spec.name, []))
            found.setdefault(piece.spec.name, []).append(piece.values.copy())
    stream.close()
    return {name: np.concatenate(parts) for name, parts in found.items()}


def check(found):
    assert set(found) == set(ARRAYS) - {"empty", "last"}
    for name, values in found.items():
        array = ARRAYS[name]
        np.testing.assert_array_equal(values, (array.data if isinstance(array, RawTensor) else array).reshape(-1))


@pytest.mark.parametrize("size", [*range(1, 40), 64, 100, len(BLOB) - 1, len(BLOB)])
def test_every_chunk_size_gives_the_same_values(size):
    check(collect(BLOB[at : at + size] for at in range(0, len(BLOB), size)))


@pytest.mark.parametrize("cut", range(0, len(BLOB) + 1, 3))
def test_every_cut_gives_the_same_values(cut):
    check(collect([BLOB[:cut], b"", bytearray(BLOB[cut:])]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, len(BLOB)), max_size=12))
def test_any_chunking_gives_the_same_values(cuts):
    edges = [0, *sorted(cuts), len(BLOB)]
    check(collect(memoryview(BLOB)[a:b] for a, b in itertools.pairwise(edges)))


@pytest.mark.parametrize("length", range(0, len(BLOB), 2))
def test_a_truncated_body_is_refused_when_it_ends(length):
    stream = decoder()
    list(stream.feed(BLOB[:length]))
    with pytest.raises(ProblemError, match="malformed-update"):
        stream.close()


@pytest.mark.parametrize("size", [1, 7, len(BLOB) + 1])
def test_trailing_bytes_are_refused_as_soon_as_they_are_seen(size):
    with pytest.raises(ProblemError, match="follow the last tensor"):
        feed_all(decoder(), BLOB + b"\0", size)


def test_a_body_without_tensors_is_complete():
    stream = decoder()
    assert list(stream.feed(render_header([], {}))) == []
    stream.close()
    assert stream.header.tensors == ()


def test_the_header_is_checked_before_any_byte_of_the_body():
    seen = []

    def refuse(header):
        seen.append(header)
        raise ProblemError(ProblemType.STRUCTURE_MISMATCH, "no")

    stream = decoder(refuse)
    with pytest.raises(ProblemError, match="structure-mismatch"):
        feed_all(stream, BLOB, 1)
    assert len(seen) == 1
    assert stream.num_bytes == seen[0].data_start


def test_a_giant_header_is_refused_after_eight_bytes():
    with pytest.raises(ProblemError, match="malformed-update"):
        decoder(max_header_bytes=100).feed((101).to_bytes(8, "little"))


def test_what_announces_too_much_is_refused_before_its_body():
    header = render_header([("w", "F32", (1000,))], {})
    with pytest.raises(ProblemError, match="too-large"):
        decoder(max_num_bytes=len(header) + 3999).feed(header)
    with pytest.raises(ProblemError, match="too-large"):
        decoder(max_num_bytes=10).feed(b"\xff" * 11)


def test_the_header_may_not_be_asked_for_before_it_came():
    with pytest.raises(RuntimeError):
        _ = decoder().header


def test_a_boolean_byte_of_two_is_refused_by_name():
    data = render_header([("flag", "BOOL", (2,))], {}) + b"\1\2"
    with pytest.raises(ProblemError, match="'flag'"):
        list(decoder().feed(data))


BAD = {
    "F64": [np.nan, np.inf, -np.inf],
    "F32": [np.nan, np.inf, -np.inf],
    "F16": [np.nan, np.inf, -np.inf],
    "BF16": [0x7FC0, 0xFFFF, 0x7F80, 0xFF80],
}
CHUNK = 64


def measured(dtype, values, max_abs_delta=1024.0):
    header = render_header([("first", "F32", ()), ("w", dtype, (values.size,))], {})
    measure = DenseMeasure(parse_header(header[8:]), max_abs_delta)
    stream = decoder()
    body = header + bytes(4) + values.tobytes()
    for at in range(0, len(body), CHUNK):
        for piece in stream.feed(body[at : at + CHUNK]):
            measure(piece)
    stream.close()
    return measure.max_abs


@pytest.mark.parametrize("dtype", BAD)
@pytest.mark.parametrize("element", [0, 1, 7, 8, 15, 16, 31, 32, 99, 198, 199])
def test_what_is_not_finite_is_refused_wherever_it_stands(dtype, element):
    for bad in BAD[dtype]:
        values = np.zeros(200, dtype=CARRIERS[dtype])
        values[element] = bad
        with pytest.raises(ProblemError, match=rf"non-finite: tensor 'w' .* element {element};"):
            measured(dtype, values)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16"])
def test_the_bound_is_inclusive_and_names_tensor_value_and_bound(dtype):
    values = np.array([0.5, -8.0, 1.0], dtype=CARRIERS[dtype])
    assert measured(dtype, values, 8.0)["w"] == 8.0
    with pytest.raises(ProblemError, match=r"value-out-of-range: tensor 'w' .* 8\.0; at most 7\.5"):
        measured(dtype, values, 7.5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=50))
def test_the_largest_magnitude_is_exact(values):
    array = np.array(values, dtype=np.float32)
    assert measured("F32", array)["w"] == float(np.abs(array).max())


@pytest.mark.parametrize("value", [-0.0, 5e-324, -5e-324, 2.0**-1030])
def test_signed_zeros_and_subnormals_are_measured(value):
    assert measured("F64", np.array([value]))["w"] == abs(value)


def test_integers_are_bounded_by_what_float64_holds():
    assert measured("I64", np.array([-(2**53), 5]))["w"] == 2.0**53
    assert measured("U64", np.array([7], dtype=np.uint64))["w"] == 7
    for dtype, bad in (("I64", 2**53 + 1), ("I64", -(2**63)), ("U64", 2**64 - 1)):
        with pytest.raises(ProblemError, match="value-out-of-range: tensor 'w'"):
            measured(dtype, np.array([bad], dtype=CARRIERS[dtype]))


def test_every_floating_point_tensor_of_the_model_has_a_measure():
    header = parse_header(render_header([("a", "F32", (0,)), ("n", "I64", ()), ("f", "BOOL", (1,))], {})[8:])
    measure = DenseMeasure(header, 1.0)
    assert measure.max_abs == {"a": 0.0}
    measure(Piece(header.by_name["f"], 0, np.array([1], dtype=np.uint8)))
    measure(Piece(header.by_name["n"], 0, np.array([-3])))
    assert measure.max_abs == {"a": 0.0, "n": 3.0}
