"""How many files and connections the process may hold open."""

import resource
from typing import Final

import structlog

ENOUGH: Final = 12_000
"""10,000 clients that wait, each on a connection of its own, and what else a server opens."""

_log = structlog.get_logger()


def allow_descriptors() -> None:
    """Raises the process's limit of open files to what the system lets it; says so in the log if that is little.

    Beyond the limit new connections wait until others close.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < ENOUGH:
        _log.warning(
            "few_open_files",
            limit=hard,
            enough=ENOUGH,
            advice="clients that wait hold a connection each; raise the limit (ulimit -Hn, LimitNOFILE=, --ulimit)",
        )
