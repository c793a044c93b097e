"""How long a run keeps the bytes of updates and of model versions; what is known of them always stays."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from fl_protocol.messages import RequestMessage, kind_or


class KeepAll(RequestMessage):
    """Nothing is removed."""

    kind: Literal["keep"] = "keep"


class UntilPublished(RequestMessage):
    """An update is removed once its round has become a model, and `rounds` further rounds have."""

    kind: Literal["until_published"] = "until_published"
    rounds: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class NewestVersions(RequestMessage):
    """The `count` newest versions stay, and each that the run still needs: ARCHITECTURE.md says which those are."""

    kind: Literal["newest"] = "newest"
    count: Annotated[int, Field(ge=1, le=1_000_000)] = 10


UpdateRetention = Annotated[
    Annotated[KeepAll, Tag("keep")] | Annotated[UntilPublished, Tag("until_published")], Discriminator(kind_or("keep"))
]
ModelRetention = Annotated[
    Annotated[KeepAll, Tag("keep")] | Annotated[NewestVersions, Tag("newest")], Discriminator(kind_or("keep"))
]


class RetentionSpec(RequestMessage):
    """How long a run keeps its updates and the versions of its model."""

    updates: UpdateRetention = KeepAll()
    models: ModelRetention = KeepAll()
