"""Which clients are asked in a round."""

import math
from typing import Annotated, Final, Literal

from pydantic import Discriminator, Field, Tag

from fl_protocol.attributes import AttributeName, AttributeValue
from fl_protocol.messages import MAX_EXACT_INTEGER, RequestMessage, kind_or
from fl_protocol.specs.algorithms import Algorithm, FedNovaAlgorithm
from fl_protocol.specs.rounds import MAX_COHORT_SIZE, AnyRoundSpec
from fl_protocol.specs.strategies import MeanStrategy, Strategy

MIN_SEEN_WITHIN_SECONDS: Final = 10
"""A held request looks again every 10 s, so a client that waits may not have been seen for as long."""

Eligibility = Annotated[
    dict[AttributeName, Annotated[list[AttributeValue], Field(min_length=1, max_length=256)]], Field(max_length=16)
]
"""For each attribute named, the values that a client may have of it; a client must pass all of them."""

SeenWithin = Annotated[float, Field(ge=MIN_SEEN_WITHIN_SECONDS, le=7 * 86400)]
Seed = Annotated[int, Field(ge=0, le=MAX_EXACT_INTEGER)]


class _Selection(RequestMessage):
    """Who may be asked at all, whatever the kind of selection."""

    eligibility: Eligibility = Field(default_factory=dict)
    min_separation: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    max_participations: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class OpenSelection(_Selection):
    """Every client that asks is given a task until the cohort is full."""

    kind: Literal["open"] = "open"


class UniformSelection(_Selection):
    """A draw of `cohort_size` clients without replacement, among those that have asked for a task lately."""

    kind: Literal["uniform"] = "uniform"
    seen_within_seconds: SeenWithin = 120
    seed: Seed | None = None


class PoissonSelection(_Selection):
    """Each client by a secret coin of its own; the round waits for everyone whose coin came up, or for its deadline.

    With a `population` the sum of the updates is divided by probability x population, a fixed public denominator, and
    who does not answer counts as zero; without it the mean is that of those who answered.
    """

    kind: Literal["poisson"] = "poisson"
    probability: Annotated[float, Field(gt=0, le=1)]
    population: Annotated[int, Field(ge=1, le=MAX_EXACT_INTEGER)] | None = None


class StratifiedSelection(_Selection):
    """A draw within each stratum of a client attribute, each with its share of the cohort's places."""

    kind: Literal["stratified"] = "stratified"
    attribute: AttributeName
    allocation: Literal["proportional", "equal"] = "proportional"
    seen_within_seconds: SeenWithin = 120
    seed: Seed | None = None


DrawnSelection = UniformSelection | StratifiedSelection
"""The kinds that draw `cohort_size` clients when enough of them are there."""

SelectionSpec = Annotated[
    Annotated[OpenSelection, Tag("open")]
    | Annotated[UniformSelection, Tag("uniform")]
    | Annotated[PoissonSelection, Tag("poisson")]
    | Annotated[StratifiedSelection, Tag("stratified")],
    Discriminator(kind_or("open")),
]


def check_selection(
    selection: SelectionSpec, round_: AnyRoundSpec, *, strategy: Strategy, algorithm: Algorithm
) -> None:
    """Raises ValueError for coins that choose too few or too many of a known population, or without a denominator."""
    if not isinstance(selection, PoissonSelection) or selection.population is None:
        return
    fixed = "the fixed denominator that selection.population gives divides a plain sum of updates; "
    if not isinstance(strategy, MeanStrategy) or strategy.weighting != "uniform":
        raise ValueError(f"{fixed}it needs strategy.kind 'mean' with strategy.weighting 'uniform'")
    if isinstance(algorithm, FedNovaAlgorithm):
        raise ValueError(f"{fixed}algorithm.kind 'fednova' has a denominator of its own; leave the population out")
    probability, population = selection.probability, selection.population
    expected = probability * population
    chosen = f"selection.probability {probability:g} of selection.population {population} chooses {expected:g} clients"
    if expected < round_.min_updates:
        raise ValueError(f"{chosen} a round on average; round.min_updates {round_.min_updates} needs at least as many")
    likely_most = expected + 6 * math.sqrt(expected * (1 - probability))
    if likely_most > MAX_COHORT_SIZE:
        raise ValueError(
            f"{chosen} a round on average and up to {likely_most:.0f} (six standard deviations more); "
            f"at most {MAX_COHORT_SIZE} may take part"
        )


def most_updates(selection: SelectionSpec, round_: AnyRoundSpec) -> int:
    """Gives the most updates with which a round may close: its quorum, unless everyone chosen by a coin is awaited."""
    return MAX_COHORT_SIZE if isinstance(selection, PoissonSelection) else round_.quorum


def fixed_denominator(selection: SelectionSpec) -> float | None:
    """Gives what a sum of updates is divided by whoever has answered; None where that is how many have."""
    if not isinstance(selection, PoissonSelection) or selection.population is None:
        return None
    return selection.probability * selection.population
