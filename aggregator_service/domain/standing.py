"""What the evaluations of a run have come to: its best version, its patience, and whether it has come to its end."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from aggregator_service.domain import quarantine, stopping
from aggregator_service.domain.quarantine import Guard
from aggregator_service.domain.stopping import Mark, Patience
from fl_protocol.specs.evaluation import EarlyStoppingSpec, EvaluationSpec


@dataclass(frozen=True, slots=True)
class Standing:
    """What has followed from the evaluations so far; `stop_reason` once the run is to be completed early."""

    best: Mark | None = None
    patience: Patience | None = None
    guard: Guard | None = None
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The standing after an evaluation, and whether the evaluated version is to be left behind."""

    standing: Standing
    is_quarantined: bool


def judge(spec: EvaluationSpec, standing: Standing, *, version: int, metrics: Mapping[str, float]) -> Verdict:
    """Draws the conclusions from one evaluation; a metric that nobody reported decides nothing."""
    marks = {name: Mark(version, value) for name, value in metrics.items()}
    bound = spec.quarantine
    guarded = None if bound is None else marks.get(bound.metric)
    if bound is not None and guarded is not None:
        if quarantine.condemns(standing.guard, guarded, quarantine=bound):
            return Verdict(_lost(spec, standing), is_quarantined=True)
        standing = replace(standing, guard=quarantine.kept(standing.guard, guarded, quarantine=bound))
    standing = _counted(spec, _compared(spec, standing, marks), marks)
    return Verdict(_reached(spec, standing, marks), is_quarantined=False)


def along(spec: EvaluationSpec, evaluations: Iterable[tuple[int, Mapping[str, float]]]) -> Standing:
    """Gives the standing after the evaluations of the versions that a version descends from, oldest first.

    The run goes on from there, so that no reason to stop is taken over.
    """
    standing = Standing()
    for version, metrics in evaluations:
        standing = judge(spec, standing, version=version, metrics=metrics).standing
    return replace(standing, stop_reason=None)


def to_json(standing: Standing) -> dict[str, Any]:
    """Renders a standing for the database."""
    return asdict(standing)


def from_json(document: Mapping[str, Any] | None) -> Standing:
    """Reads a standing; a run without evaluations has none stored."""
    if document is None:
        return Standing()
    best, patience, guard = document["best"], document["patience"], document["guard"]
    return Standing(
        best=best and Mark(**best),
        patience=patience and Patience(Mark(**patience["mark"]), patience["num_stale"]),
        guard=guard and Guard(Mark(**guard["best"]), guard["good_version"]),
        stop_reason=document["stop_reason"],
    )


def _compared(spec: EvaluationSpec, standing: Standing, marks: Mapping[str, Mark]) -> Standing:
    watched = spec.watched
    if watched is None or watched.metric not in marks:
        return standing
    return replace(standing, best=stopping.better(standing.best, marks[watched.metric], mode=watched.mode))


def _reached(spec: EvaluationSpec, standing: Standing, marks: Mapping[str, Mark]) -> Standing:
    target = spec.target
    mark = None if target is None else marks.get(target.metric)
    if target is None or mark is None or not stopping.is_reached(target, mark.value):
        return standing
    sign = ">=" if target.mode == "max" else "<="
    reason = f"target reached: {target.metric} {mark.value:.6g} {sign} {target.value:g} at version {mark.version}"
    return replace(standing, stop_reason=reason)


def _counted(spec: EvaluationSpec, standing: Standing, marks: Mapping[str, Mark]) -> Standing:
    bound = spec.early_stopping
    if bound is None or bound.metric not in marks:
        return standing
    patience = stopping.waited(standing.patience, marks[bound.metric], stopping=bound)
    return _if_exhausted(bound, replace(standing, patience=patience), patience)


def _lost(spec: EvaluationSpec, standing: Standing) -> Standing:
    if spec.early_stopping is None or standing.patience is None:
        return standing
    patience = stopping.in_vain(standing.patience)
    return _if_exhausted(spec.early_stopping, replace(standing, patience=patience), patience)


def _if_exhausted(bound: EarlyStoppingSpec, standing: Standing, patience: Patience) -> Standing:
    if not stopping.is_exhausted(patience, stopping=bound):
        return standing
    mark = patience.mark
    reason = (
        f"stopped early: in {patience.num_stale} evaluations {bound.metric} was not better by more than "
        f"{bound.min_delta:g} than {mark.value:.6g} at version {mark.version}"
    )
    return replace(standing, stop_reason=reason)
