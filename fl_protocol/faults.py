"""Says what pydantic found wrong with a message, by the dotted name that the sender knows."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

_OF_A_BOUND: Final = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})
_OF_A_WHOLE_MESSAGE: Final = frozenset({"value_error", "model_type", "model_attributes_type"})


def describe_fault(fault: Mapping[str, Any], document: object) -> str:
    """Renders one of a ValidationError's errors as `dotted.name: reason`.

    `document` is what was validated. A choice among several kinds adds its tag to pydantic's path, as `sgd` to
    `server_optimizer.sgd.momentum`; the document has no such key, so the tag is left out. A rule about several fields
    names them in its reason and has no name in front.
    """
    names, value = _named(fault["loc"], document, of_whole=fault["type"] in _OF_A_WHOLE_MESSAGE)
    reason = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "union_tag_invalid":
        names.append("kind")
        context = fault["ctx"]
        reason = f"{str(context['tag'])[:64]!r} is none of {context['expected_tags']}"
    elif fault["type"] in _OF_A_BOUND and isinstance(value, int | float):
        reason = f"{reason}, and it is {str(value)[:32]}"
    return f"{'.'.join(names)}: {reason}" if names else reason


def _named(location: Sequence[str | int], document: object, *, of_whole: bool) -> tuple[list[str], object]:
    """Gives the names on the way to what is wrong, and what stands there."""
    names = []
    inside: Any = document
    behind_tag = False
    for depth, part in enumerate(location, start=1):
        # A kind may be called as one of its own fields is: then its tag comes first in the path, and the field behind.
        behind_tag = not behind_tag and isinstance(inside, Mapping) and inside.get("kind") == part
        if behind_tag:
            continue
        held = _holds(inside, part)
        inside = inside[part] if held else inside
        # A last part that the document lacks is a key that should be there, unless the fault is of the whole choice.
        if held or (depth == len(location) and not of_whole):
            names.append(str(part)[:64])
    return names, inside


def _holds(inside: object, part: str | int) -> bool:
    if isinstance(inside, Mapping):
        return part in inside
    return isinstance(inside, list) and isinstance(part, int) and part < len(inside)
