"""Headers from outside: what the safetensors library writes is read; everything doubtful is refused by name."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from fl_protocol.arrays import RawTensor, decode, encode, encoded_size
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.tensors import MAX_INTEGER, header_length, header_limit, parse_header, render_header

GOOD = {
    "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "n": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
}


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def raw(document):
    return json.dumps(document).encode()


def refusal(header):
    with pytest.raises(ProblemError) as caught:
        parse_header(header)
    assert caught.value.problem_type is ProblemType.MALFORMED_UPDATE
    return caught.value.detail


def read_or_refused(header):
    """Gives the header, or None where it was refused in the one way that is allowed."""
    try:
        return parse_header(header)
    except ProblemError as error:
        if error.problem_type is not ProblemType.MALFORMED_UPDATE:
            raise
        return None


def test_a_good_header_is_read_in_offset_order():
    header = parse_header(raw({"__metadata__": {"format": "pt"}, "n": GOOD["n"], "w": GOOD["w"]}) + b"   ")
    assert [spec.name for spec in header.tensors] == ["w", "n"]
    assert header.metadata == {"format": "pt"}
    assert header.num_bytes == header.data_start + 32
    assert header.num_parameters == 7
    assert header.by_name["n"].shape == ()
    assert header.by_name["w"].is_float
    assert not header.by_name["n"].is_float


# What the safetensors library accepts or refuses, and what it is silent about.
HOSTILE = {
    "duplicate tensor": b'{"w":' + raw(tensor()) + b',"w":' + raw(tensor()) + b"}",
    "duplicate key": b'{"w":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}',
    "shape of 2^62": raw({"w": tensor(shape=(0, 2**62), offsets=(0, 0))}),
    "name with NUL": raw({"w\0": tensor()}),
    "empty name": raw({"": tensor()}),
    "long name": raw({"w" * 513: tensor()}),
    "a million dimensions": raw({"w": tensor(shape=[1] * 100_000)}),
    "nine dimensions": raw({"w": tensor(shape=[1] * 9)}),
    "metadata not strings": raw({"__metadata__": {"a": 1}, "w": tensor()}),
    "metadata a list": raw({"__metadata__": [], "w": tensor()}),
    "metadata with NUL": raw({"__metadata__": {"a": "\0"}, "w": tensor()}),
    "metadata with a surrogate": b'{"__metadata__":{"a":"\\ud800"},"w":' + raw(tensor()) + b"}",
    "too much metadata": raw({"__metadata__": {str(i): "" for i in range(2000)}, "w": tensor()}),
    "F8": raw({"w": tensor(dtype="F8_E4M3", shape=(4,))}),
    "unhashable dtype": raw({"w": tensor() | {"dtype": ["F32"]}}),
    "overflow": raw({"w": tensor(shape=(2**40, 2**40), offsets=(0, 2**40))}),
    "overlap": raw({"a": tensor(), "b": tensor()}),
    "hole": raw({"a": tensor(), "b": tensor(offsets=(8, 12))}),
    "starts late": raw({"a": tensor(offsets=(4, 8))}),
    "offsets reversed": raw({"a": tensor(offsets=(4, 0))}),
    "three offsets": raw({"a": tensor(offsets=(0, 4, 4))}),
    "wrong size": raw({"a": tensor(offsets=(0, 8))}),
    "extra key": raw({"a": tensor() | {"extra": 1}}),
    "missing key": raw({"a": {"dtype": "F32", "shape": [1]}}),
    "deep": b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "NaN": b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}',
    "Infinity": b'{"w":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}',
    "1e999": b'{"w":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
    "float shape": raw({"w": tensor(shape=(1.0,))}),
    "boolean shape": raw({"w": tensor(shape=(True,))}),
    "negative shape": raw({"w": tensor(shape=(-1, -1))}),
    "huge integer": b'{"w":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,4]}}',
    "above 2^40": raw({"w": tensor(shape=(MAX_INTEGER + 1, 0), offsets=(0, 0))}),
    "a list": b"[]",
    "a string": b'"w"',
    "leading space": b" {}",
    "leading byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "not UTF-8": b'{"\xff":1}',
    "trailing zero": b"{}\0",
    "trailing newline": b"{}\n",
    "two objects": b"{}{}",
    "truncated": b'{"w":',
    "empty": b"",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused(case):
    refusal(HOSTILE[case])


@pytest.mark.parametrize("bound", [31, 32, 40, 53, 63, 64])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_sizes_around_powers_of_two_do_not_overflow(bound, off):
    number = 2**bound + off
    for document in (
        tensor("U8", (number,), (0, number)),
        tensor("F64", (number, 8), (0, 64)),
        tensor(offsets=(number, number + 4)),
    ):
        header = read_or_refused(raw({"w": document}))
        assert header is None or header.num_bytes - header.data_start == number <= MAX_INTEGER


@pytest.mark.parametrize("length", [0, 1, 2**20 + 1, 10**8, 2**32, 2**63, 2**64 - 1])
def test_a_header_length_out_of_bounds_is_refused(length):
    with pytest.raises(ProblemError, match="between 2 and 1048576"):
        header_length(length.to_bytes(8, "little"))


def test_the_header_limit_grows_with_the_tensors_up_to_a_mebibyte():
    assert header_limit(0) == 65_536
    assert header_limit(4) == 66_560
    assert header_limit(10**9) == 1 << 20


def test_the_refusal_names_the_tensor():
    assert "'layer.0'" in refusal(raw({"layer.0": tensor(offsets=(0, 8))}))


def test_mutated_headers_never_fail_otherwise():
    source = random.Random(7)
    good = raw({"__metadata__": {"num_examples": "5"}} | GOOD)
    accepted = 0
    for _ in range(3000):
        mutant = bytearray(good)
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(mutant))
            action = source.random()
            if action < 0.5:
                mutant[at] = source.choice(b'0123456789{}[]",:-eNI\\ \x00\xff')
            elif action < 0.75:
                del mutant[at]
            else:
                mutant[at:at] = mutant[source.randrange(len(mutant)) :][: source.randint(1, 20)]
        header = read_or_refused(bytes(mutant))
        if header is not None:
            accepted += 1
            assert sum(spec.num_bytes for spec in header.tensors) == header.num_bytes - header.data_start
    assert accepted < 3000


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "w", "__metadata__"]), inner, max_size=4
            )
        ),
    )
)
def test_any_json_is_read_or_refused(document):
    read_or_refused(raw({"w": document}))


ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([1.5, -2], dtype=np.float16),
    "double": np.linspace(0, 1, 5),
    "nothing": np.zeros((0, 7), dtype=np.float32),
    "scalar": np.array(3, dtype=np.int64),
    "flags": np.array([True, False, True]),
    "names é": np.arange(4, dtype=np.uint16),
    "transposed": np.arange(6, dtype=np.int8).reshape(2, 3).T,
    "big-endian": np.arange(3, dtype=">f4"),
}


def test_the_library_reads_what_is_written_here():
    blob = b"".join(encode(ARRAYS, {"num_examples": "5"}))
    assert len(blob) == encoded_size(ARRAYS, {"num_examples": "5"})
    read = load(blob)
    assert list(decode(blob)) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
        np.testing.assert_array_equal(decode(blob)[name], array)


def test_what_the_library_writes_is_read_here():
    arrays = {name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")) for name, array in ARRAYS.items()}
    read = decode(save(arrays, {"format": "np"}))
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_bfloat16_travels_as_its_bits():
    bits = np.array([[0x3F80, 0xC000]], dtype=np.uint16)
    read = decode(b"".join(encode({"w": RawTensor("BF16", bits)}, {})))["w"]
    assert isinstance(read, RawTensor)
    assert read.shape == (1, 2)
    np.testing.assert_array_equal(read.data, bits)


def test_pieces_are_a_mebibyte_at_most_and_the_header_is_aligned():
    arrays = {"a": np.ones(3, dtype=np.int8), "b": np.ones(700_000, dtype=np.float32)}
    pieces = list(encode(arrays, {}))
    assert [len(piece) for piece in pieces[:-1]] == [1 << 20] * (len(pieces) - 1)
    assert int.from_bytes(pieces[0][:8], "little") % 8 == 0
    np.testing.assert_array_equal(load(b"".join(pieces))["b"], arrays["b"])


def test_a_piece_within_one_tensor_is_a_view_of_it_wherever_the_bytes_begin():
    values = np.arange(900_000, dtype=np.float32)
    arrays = {"a": np.ones(3, dtype=np.int8), "b": values}
    whole = b"".join(encode(arrays, {}))
    views = [piece for piece in encode(arrays, {}) if isinstance(piece, memoryview)]
    assert len(views) == 2
    assert all(np.shares_memory(np.frombuffer(view, dtype=np.uint8), values) for view in views)
    for begin in (0, 7, 100, 1 << 20, len(whole) - 1, len(whole)):
        assert b"".join(encode(arrays, {}, begin=begin)) == whole[begin:]


def test_a_header_longer_than_a_piece_is_cut_like_anything_else():
    arrays = {"a": np.ones(300_000, dtype=np.float32)}
    pieces = list(encode(arrays, {"note": "x" * (1 << 20)}))
    assert [len(piece) for piece in pieces[:-1]] == [1 << 20] * 2
    assert b"".join(pieces).endswith(arrays["a"].tobytes())


def test_types_that_cannot_travel_are_refused_before_a_byte_is_written():
    with pytest.raises(ValueError, match="complex128"):
        encoded_size({"c": np.array([1j])}, {})
    with pytest.raises(ValueError, match="twice or is reserved"):
        render_header([("a", "F32", ()), ("a", "F32", ())], {})
    with pytest.raises(ValueError, match="reserved"):
        render_header([("__metadata__", "F32", ())], {"a": "b"})


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:5], lambda b: b[:12], lambda b: b""]
)
def test_a_file_of_another_length_than_announced_is_refused(damage):
    blob = b"".join(encode({"w": np.ones(3, dtype=np.float32)}, {}))
    with pytest.raises(ProblemError):
        decode(damage(blob))


def test_a_boolean_byte_of_two_is_refused():
    blob = bytearray(b"".join(encode({"flag": np.array([True])}, {})))
    blob[-1] = 2
    with pytest.raises(ProblemError, match="'flag'"):
        decode(bytes(blob))
