"""A blocking door for scripts and notebooks; it opens beside a running event loop too.

The asynchronous client runs in a thread with a loop of its own, and each method here waits for one of its methods:
nothing is written twice.
"""

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from client_sdk.client import AggregatorClient
from client_sdk.config import DEFAULT_LIMITS, Limits
from client_sdk.masking.trust import PeerTrust
from client_sdk.operator import Operator
from client_sdk.participant import participate
from client_sdk.performer import OnEvent, Participation
from client_sdk.privacy.policy import PrivacyPolicy
from client_sdk.session.work import Evaluator, Trainer
from fl_protocol.rounds import Event

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _blocking(
    method: Callable[Concatenate[Operator, Parameters], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate["BlockingOperator", Parameters], Result]:
    @functools.wraps(method)
    def blocking(door: "BlockingOperator", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        result: Result = door.portal.call(functools.partial(method, door.operator, *args, **kwargs))
        return result

    return blocking


class BlockingOperator:
    """An Operator whose methods wait.

    ```python
    with BlockingOperator(server, token=operator_token) as operator:
        run = operator.start_run(RunSpec(name="mnist"), initial_model)
        operator.wait(run.run_id)
    ```
    """

    portal: BlockingPortal
    operator: Operator

    def __init__(
        self, server: str, *, token: str, allow_insecure_http: bool = False, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._open = functools.partial(
            AggregatorClient, server, token=token, allow_insecure_http=allow_insecure_http, limits=limits
        )
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self.operator = Operator(self._open())
        self.portal = self._opened.enter_context(start_blocking_portal())
        return self

    def __exit__(self, *error: object) -> None:
        self.portal.call(self.operator.client.aclose)
        self._opened.close()

    create_run = _blocking(Operator.create_run)
    start_run = _blocking(Operator.start_run)
    wait = _blocking(Operator.wait)
    rounds = _blocking(Operator.rounds)
    models = _blocking(Operator.models)
    rollback = _blocking(Operator.rollback)
    download = _blocking(Operator.download)
    result = _blocking(Operator.result)
    create_enrolment = _blocking(Operator.create_enrolment)
    enrol = _blocking(Operator.enrol)

    def watch(self, run_id: str, *, after: int = 0) -> Iterator[Event]:
        """Yields the run's events from the beginning (or event `after`) to its end."""
        events = self.operator.watch(run_id, after=after)
        try:
            while (event := self.portal.call(_next, events)) is not None:
                yield event
        finally:
            self.portal.call(events.aclose)


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)


def participate_blocking(
    server: str,
    run_id: str,
    trainer: Trainer,
    *,
    token: str,
    evaluator: Evaluator | None = None,
    cache_dir: Path | None = None,
    state_dir: Path | None = None,
    policy: PrivacyPolicy | None = None,
    client_id: str | None = None,
    peer_trust: PeerTrust | None = None,
    on_event: OnEvent | None = None,
    allow_insecure_http: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Participation:
    """Takes part in a run until it is over, as `participate` does, and waits for that."""

    async def run() -> Participation:
        async with AggregatorClient(
            server, token=token, allow_insecure_http=allow_insecure_http, limits=limits
        ) as client:
            return await participate(
                client,
                run_id,
                trainer,
                evaluator=evaluator,
                cache_dir=cache_dir,
                state_dir=state_dir,
                policy=policy,
                client_id=client_id,
                peer_trust=peer_trust,
                on_event=on_event,
            )

    with start_blocking_portal() as portal:
        return portal.call(run)
