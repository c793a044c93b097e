"""What an evaluation says of each part of the federation."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from aggregator_service.domain.records import EvaluationRecord, StratumRecord
from aggregator_service.domain.strategies.mean import weighted_metrics

MAX_STRATA: Final = 64
"""How many strata are reported; an attribute with a value of its own for each client names no strata."""


def by_stratum(reports: Iterable[EvaluationRecord], stratum_of: Mapping[str, str]) -> dict[str, StratumRecord]:
    """Gives each stratum's weighted means, the strata by name; of more than 64 those with the most examples."""
    groups: defaultdict[str, list[EvaluationRecord]] = defaultdict(list)
    for report in reports:
        groups[stratum_of[report.client_id]].append(report)
    strata = {
        name: StratumRecord(
            num_examples=sum(report.num_examples for report in members),
            num_reports=len(members),
            metrics=weighted_metrics((report.num_examples, report.metrics) for report in members),
        )
        for name, members in groups.items()
    }
    largest = sorted(strata, key=lambda name: (-strata[name].num_examples, name))[:MAX_STRATA]
    return {name: strata[name] for name in sorted(largest)}
