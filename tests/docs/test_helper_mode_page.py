"""The page on helper mode: its specification, commands, routes and sizes are the product's."""

import json
import re

from client_sdk.cli.application import app
from client_sdk.mask_helper import keys, release_log
from fl_protocol import routes
from fl_protocol.masking.contributions import SEALED_BYTES
from fl_protocol.masking.mask_requests import Contributor
from fl_protocol.runs import RunSpec
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation
from tests.docs.pages import CHECKOUT

PAGE = CHECKOUT / "docs" / "privacy" / "helper-mode.md"


def test_the_specification_on_the_page_is_one() -> None:
    text = PAGE.read_text()
    (block,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    digits = iter("abcd")
    spec = RunSpec.model_validate(json.loads(re.sub(r"64 hex digits", lambda _: next(digits) * 64, block)))
    assert isinstance(spec.secure_aggregation, HelperSecureAggregation)
    assert set(re.findall(r"`(checking|releasing|summing|done|failed)`", text)) >= {"checking", "releasing", "summing"}


def test_the_commands_routes_and_files_on_the_page_exist() -> None:
    text = PAGE.read_text()
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    for name, command in re.findall(r"fedquorum (helper|token) ([a-z-]+)", text):
        found = groups[name]
        assert found is not None
        known = {one.name or getattr(one.callback, "__name__", "") for one in found.registered_commands}
        assert command in known
    for path in re.findall(r"(?:GET|PUT) `?(/v1/[^ `?]+)", text):
        assert path in vars(routes).values()
    assert f"`{keys.FILE_NAME}`" in text
    assert f"`{release_log.FILE_NAME}`" in text


def test_the_sizes_on_the_page_are_those_of_the_messages() -> None:
    assert SEALED_BYTES == 80
    assert len(Contributor(bytes(16), bytes(32), bytes(32), bytes(64), ()).render()) == 144
