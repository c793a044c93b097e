"""Removes what a run's policy no longer keeps, a bounded number of bytes a transaction; rows and digests stay."""

from collections.abc import Callable

from aggregator_service import failpoints
from aggregator_service.domain.records import ModelRecord, RunRecord
from aggregator_service.flow.context import Flow
from aggregator_service.storage import renditions, retention, runs
from aggregator_service.storage.retention import OldUpdate
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.specs.retention import NewestVersions, UntilPublished


async def remove_old(flow: Flow) -> int:
    """Removes the updates and versions that no policy keeps; gives how many."""
    total = 0
    for run_id in await flow.transactions.read_one("find_policies", retention.runs_with_policy):
        while removed := await _remove_some(flow, run_id):
            total += removed
    return total


def check_kept(model: ModelRecord) -> None:
    """Refuses a version whose bytes were removed."""
    if model.removed_at is not None:
        raise ProblemError(
            ProblemType.REMOVED,
            f"model version {model.version} was removed at {model.removed_at:%Y-%m-%dT%H:%M:%SZ} by the run's policy "
            f"(retention.models); what is known of it stays, and its digest was {model.digest}",
        )


async def _remove_some(flow: Flow, run_id: str) -> int:
    # Looking takes no lock; most of the time there is nothing.
    if not any(await flow.transactions.read("find_old", lambda tx: _old(tx, runs.get(tx, run_id)))):
        return 0
    removed = await flow.transactions.write("remove_old", _removing(run_id))
    failpoints.reach("retention.after_commit")
    return removed


def _removing(run_id: str) -> Callable[[WriteTx], int]:
    def body(tx: WriteTx) -> int:
        updates, versions = _old(tx, runs.lock(tx, run_id))
        if updates:
            retention.remove_updates(tx, updates)
        if versions:
            retention.remove_versions(tx, run_id, versions)
            renditions.remove_of_versions(tx, run_id, versions)
        failpoints.reach("retention.in_transaction")
        return len(updates) + len(versions)

    return body


def _old(tx: ReadTx, run: RunRecord | None) -> tuple[list[OldUpdate], list[int]]:
    """Gives updates and versions that the policy does not keep: some of them, if there are many."""
    if run is None:
        return [], []
    policy, updates, versions = run.spec.retention, list[OldUpdate](), list[int]()
    if isinstance(policy.updates, UntilPublished):
        updates = retention.old_updates(tx, run.run_id, num_rounds=policy.updates.rounds)
    if isinstance(policy.models, NewestVersions) and run.latest_version is not None:
        kept = retention.versions_in_use(tx, run.run_id) | _outstanding(run)
        before = run.latest_version - policy.models.count + 1
        versions = retention.old_versions(tx, run.run_id, before=before, kept=kept)
    return updates, versions


def _outstanding(run: RunRecord) -> set[int]:
    """Gives the versions that later ones are held against, or that a quarantine goes back to."""
    best, guard = run.standing.best, run.standing.guard
    return ({best.version} if best is not None else set()) | ({guard.good_version} if guard is not None else set())
