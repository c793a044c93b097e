"""Looks at whole updates before they are combined: how long each one is, and how they lie to each other."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aggregator_service.domain.encoded_runs import present
from aggregator_service.domain.inner_products import InnerProducts, centre_of
from aggregator_service.domain.update_norm import UpdateNorm, clip_factor
from aggregator_service.flow.begun_sums import BegunSum
from aggregator_service.flow.contributions import Contribution, SealedUpdate, blocks, open_contributions, row_type
from aggregator_service.flow.windows import windows
from fl_protocol.dtypes import Float64Array
from fl_protocol.specs.encodings import Encoding
from fl_protocol.specs.strategies import Strategy
from fl_protocol.tensors import Header


def open_clipped(
    updates: Sequence[SealedUpdate],
    model: Header,
    *,
    holds: Header,
    encoding: Encoding,
    strategy: Strategy,
    bound: float | None,
    begun: BegunSum | None = None,
) -> list[Contribution]:
    """Opens the updates and clips each to `bound`, or to the strategy's norm where there is none and that clips.

    They come in the order of their digests; `holds` is what each of them has, and `encoding` how. With `bound` one
    whose norm is not a number, or 0, is left out. What is known of the members of a `begun` sum is not read again.
    """
    known = {} if begun is None else begun.members
    opened = open_contributions(
        [one for one in updates if one.update_id not in known], model, holds=holds, encoding=encoding
    )
    if bound is None:
        contributions = _clipped(opened, model, strategy=strategy)
    else:
        contributions = _clipped_or_zero(opened, model, bound=bound)
    if begun is None:
        return contributions
    members = [begun.contribution(one) for one in updates if one.update_id in known]
    contributions += [one for one in members if one is not None]
    return sorted(contributions, key=lambda one: one.update.digest)


def _clipped(contributions: list[Contribution], model: Header, *, strategy: Strategy) -> list[Contribution]:
    """Gives the contributions with the factors that bring each of them down to the strategy's norm, if it clips."""
    bound = strategy.max_update_norm
    if bound is None or bound.kind != "clip":
        return contributions
    return [replace(one, factor=clip_factor(_norm(one, model), bound.norm)) for one in contributions]


def _clipped_or_zero(contributions: Sequence[Contribution], model: Header, *, bound: float) -> list[Contribution]:
    """Gives the contributions that add anything to a sum, with the factors that bring each of them down to a norm.

    One whose norm is not a number counts as zero: to refuse it, or to leave it out of the count of updates, would tell.
    """
    norms = [(one, _norm_or_infinity(one, model)) for one in contributions]
    return [replace(one, factor=clip_factor(norm, bound)) for one, norm in norms if 0 < norm < math.inf]


def _norm_or_infinity(contribution: Contribution, model: Header) -> float:
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return _norm(contribution, model)
    except OverflowError:
        return math.inf


def _norm(contribution: Contribution, model: Header) -> float:
    norm = UpdateNorm()
    for window in windows(model):
        floats = [segment for segment in window if segment.spec.is_float]
        for segment, run in contribution.runs(floats):
            values, dtype = present(run)
            norm.add(segment.spec.name, values, dtype=dtype)
    return norm.result()


def inner_products(contributions: Sequence[Contribution], model: Header, *, moving: Header) -> Float64Array:
    """Gives the matrix of the contributions' inner products around one of them, over the floats that travel."""
    names = {spec.name for spec in moving.tensors if spec.is_float}
    largest = [max((one.magnitude(name) for name in names), default=0.0) for one in contributions]
    products = InnerProducts(len(contributions), centre=centre_of(largest), dtype=row_type(contributions, model))
    for window, block in blocks(contributions, model):
        for segment in window:
            if segment.spec.name not in names:
                continue
            if segment.first == 0:
                magnitudes = [one.magnitude(segment.spec.name) for one in contributions]
                products.begin_tensor(magnitudes, segment.spec.num_elements)
            products.add(block.floats[:, segment.offset : segment.offset + segment.num_elements])
    return products.result()
