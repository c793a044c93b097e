"""The tables of `fedquorum privacy plan`: the noise for some budgets, and what noise in each message needs."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import itertools
from typing import Final

import typer

from client_sdk.cli.output import print_json, print_table
from client_sdk.cli.specification import read_spec
from client_sdk.errors import UsageError

DEFAULT_DELTA: Final = 1e-6
_EPSILONS: Final = (1.0, 2.0, 4.0, 8.0)
_PARTICIPATIONS: Final = (1, 5, 10)


def print_calibrations(delta: float | None, *, is_shared: bool, as_json: bool) -> None:
    """Prints the noise multiplier that keeps a budget, for some budgets and participations of a client.

    That of the server's Gaussian noise, or of Skellam noise that the clients share.
    """
    delta = DEFAULT_DELTA if delta is None else delta
    found = {
        (epsilon, count): _multiplier(epsilon, delta, num_participations=count, is_shared=is_shared)
        for epsilon, count in itertools.product(_EPSILONS, _PARTICIPATIONS)
    }
    if as_json:
        rows = [
            {"epsilon": epsilon, "participations": count, "noise_multiplier": multiplier}
            for (epsilon, count), multiplier in found.items()
        ]
        print_json({"delta": delta, "rows": rows})
        return
    whose = "multiplier of noise that the clients share," if is_shared else "noise multiplier"
    typer.echo(f"The {whose} that keeps epsilon at delta {delta:g}, by how often a client takes part:")
    print_table(
        ("epsilon", *(f"{count} of its updates" if count > 1 else "one update" for count in _PARTICIPATIONS)),
        ([f"{epsilon:g}", *(f"{found[epsilon, count]:.5f}" for count in _PARTICIPATIONS)] for epsilon in _EPSILONS),
    )


def print_local_noise(delta: float | None, *, as_json: bool) -> None:
    """Prints how many clients' mean makes noise in each message as long as one clipped update, by parameters."""
    from fl_protocol.privacy.utility import LOCAL_SIZES, local_noise

    delta = _checked(delta)
    rows = local_noise(delta=delta)
    if as_json:
        told = [
            {"epsilon": row.epsilon, "noise_over_clipping_norm": row.noise_stddev, "clients": row.clients}
            for row in rows
        ]
        print_json({"delta": delta, "rows": told})
        return
    typer.echo(
        f"Gaussian noise in each message at delta {delta:g}: its deviation in each coordinate over the clipping norm,\n"
        "and how many clients' mean it takes until it is no longer than one clipped update, by parameters:"
    )
    print_table(
        ("epsilon", "noise", *(f"{size:,}" for size in LOCAL_SIZES)),
        (
            [f"{row.epsilon:g}", f"{row.noise_stddev:.3f}", *(f"{row.clients[size]:,}" for size in LOCAL_SIZES)]
            for row in rows
        ),
    )


def _multiplier(epsilon: float, delta: float, *, num_participations: int, is_shared: bool) -> float | None:
    from fl_protocol.privacy.accounting import calibrated

    plan = {
        ("num_rounds",): num_participations,
        ("strategy", "kind"): "mean",
        ("strategy", "weighting"): "uniform",
        ("privacy", "kind"): "distributed_skellam" if is_shared else "central_gaussian",
        ("secure_aggregation", "kind"): "pairwise" if is_shared else "none",
        ("privacy", "target_epsilon"): epsilon,
        ("privacy", "delta"): delta,
    }
    return getattr(calibrated(read_spec(None, plan)).privacy, "noise_multiplier", None)


def _checked(delta: float | None) -> float:
    if delta is None:
        return DEFAULT_DELTA
    if not 0 < delta < 1:
        raise UsageError(f"--delta {delta:g} must be above 0 and below 1; best far below 1 in all your clients")
    return delta
