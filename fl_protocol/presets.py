"""Presets: five names for what a run may promise, each an expansion into fields of the RunSpec and nothing besides.

A server knows no presets: what a run is called, if it has a name, is derived from its specification.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, assert_never

from fl_protocol.promises import Figures, Promise, colluders_of, figures_of, sentences_of
from fl_protocol.specs.privacy import (
    CentralBltPrivacy,
    CentralGaussianAdaptivePrivacy,
    CentralGaussianPrivacy,
    DistributedSkellamPrivacy,
    ExampleDpsgdPrivacy,
    LocalGaussianPrivacy,
    LocalLaplacePrivacy,
    Privacy,
)
from fl_protocol.specs.protection import NoPrivacy, NoSecureAggregation
from fl_protocol.specs.secure_aggregation import (
    Choices,
    HelperSecureAggregation,
    IdentityTrust,
    PairwiseSecureAggregation,
    SecureAggregation,
    min_members,
)

DEFAULT_DELTA: Final = 1e-6
"""What is taken for delta where nothing else is said: a tenth of 1 in 100,000 clients."""

_UNIFORM: Final = {"kind": "mean", "weighting": "uniform"}


class Preset(StrEnum):
    """The presets, from the one that promises least.

    `open` protects nothing. `shielded` masks updates. `private` has the server add noise to masked sums, `strict` the
    clients, who know each other's keys. `local` has each client add all the noise to its own update.
    """

    OPEN = "open"
    SHIELDED = "shielded"
    PRIVATE = "private"
    STRICT = "strict"
    LOCAL = "local"


EXPANSIONS: Final[Mapping[Preset, Mapping[str, Mapping[str, Any]]]] = MappingProxyType(
    {
        Preset.OPEN: {"privacy": {"kind": "none"}, "secure_aggregation": {"kind": "none"}},
        Preset.SHIELDED: {"privacy": {"kind": "none"}, "secure_aggregation": {"kind": "pairwise"}},
        Preset.PRIVATE: {
            "privacy": {"kind": "central_gaussian", "delta": DEFAULT_DELTA},
            "secure_aggregation": {"kind": "pairwise"},
            "strategy": _UNIFORM,
        },
        Preset.STRICT: {
            "privacy": {"kind": "distributed_skellam", "delta": DEFAULT_DELTA},
            "secure_aggregation": {"kind": "pairwise", "identity_trust": "pinned"},
            "strategy": _UNIFORM,
        },
        Preset.LOCAL: {
            "privacy": {"kind": "local_laplace"},
            "secure_aggregation": {"kind": "none"},
            "strategy": _UNIFORM,
        },
    }
)
"""What a preset puts into a RunSpec where it says nothing; no epsilon of a budget, for no default would be honest."""

BUDGETED: Final = frozenset({Preset.PRIVATE, Preset.STRICT, Preset.LOCAL})
"""The presets that need `privacy.target_epsilon`."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the preset makes of a run: what the server takes, keeps and says of it. The sentences name the numbers."""

    preset: Preset
    takes_single_updates: bool
    has_ledger: bool
    identity_trust: IdentityTrust | None
    sentences: tuple[str, ...]


def preset_of(spec: Choices) -> Preset | None:
    """Gives the preset that a run is; None where it promises something else, as central noise without masks does."""
    match spec.secure_aggregation:
        case NoSecureAggregation():
            return _without_masks(spec.privacy)
        case PairwiseSecureAggregation(identity_trust=trust):
            return _with_masks(spec.privacy, trust)
        case HelperSecureAggregation():
            # The presets' sentences are about sessions; a run with helpers depends on those.
            return None
        case _:
            assert_never(spec.secure_aggregation)


def promise(spec: Choices) -> Promise:
    """Gives what a run promises, with its own numbers."""
    preset, masked = preset_of(spec), spec.secure_aggregation
    told = sentences_of(masked, spec.privacy, figures_of(spec))
    if isinstance(masked, NoSecureAggregation):
        return Promise(preset=preset, sentences=list(told))
    return Promise(
        preset=preset,
        sentences=list(told),
        min_members=min_members(spec),
        tolerated_colluders=None if isinstance(masked, HelperSecureAggregation) else colluders_of(spec).tolerated,
        identity_trust=masked.identity_trust,
    )


def matrix() -> tuple[Row, ...]:
    """Gives what each preset is, in their order."""
    return tuple(map(_row, Preset))


def _row(preset: Preset) -> Row:
    masked, privacy = _parts(preset)
    figures = Figures(
        budget="(epsilon)" if preset is Preset.LOCAL else "(epsilon, delta)",
        min_members="n_min",
        colluders="A",
        num_hidden="H",
        honest_share="1 - assumed_colluders",
    )
    return Row(
        preset=preset,
        takes_single_updates=isinstance(masked, NoSecureAggregation),
        has_ledger=preset in BUDGETED,
        identity_trust=None if isinstance(masked, NoSecureAggregation) else masked.identity_trust,
        sentences=sentences_of(masked, privacy, figures),
    )


def _parts(preset: Preset) -> tuple[SecureAggregation, Privacy]:
    """Gives a preset's own parts of a RunSpec, with some budget where it needs one."""
    expansion = EXPANSIONS[preset]
    privacy = dict(expansion["privacy"]) | ({"target_epsilon": 1.0} if preset in BUDGETED else {})
    kinds: dict[Preset, type[Any]] = {
        Preset.PRIVATE: CentralGaussianPrivacy,
        Preset.STRICT: DistributedSkellamPrivacy,
        Preset.LOCAL: LocalLaplacePrivacy,
    }
    masked = expansion["secure_aggregation"]
    masking = NoSecureAggregation if masked["kind"] == "none" else PairwiseSecureAggregation
    return masking.model_validate(masked), kinds.get(preset, NoPrivacy).model_validate(privacy)


def _without_masks(privacy: Privacy) -> Preset | None:
    match privacy:
        case NoPrivacy():
            return Preset.OPEN
        case LocalLaplacePrivacy() | LocalGaussianPrivacy():
            return Preset.LOCAL
        case _:
            return None


def _with_masks(privacy: Privacy, trust: IdentityTrust) -> Preset | None:
    match privacy:
        case NoPrivacy():
            return Preset.SHIELDED
        case CentralGaussianPrivacy() | CentralGaussianAdaptivePrivacy() | CentralBltPrivacy():
            return Preset.PRIVATE
        case DistributedSkellamPrivacy() if trust == "pinned":
            return Preset.STRICT
        case DistributedSkellamPrivacy() | LocalLaplacePrivacy() | LocalGaussianPrivacy() | ExampleDpsgdPrivacy():
            return None
        case _:
            assert_never(privacy)
