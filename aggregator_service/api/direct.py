"""Answers the routes that are asked for most past the framework's layers.

Each of them is a frame through which every wait of a request goes again. What they do for other routes is done here:
the body has its pace, refusals become problem answers, and what fails otherwise is told by the layer around this one.
"""

from fastapi import APIRouter, FastAPI, Request
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from aggregator_service.api import problems
from aggregator_service.api.dependencies import DirectRoute
from aggregator_service.api.pacing import Paced
from aggregator_service.telemetry import Telemetry


class Direct:
    """An ASGI middleware that answers a router's direct routes, and passes on what is not for them."""

    def __init__(self, app: FastAPI, router: APIRouter, telemetry: Telemetry) -> None:
        self._app = app
        self._routes = [route for route in router.routes if isinstance(route, DirectRoute)]
        self._methods = frozenset(method for route in self._routes for method in route.methods or ())
        self._answerers = problems.answerers(telemetry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        route = self._find(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["app"], scope["route"] = self._app, route
        request = Request(scope, Paced(receive), send)
        try:
            response = await route.answer(request)
        except tuple(self._answerers) as error:
            response = next(self._answerers[kind] for kind in type(error).__mro__ if kind in self._answerers)(
                request, error
            )
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> DirectRoute | None:
        if scope["type"] != "http" or scope["method"] not in self._methods:
            return None
        for route in self._routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope["path_params"] = found["path_params"]
                return route
        return None
