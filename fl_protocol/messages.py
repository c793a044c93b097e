"""The two kinds of JSON message: what is sent in is checked strictly, what comes back may grow new fields."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints

from fl_protocol.identifiers import DIGEST_PATTERN, NAME_PATTERN

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]

MAX_EXACT_INTEGER = 2**53 - 1
"""The largest integer that JSON readers in every language keep exactly."""


def _render_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


Timestamp = Annotated[datetime, PlainSerializer(_render_time, return_type=str, when_used="json")]
"""An instant; on the wire RFC 3339 in UTC."""


class RequestMessage(BaseModel):
    """A message from outside: unknown keys are refused by name, nothing is coerced, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ResponseMessage(BaseModel):
    """An answer of the server: a newer server may add fields, which an older client ignores."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def kind_or(default: str) -> Callable[[object], str]:
    """Tells the members of a union apart by their `kind`; one that does not say is of the default kind."""

    def kind_of(value: object) -> str:
        found = value.get("kind", default) if isinstance(value, Mapping) else getattr(value, "kind", default)
        return found if isinstance(found, str) else ""

    return kind_of


def _check_metrics(metrics: dict[str, float]) -> dict[str, float]:
    if len(metrics) > 64:
        raise ValueError(f"at most 64 metrics may be reported, got {len(metrics)}")
    return metrics


MetricName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9._/@-]{0,63}$")]
Metrics = Annotated[
    dict[MetricName, Annotated[float, Field(strict=True, ge=-1e300, le=1e300)]],
    AfterValidator(_check_metrics),
]
"""What a client reports of its training or evaluation: at most 64 names with finite values."""
