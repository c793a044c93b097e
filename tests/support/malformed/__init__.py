"""A corpus of malformed updates of one small model (and of one of 5 MiB), each with the problem that answers it."""

from tests.support.malformed.bodies import (
    BIG_MODEL,
    MODEL,
    UPDATE,
    Case,
    Shapes,
    body_of,
    compressed,
    good_body,
    model_body,
)
from tests.support.malformed.entries import entries_of_tensors, layouts, structures
from tests.support.malformed.headers import header_lengths, not_json, truncated
from tests.support.malformed.metadata import metadata_of_other_kinds, metrics, num_examples
from tests.support.malformed.streams import digests, media_types, too_large, zstd_streams
from tests.support.malformed.values import not_finite, not_finite_at_edges, out_of_range

__all__ = [
    "BIG_MODEL",
    "MODEL",
    "UPDATE",
    "Case",
    "Shapes",
    "body_of",
    "compressed",
    "corpus",
    "good_body",
    "model_body",
]


def corpus() -> list[Case]:
    """Gives every case; their names differ."""
    families = (
        truncated,
        header_lengths,
        not_json,
        entries_of_tensors,
        layouts,
        structures,
        not_finite,
        not_finite_at_edges,
        out_of_range,
        num_examples,
        metrics,
        metadata_of_other_kinds,
        digests,
        media_types,
        too_large,
        zstd_streams,
    )
    return [case for family in families for case in family()]
