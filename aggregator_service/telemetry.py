"""What the service tells its operators: Prometheus metrics and one JSON line a log event."""

import logging
import sys
from typing import Any, Final, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_MAX_FIELD: Final = 256


class Telemetry:
    """The counters of one server process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "fedquorum_requests", "Requests answered.", ["operation", "status"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "fedquorum_request_seconds", "Time to answer, waits included.", ["operation"], registry=self.registry
        )
        self._updates = Counter("fedquorum_updates_accepted", "Updates acknowledged.", registry=self.registry)
        self._update_bytes = Counter(
            "fedquorum_update_bytes_accepted", "Bytes of acknowledged updates.", registry=self.registry
        )
        self._folded_early = Counter(
            "fedquorum_updates_folded_early", "Updates folded while their round collected.", registry=self.registry
        )
        self._refusals = Counter("fedquorum_refusals", "Requests refused.", ["problem"], registry=self.registry)
        self._rounds = Counter("fedquorum_rounds_ended", "Rounds by outcome.", ["outcome"], registry=self.registry)
        self._aggregation = Histogram(
            "fedquorum_aggregation_seconds", "Time from a sealed round to its model.", registry=self.registry
        )
        self._commits = Histogram(
            "fedquorum_commit_batch_size",
            "Writes that shared one commit.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self._commit_seconds = Histogram("fedquorum_commit_seconds", "Time of a commit.", registry=self.registry)
        self._retries = Counter(
            "fedquorum_transaction_retries", "Transactions run again.", ["name"], registry=self.registry
        )
        self._waiting = Gauge("fedquorum_waiting_requests", "Requests held by ?wait=.", registry=self.registry)

    def answered(self, operation: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        self._requests.labels(operation, str(status)).inc()
        self._request_seconds.labels(operation).observe(seconds)

    def accepted(self, num_bytes: int) -> None:
        """Counts one acknowledged update."""
        self._updates.inc()
        self._update_bytes.inc(num_bytes)

    def folded_early(self, num_updates: int) -> None:
        """Counts updates of a round that still collects."""
        self._folded_early.inc(num_updates)

    def refused(self, problem: str) -> None:
        """Counts one refusal by its problem type."""
        self._refusals.labels(problem).inc()

    def round_ended(self, outcome: str) -> None:
        """Counts one round that completed or was abandoned."""
        self._rounds.labels(outcome).inc()

    def aggregated(self, seconds: float) -> None:
        """Records how long a sealed round took to become a model."""
        self._aggregation.observe(seconds)

    def committed(self, batch_size: int, seconds: float) -> None:
        """Records one commit and how many writes shared it."""
        self._commits.observe(batch_size)
        self._commit_seconds.observe(seconds)

    def retried(self, name: str) -> None:
        """Counts one transaction that was run again."""
        self._retries.labels(name).inc()

    def hold(self, number: int) -> None:
        """Counts so many requests more, or less, among the held ones."""
        self._waiting.inc(number)

    def render(self) -> bytes:
        """Gives the metrics in Prometheus's text format."""
        return generate_latest(self.registry)


def configure_logging(stream: TextIO = sys.stderr) -> None:
    """Makes every log event one JSON line on standard error; control characters are escaped, fields bounded.

    What libraries log through Python's own logging becomes such a line, too.
    """
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _bound_fields,
    ]
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    rendering: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(),
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=processors, processors=rendering))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _bound_fields(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {
        key: value[:_MAX_FIELD] if isinstance(value, str) and key != "exception" else value
        for key, value in event.items()
    }
