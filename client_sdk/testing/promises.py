"""What the fake aggregator says of a private run's promise; it adds no noise of its own, so that tests can compare."""

from fl_protocol.privacy.accounting import epsilon_spent
from fl_protocol.privacy_claims import PrivacyClaim, promise_of
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import ExampleDpsgdPrivacy, LocalLaplacePrivacy, num_participations
from fl_protocol.specs.protection import NoPrivacy


def claim_for(spec: RunSpec, *, number: int, participations: int, abandoned: int) -> PrivacyClaim | None:
    """Gives the claim for one client's task in round `number`, None without privacy or with example_dpsgd."""
    privacy, promise = spec.privacy, promise_of(spec.privacy)
    if promise is None or isinstance(privacy, NoPrivacy | ExampleDpsgdPrivacy):
        return None
    unit, adjacency, trust = promise
    most = num_participations(spec)
    return PrivacyClaim(
        unit=unit,
        adjacency=adjacency,
        trust=trust,
        target_epsilon=privacy.target_epsilon,
        delta=None if isinstance(privacy, LocalLaplacePrivacy) else privacy.delta,
        epsilon_spent=epsilon_spent(spec, num_participations=min(number - 1, most), num_rounds=number - 1),
        epsilon_yours=epsilon_spent(spec, num_participations=participations + 1, num_rounds=number),
        noise_multiplier=privacy.noise_multiplier,
        num_participations=participations,
        max_participations=most,
        min_separation=spec.selection.min_separation,
        num_rounds=spec.num_rounds,
        num_abandoned=abandoned,
    )
