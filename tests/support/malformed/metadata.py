"""Updates that say something wrong of themselves: the number of examples, metrics, and what is no metadata."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.malformed.bodies import (
    UPDATE,
    Case,
    body_of,
    entries,
    of_header,
)


def _of_metadata(name: str, metadata: Mapping[str, Any], *named: str, slug: str = "invalid-metadata") -> Case:
    return Case(
        name,
        slug,
        lambda: body_of(UPDATE, metadata=metadata),
        named,
        as_model="" if slug == "invalid-metadata" else None,
    )


def num_examples() -> Iterator[Case]:
    texts = {
        "empty": "",
        "0": "0",
        "000": "000",
        "minus-1": "-1",
        "minus-0": "-0",
        "1e18": "1" + "0" * 18,
        "exponent": "1e3",
        "2^53": str(2**53),
        "2^63": str(2**63),
        "2^64+1": str(2**64 + 1),
        "5000-digits": "9" * 5000,
        "17-zeros-and-5": "0" * 17 + "5",
        "space-after": "5 ",
        "space-before": " 5",
        "newline-after": "5\n",
        "plus": "+5",
        "arabic": "\u0665",
        "full-width": "\uff15",
        "superscript": "²",
        "float": "5.0",
        "hexadecimal": "0x10",
        "underscore": "1_000",
        "comma": "1,000",
        "nan": "NaN",
        "infinity": "Infinity",
        "true": "true",
        "null": "null",
        "list": "[5]",
        "quoted": '"5"',
    }
    for name, text in texts.items():
        yield _of_metadata(f"num-examples-{name}", {"num_examples": text}, "num_examples")
    yield _of_metadata("num-examples-missing", {}, "num_examples")
    yield _of_metadata("num-examples-other-case", {"Num_Examples": "5"}, "num_examples")
    for name, value in {
        "true": True,
        "number": 5,
        "float": 5.5,
        "null": None,
        "list": [5],
        "object": {"value": 5},
    }.items():
        yield _of_metadata(f"num-examples-json-{name}", {"num_examples": value}, slug="malformed-update")


def metrics() -> Iterator[Case]:
    texts = {
        "empty": "",
        "not-json": "loss=1",
        "nan": '{"loss": NaN}',
        "infinity": '{"loss": Infinity}',
        "minus-infinity": '{"loss": -Infinity}',
        "1e999": '{"loss": 1e999}',
        "1e301": '{"loss": 1e301}',
        "400-digits": f'{{"loss": {"9" * 400}}}',
        "5000-digits": f'{{"loss": {"9" * 5000}}}',
        "string": '{"loss": "0.5"}',
        "true": '{"loss": true}',
        "null-value": '{"loss": null}',
        "list-value": '{"loss": [1]}',
        "nested": '{"loss": {"train": 1}}',
        "deep": f'{{"loss": {"[" * 5000}{"]" * 5000}}}',
        "array": "[1, 2]",
        "number": "5",
        "null": "null",
        "65-names": json.dumps({f"m{index}": 1 for index in range(65)}),
        "duplicate": '{"loss": 1, "loss": 2}',
        "empty-name": '{"": 1}',
        "name-with-space": '{"my loss": 1}',
        "name-with-nul": '{"lo\\u0000ss": 1}',
        "name-with-newline": '{"loss\\n": 1}',
        "name-with-markup": '{"<script>": 1}',
        "name-of-65": json.dumps({"m" * 65: 1}),
        "name-not-ascii": '{"потеря": 1}',
        "trailing": '{"loss": 1} x',
    }
    for name, text in texts.items():
        yield _of_metadata(f"metrics-{name}", {"num_examples": "1", "metrics": text}, "metrics")


def metadata_of_other_kinds() -> Iterator[Case]:
    others: dict[str, Any] = {"list": [], "null": None, "string": "num_examples", "number": 1, "true": True}
    for name, value in others.items():
        header = {"__metadata__": value, **entries(UPDATE)}
        yield of_header(f"metadata-is-{name}", header, "__metadata__")
    values: dict[str, dict[str, Any]] = {
        "number": {"a": 1},
        "null": {"a": None},
        "object": {"metrics": {"loss": 1}},
        "nul": {"a": "\0"},
        "lone-surrogate": {"a": "\udfff"},
        "name-with-nul": {"a\0": ""},
        "name-empty": {"": ""},
        "1025-names": {f"k{index}": "" for index in range(1025)},
    }
    for name, further in values.items():
        yield _of_metadata(f"metadata-{name}", {"num_examples": "1"} | further, slug="malformed-update")
