"""`fedquorum privacy`: what presets promise, and what a plan costs or needs. No server is asked."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import importlib.util
import json
import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from client_sdk.cli import privacy_tables
from client_sdk.cli.options import Json
from client_sdk.cli.output import print_fields, print_json
from client_sdk.cli.promises import print_presets
from client_sdk.cli.specification import read_spec
from client_sdk.errors import UsageError, printable

if TYPE_CHECKING:
    from fl_protocol.privacy.utility import Loudness
    from fl_protocol.runs import RunSpec

app: Final = typer.Typer(no_args_is_help=True)

Changes = dict[tuple[str, ...], object]

_MOST_EPSILON: Final = 1e6
"""The largest budget that a RunSpec may have: stands for none while a chosen noise is priced."""

_TRUST: Final = {
    "server": "the server, which sees every update, clips it and adds the noise",
    "clients": "a share of the other clients: each clips its update and adds its part of the noise before it masks it",
    "nobody": "nobody: each client clips its update and adds the noise before it sends",
}


class PlannedKind(StrEnum):
    """The kinds of privacy whose cost follows from a plan."""

    CENTRAL_GAUSSIAN = "central_gaussian"
    CENTRAL_GAUSSIAN_ADAPTIVE = "central_gaussian_adaptive"
    CENTRAL_BLT = "central_blt"
    LOCAL_LAPLACE = "local_laplace"
    LOCAL_GAUSSIAN = "local_gaussian"
    DISTRIBUTED_SKELLAM = "distributed_skellam"


@app.callback()
def privacy() -> None:
    """Show and plan what a run promises."""


@app.command("plan")
def plan(
    target_epsilon: Annotated[
        float | None, typer.Option(help="The most that a client may spend in the run: tells the noise for it.")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Instead, the noise over the sensitivity: tells the epsilon that it costs.")
    ] = None,
    kind: Annotated[PlannedKind | None, typer.Option(help="Who adds which noise; central_gaussian by default.")] = None,
    delta: Annotated[
        float | None, typer.Option(help="The chance that the promise does not cover; 1e-06 by default.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="How many rounds the run has; 10 by default.")] = None,
    participations: Annotated[
        int | None, typer.Option(help="In how many of them a client takes part at most; in all by default.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(help="Of how many updates a round's mean is (round.quorum); 8 by default.")
    ] = None,
    min_survivors: Annotated[
        int | None,
        typer.Option(help="Of how many a masked sum is at least, for distributed_skellam; all clients by default."),
    ] = None,
    parameters: Annotated[
        int | None, typer.Option(min=1, help="How many parameters are trained: tells how loud the noise is.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="A RunSpec as JSON; the options above change it.")] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Instead, the noise for some budgets: Gaussian, or of distributed_skellam.")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="Instead, what noise in each message costs.")] = False,
    as_json: Json = False,
) -> None:
    """Tell the noise that keeps a budget, or the epsilon that a noise costs, and whether a model can learn from it."""
    if table and local:
        raise UsageError("--table and --local exclude each other")
    if importlib.util.find_spec("dp_accounting") is None:
        raise UsageError("a plan needs dp-accounting; pip install 'fedquorum[privacy]'")
    if table:
        privacy_tables.print_calibrations(delta, is_shared=kind is PlannedKind.DISTRIBUTED_SKELLAM, as_json=as_json)
        return
    if local:
        privacy_tables.print_local_noise(delta, as_json=as_json)
        return
    changes: Changes = {
        ("privacy", "target_epsilon"): target_epsilon,
        ("privacy", "noise_multiplier"): noise_multiplier,
        ("privacy", "kind"): kind,
        ("privacy", "delta"): delta,
        ("privacy", "min_survivors"): min_survivors,
        ("num_rounds",): rounds,
        ("selection", "max_participations"): participations,
        ("round", "quorum"): clients,
    }
    planned = _calibrated(read_spec(spec, _from_scratch(changes) if spec is None else changes))
    fields = _fields(planned, parameters=parameters)
    _print(fields, fragment=_fragment(planned, is_whole=spec is None, spent=fields["epsilon"]), as_json=as_json)


@app.command("presets")
def presets(as_json: Json = False) -> None:
    """Show what each preset of `run create --preset` is, and the honest sentences of what it promises."""
    print_presets(as_json=as_json)


def _calibrated(spec: "RunSpec") -> "RunSpec":
    """Fills in the noise multiplier; raises UsageError for what cannot be, or for what there is no account of."""
    from fl_protocol.privacy.accounting import calibrated

    kind = spec.privacy.kind
    if kind not in set(PlannedKind):
        raise UsageError(f"privacy.kind {kind!r} has no noise to be planned here; {', '.join(PlannedKind)} have")
    try:
        return calibrated(spec)
    except ValueError as error:
        raise UsageError(f"the plan: {printable(str(error))}") from None


def _from_scratch(changes: Changes) -> Changes:
    """Completes the options to a private run; a noise that is chosen alone is given every budget."""
    target = changes["privacy", "target_epsilon"]
    if (target is None) == (changes["privacy", "noise_multiplier"] is None):
        raise UsageError(
            "give one of --target-epsilon, to be told the noise for it, and --noise-multiplier, to be told what it "
            "costs; or --spec FILE; --table and --local show what to expect"
        )
    kind, delta = changes["privacy", "kind"] or PlannedKind.CENTRAL_GAUSSIAN, changes["privacy", "delta"]
    if delta is None and kind != PlannedKind.LOCAL_LAPLACE:
        delta = privacy_tables.DEFAULT_DELTA
    masked: Changes = {}
    if kind == PlannedKind.DISTRIBUTED_SKELLAM:
        masked = {
            ("secure_aggregation", "kind"): "pairwise",
            ("secure_aggregation", "target_members"): _session_size(changes["round", "quorum"]),
        }
    return {
        **changes,
        **masked,
        ("strategy", "kind"): "mean",
        ("strategy", "weighting"): "uniform",
        ("privacy", "kind"): kind,
        ("privacy", "target_epsilon"): _MOST_EPSILON if target is None else target,
        ("privacy", "delta"): delta,
    }


def _session_size(clients: object) -> int | None:
    """Gives the members of a session that takes so many clients at once, if one can; None for the default."""
    from fl_protocol.specs.secure_aggregation import DEFAULT_SESSION_MEMBERS, MAX_SESSION_MEMBERS

    if not isinstance(clients, int) or clients <= DEFAULT_SESSION_MEMBERS:
        return None
    return min(clients, MAX_SESSION_MEMBERS)


def _fields(spec: "RunSpec", *, parameters: int | None) -> dict[str, Any]:
    from fl_protocol.privacy.accounting import delta_of, epsilon_spent, renyi_epsilon_spent
    from fl_protocol.privacy.utility import loudness
    from fl_protocol.privacy_claims import promise_of
    from fl_protocol.specs.privacy import num_participations

    count, num_rounds, promise = num_participations(spec), spec.num_rounds, promise_of(spec.privacy)
    loud = None if parameters is None else loudness(spec, num_parameters=parameters)
    return {
        "kind": spec.privacy.kind,
        "unit": promise and promise[0],
        "adjacency": promise and promise[1],
        "trusted": promise and _TRUST[promise[2]],
        "epsilon": epsilon_spent(spec, num_participations=count, num_rounds=num_rounds),
        "epsilon_renyi": renyi_epsilon_spent(spec, num_participations=count, num_rounds=num_rounds),
        "delta": delta_of(spec),
        "noise_multiplier": getattr(spec.privacy, "noise_multiplier", None),
        "rounds": num_rounds,
        "participations": count,
        "clients": spec.round.quorum,
        **_shared_fields(spec),
        "parameters": parameters,
        "noise_over_signal": loud and loud.ratio,
        "warning": loud and _warning(spec, loud),
    }


def _shared_fields(spec: "RunSpec") -> dict[str, Any]:
    """Tells what noise that the clients share counts on, and how large a masked element is."""
    from fl_protocol.masked_vectors import ring_of
    from fl_protocol.specs.privacy import DistributedSkellamPrivacy
    from fl_protocol.specs.secure_aggregation import min_members

    privacy_ = spec.privacy
    if not isinstance(privacy_, DistributedSkellamPrivacy):
        return {}
    fewest = min_members(spec)
    return {
        "min_survivors": fewest,
        "colluders_covered": math.floor(privacy_.assumed_colluders * fewest),
        "bits_an_element": ring_of(spec).bits,
    }


def _fragment(spec: "RunSpec", *, is_whole: bool, spent: float) -> dict[str, Any]:
    """Gives the parts of a RunSpec that the plan decides; a noise chosen alone gets what it spends as its budget.

    A file has the other parts already. The budget is rounded up, so that the last round still fits.
    """
    privacy_ = spec.privacy.model_dump(mode="json")
    if privacy_.get("target_epsilon") == _MOST_EPSILON:
        privacy_["target_epsilon"] = math.ceil(spent * 1e4) / 1e4
    if not is_whole:
        return {"privacy": privacy_}
    whole = {
        "num_rounds": spec.num_rounds,
        "round": {"quorum": spec.round.quorum},
        "selection": {"max_participations": spec.selection.max_participations},
        "strategy": {"kind": "mean", "weighting": "uniform"},
        "privacy": privacy_,
    }
    masked = spec.secure_aggregation.model_dump(mode="json", exclude_unset=True)
    return whole | ({"secure_aggregation": masked} if masked else {})


def _print(fields: Mapping[str, Any], *, fragment: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({**fields, "spec": fragment})
        return
    shown = {name: f"{value:.7g}" if isinstance(value, float) else value for name, value in fields.items()}
    warning = shown.pop("warning")
    print_fields(shown, as_json=False)
    if warning is not None:
        typer.echo(f"\nWarning: {warning}")
    typer.echo(f"\nIn the RunSpec:\n{json.dumps(fragment)}")


def _warning(spec: "RunSpec", loud: "Loudness") -> str | None:
    from fl_protocol.specs.privacy import CentralBltPrivacy

    if loud.ratio <= 1:
        return None
    returned = ", of which later rounds take back a part" if isinstance(spec.privacy, CentralBltPrivacy) else ""
    ways = [f"{loud.clients:,} clients a round"]
    if loud.parameters:
        ways.append(f"at most {loud.parameters:,} trained parameters (freeze layers, or train a LoRA adapter)")
    return (
        f"the noise in a round's mean is {loud.ratio:.3g} times as long as the longest step that clipped updates can "
        f"make{returned}; a model hardly learns through that. It takes {', or '.join(ways)}, or a larger budget, or "
        "fewer participations."
    )
