"""What was wrong with a message is said by the dotted name that the sender knows."""

from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from fl_protocol.faults import describe_fault
from fl_protocol.messages import RequestMessage, kind_or


class Inner(RequestMessage):
    kind: Literal["inner"] = "inner"
    factor: float = 1.0


class Plain(RequestMessage):
    kind: Literal["plain"] = "plain"
    rate: Annotated[float, Field(gt=0)] = 1.0
    inner: Annotated[Annotated[Inner, Tag("inner")], Discriminator(kind_or("inner"))] = Inner()


class Fancy(RequestMessage):
    kind: Literal["fancy"]
    size: int
    odd: bool = False

    @model_validator(mode="after")
    def _check(self):
        if self.odd:
            raise ValueError(f"odd and size {self.size} exclude each other")
        return self


class Depth(RequestMessage):
    """A kind that is called as its field is."""

    kind: Literal["depth"]
    depth: int
    odd: int = 0


class Message(RequestMessage):
    choice: Annotated[
        Annotated[Plain, Tag("plain")] | Annotated[Fancy, Tag("fancy")] | Annotated[Depth, Tag("depth")],
        Discriminator(kind_or("plain")),
    ] = Plain()
    numbers: list[int] = Field(default_factory=list)
    total: int = 0

    @model_validator(mode="after")
    def _check(self):
        if self.total:
            raise ValueError(f"choice.size and total {self.total} exclude each other")
        return self


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"choice": {"rate": 0}}, "choice.rate: Input should be greater than 0, and it is 0"),
        ({"choice": {"kind": "plain", "rate": 0}}, "choice.rate: Input should be greater than 0, and it is 0"),
        ({"choice": {"inner": {"factor": "x"}}}, "choice.inner.factor: Input should be a valid number"),
        ({"choice": {"inner": {"more": 1}}}, "choice.inner.more: Extra inputs are not permitted"),
        ({"choice": {"kind": "fancy"}}, "choice.size: Field required"),
        ({"choice": {"kind": "fancy", "size": 3, "odd": True}}, "choice: odd and size 3 exclude each other"),
        ({"choice": {"kind": "depth", "depth": "x"}}, "choice.depth: Input should be a valid integer"),
        ({"choice": {"kind": "depth"}}, "choice.depth: Field required"),
        ({"choice": {"kind": "depth", "depth": 1, "odd": "x"}}, "choice.odd: Input should be a valid integer"),
        ({"choice": {"kind": "other"}}, "choice.kind: 'other' is none of 'plain', 'fancy', 'depth'"),
        ({"choice": {"kind": 5}}, "choice.kind: '' is none of 'plain', 'fancy'"),
        ({"choice": 5}, "choice: Input should be a valid dictionary"),
        ({"plain": 5}, "plain: Extra inputs are not permitted"),
        ({"numbers": [1, "x"]}, "numbers.1: Input should be a valid integer"),
        ({"total": 3}, "choice.size and total 3 exclude each other"),
    ],
)
def test_a_fault_has_the_senders_name_for_it(document, said):
    with pytest.raises(ValidationError) as caught:
        Message.model_validate(document)
    assert describe_fault(caught.value.errors()[0], document).startswith(said)
