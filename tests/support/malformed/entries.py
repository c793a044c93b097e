"""Headers that describe tensors wrongly: types, shapes, offsets, and another structure than the model's."""

import json
from collections.abc import Iterator
from typing import Any

from tests.support.malformed.bodies import (
    MODEL,
    UPDATE,
    Case,
    Shapes,
    body_of,
    entries,
    fixed,
    framed,
    of_header,
    offsets,
    zeros,
)


def entries_of_tensors() -> Iterator[Case]:
    changes: dict[str, dict[str, Any]] = {
        "dtype-f8": {"dtype": "F8_E4M3"},
        "dtype-f128": {"dtype": "F128"},
        "dtype-complex": {"dtype": "C64"},
        "dtype-lower-case": {"dtype": "f32"},
        "dtype-with-space": {"dtype": "F32 "},
        "dtype-empty": {"dtype": ""},
        "dtype-number": {"dtype": 5},
        "dtype-null": {"dtype": None},
        "dtype-list": {"dtype": ["F32"]},
        "dtype-object": {"dtype": {"F32": 1}},
        "dtype-10-kilobytes": {"dtype": "F" * 10_000},
        "shape-string": {"shape": "5,7"},
        "shape-null": {"shape": None},
        "shape-number": {"shape": 35},
        "shape-object": {"shape": {"0": 5}},
        "shape-nested": {"shape": [[5, 7]]},
        "shape-of-strings": {"shape": ["5", "7"]},
        "shape-of-booleans": {"shape": [True, 35]},
        "shape-negative": {"shape": [-5, -7]},
        "shape-minus-one": {"shape": [5, -1]},
        "shape-float": {"shape": [5.0, 7.0]},
        "shape-of-nulls": {"shape": [None, 7]},
        "rank-9": {"shape": [5, 7, 1, 1, 1, 1, 1, 1, 1]},
        "rank-20000": {"shape": [1] * 20_000},
        "shape-2^31": {"shape": [1 << 31]},
        "shape-2^32": {"shape": [1 << 32]},
        "shape-2^63": {"shape": [1 << 63]},
        "shape-2^64": {"shape": [1 << 64]},
        "shape-0-by-2^62": {"shape": [0, 1 << 62]},
        "shape-product-wraps-to-0": {"shape": [1 << 32, 1 << 32]},
        "shape-product-wraps-to-35": {"shape": [(1 << 40), (1 << 24), 35]},
        "shape-product-2^320": {"shape": [1 << 40] * 8},
        "offsets-none": {"data_offsets": []},
        "offsets-one": {"data_offsets": [140]},
        "offsets-three": {"data_offsets": [0, 70, 140]},
        "offsets-null": {"data_offsets": None},
        "offsets-string": {"data_offsets": "0-140"},
        "offsets-of-strings": {"data_offsets": ["0", "140"]},
        "offsets-of-floats": {"data_offsets": [0.0, 140.0]},
        "offsets-of-booleans": {"data_offsets": [False, 140]},
        "offsets-reversed": {"data_offsets": [140, 0]},
        "offsets-negative": {"data_offsets": [-140, 0]},
        "offsets-too-short": {"data_offsets": [0, 136]},
        "offsets-too-long": {"data_offsets": [0, 144]},
        "offsets-odd": {"data_offsets": [1, 141]},
        "offsets-empty-span": {"data_offsets": [0, 0]},
        "offsets-2^63": {"data_offsets": [(1 << 63) - 140, 1 << 63]},
        "offsets-2^64": {"data_offsets": [(1 << 64) - 1, (1 << 64) + 139]},
        "offsets-beyond-the-body": {"data_offsets": [1 << 30, (1 << 30) + 140]},
        "further-key": {"stride": [7, 1]},
    }
    for name, change in changes.items():
        header = {"__metadata__": {"num_examples": "1"}, **entries(UPDATE)}
        header["wide"] = header["wide"] | change
        yield of_header(f"entry-{name}", header)
    for missing in ("dtype", "shape", "data_offsets"):
        header = {"__metadata__": {"num_examples": "1"}, **entries(UPDATE)}
        header["wide"] = {key: value for key, value in header["wide"].items() if key != missing}
        yield of_header(f"entry-without-{missing}", header, "'wide'")
    for name, entry in {
        "list": ["F32", [5, 7], [0, 140]],
        "null": None,
        "string": "F32",
        "number": 7,
        "true": True,
    }.items():
        yield of_header(f"entry-is-{name}", {"__metadata__": {"num_examples": "1"}, **entries(UPDATE), "wide": entry})
    million = json.dumps({"wide": {"dtype": "F32", "shape": [1] * 10**6, "data_offsets": [0, 4]}}).encode()
    yield Case("entry-rank-1000000", "too-large", fixed(framed(million, b"\0" * 4)), as_model="malformed-update")
    names = {
        "empty": "",
        "nul": "wi\0de",
        "newline": "wide\r\nSet-Cookie: a=b",
        "escape": "\x1b[31mwide",
        "right-to-left": "wi\u202ede",
        "lone-surrogate": "wide\ud800",
        "513-characters": "w" * 513,
        "50000-characters": "w" * 50_000,
    }
    for label, tensor_name in names.items():
        header = {"__metadata__": {"num_examples": "1"}, **entries({**UPDATE, tensor_name: ("F32", ())})}
        yield of_header(f"tensor-name-{label}", header, data=bytes(zeros(UPDATE)) + b"\0" * 4)


def layouts() -> Iterator[Case]:
    laid_out = offsets(UPDATE)

    def moved(**places: tuple[int, int]) -> dict[str, Any]:
        header = {"__metadata__": {"num_examples": "1"}, **entries(UPDATE)}
        for tensor, place in places.items():
            header[tensor] = header[tensor] | {"data_offsets": list(place)}
        return header

    after = max(end for _, end in laid_out.values())
    yield of_header("layout-the-same-bytes-twice", moved(scale=(0, 4)), "overlaps")
    yield of_header("layout-overlap-by-one-byte", moved(narrow=(139, 151)), "'narrow'", "overlaps")
    yield of_header("layout-inside-another", moved(double=(8, 40)), "overlaps")
    yield of_header("layout-hole-at-the-beginning", moved(wide=(after, after + 140)), "hole")
    yield of_header("layout-hole-of-one-byte", moved(narrow=(141, 153)), "'narrow'", "hole")
    yield of_header(
        "layout-hole-in-the-middle", moved(counter=(after + 8, after + 32)), data=bytes(zeros(UPDATE)) + b"\0" * 40
    )
    yield of_header("layout-empty-tensor-outside", moved(empty=(after + 100, after + 100)), "'empty'")
    yield of_header("layout-empty-tensor-inside", moved(empty=(70, 70)))


def structures() -> Iterator[Case]:
    def differing(name: str, shapes: Shapes, *named: str) -> Case:
        return Case(f"structure-{name}", "structure-mismatch", lambda: body_of(shapes), named, as_model="")

    for name, (dtype, _) in UPDATE.items():
        if dtype != "I64":
            shapes = {other: tensor for other, tensor in UPDATE.items() if other != name}
            yield differing(f"without-{name}", shapes, f"'{name}'", "missing")
    yield differing("with-another", {**UPDATE, "extra": ("F32", (2,))}, "'extra'")
    yield differing("with-an-empty-other", {**UPDATE, "extra": ("F32", (0,))}, "'extra'")
    yield differing("with-a-path", {**UPDATE, "../../etc/passwd": ("F32", ())}, "'../../etc/passwd'")
    yield differing("with-a-template", {**UPDATE, "{0.__class__}%s": ("F32", ())}, "'{0.__class__}%s'")
    yield differing("with-bool", MODEL, "'mask'", "BOOL")
    yield differing("nothing-but-metadata", {}, "missing")
    renamed = {("Wide" if name == "wide" else name): tensor for name, tensor in UPDATE.items()}
    yield differing("renamed", renamed, "'Wide'")
    types = {
        "wide": ("I64", (5, 7)),
        "narrow": ("BF16", (6,)),
        "brain": ("F16", (3, 2)),
        "double": ("I64", (4,)),
        "scale": ("F64", ()),
        "counter": ("F64", (3,)),
        "empty": ("F64", (0, 3)),
    }
    for name, tensor in types.items():
        yield differing(f"type-of-{name}", {**UPDATE, name: tensor}, f"'{name}'", UPDATE[name][0])
    shapes_of = {
        "transposed": ("wide", (7, 5)),
        "flattened": ("wide", (35,)),
        "with-one-more-axis": ("wide", (5, 7, 1)),
        "with-one-row-more": ("wide", (6, 7)),
        "without-elements": ("wide", (0, 7)),
        "of-a-scalar": ("scale", (1,)),
        "of-nothing-turned": ("empty", (3, 0)),
        "of-nothing-filled": ("empty", (1, 3)),
        "of-a-counter": ("counter", (1, 3)),
    }
    for label, (name, shape) in shapes_of.items():
        yield differing(f"shape-{label}", {**UPDATE, name: (UPDATE[name][0], shape)}, f"'{name}'")
    # Half a terabyte is announced, and nothing of it is sent.
    huge = {**UPDATE, "wide": ("F32", (1 << 17, 1 << 20))}
    header = json.dumps({"__metadata__": {"num_examples": "1"}, **entries(huge)}).encode()
    yield Case("structure-half-a-terabyte", "structure-mismatch", fixed(framed(header)), ("'wide'",), as_model="")
    yield Case("structure-no-key-at-all", "structure-mismatch", fixed(framed(b"{}")))
