"""How the floating-point tensors of an update travel: whole, rounded to a few bits, or only some of their elements."""

from typing import Annotated, Literal, Protocol

from pydantic import Discriminator, Field, Tag

from fl_protocol.messages import RequestMessage, kind_or
from fl_protocol.specs.privacy import LocalGaussianPrivacy, LocalLaplacePrivacy, Privacy
from fl_protocol.specs.protection import NoSecureAggregation
from fl_protocol.specs.secure_aggregation import SecureAggregation
from fl_protocol.specs.strategies import MeanStrategy, Strategy


class NoCompression(RequestMessage):
    """The bytes travel as they are."""

    kind: Literal["none"] = "none"


class ZstdCompression(RequestMessage):
    """Clients send `Content-Encoding: byte-shuffle, zstd`; the digest stays that of the bytes before it."""

    kind: Literal["zstd"] = "zstd"
    level: Annotated[int, Field(ge=1, le=19)] = 3


Compression = Annotated[
    Annotated[NoCompression, Tag("none")] | Annotated[ZstdCompression, Tag("zstd")], Discriminator(kind_or("none"))
]

FloatType = Literal["model", "float32", "bfloat16", "float16"]


class _EncodingFields(RequestMessage):
    compression: Compression = NoCompression()


class DenseEncoding(_EncodingFields):
    """Each tensor travels whole, in the model's own type, or all of them in the one that `dtype` names."""

    kind: Literal["dense"] = "dense"
    dtype: FloatType = "model"


class Int8Encoding(_EncodingFields):
    """Each element travels as a code from -127 to 127, with a float32 scale for each row of its tensor."""

    kind: Literal["int8"] = "int8"


class Int4Encoding(_EncodingFields):
    """Each element travels as a code from -7 to 7, two in a byte, with a float32 scale for each row of its tensor."""

    kind: Literal["int4"] = "int4"


class TopKEncoding(_EncodingFields):
    """Of each tensor a `fraction` or a `count` of the elements that are largest in magnitude travels, with indices.

    With `error_feedback` a client adds what it has not sent to its next update (Stich et al. 2018, arXiv 1809.07599).
    """

    kind: Literal["topk"] = "topk"
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    count: Annotated[int, Field(ge=1, le=2**32)] | None = None
    error_feedback: bool = True


class RandomMaskEncoding(_EncodingFields):
    """Of each tensor a `fraction` or a `count` of elements travels, drawn by a seed that stands for their indices."""

    kind: Literal["random_mask"] = "random_mask"
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    count: Annotated[int, Field(ge=1, le=2**32)] | None = None
    error_feedback: bool = True


SparseEncoding = TopKEncoding | RandomMaskEncoding
QuantisedEncoding = Int8Encoding | Int4Encoding

Encoding = Annotated[
    Annotated[DenseEncoding, Tag("dense")]
    | Annotated[Int8Encoding, Tag("int8")]
    | Annotated[Int4Encoding, Tag("int4")]
    | Annotated[TopKEncoding, Tag("topk")]
    | Annotated[RandomMaskEncoding, Tag("random_mask")],
    Discriminator(kind_or("dense")),
]


def keeps_residual(encoding: Encoding) -> bool:
    """Tells whether a client keeps what it has not sent for its next update."""
    return isinstance(encoding, SparseEncoding) and encoding.error_feedback


class Choices(Protocol):
    """What a RunSpec has that an encoding must go with."""

    @property
    def encoding(self) -> Encoding: ...

    @property
    def strategy(self) -> Strategy: ...

    @property
    def privacy(self) -> Privacy: ...

    @property
    def secure_aggregation(self) -> SecureAggregation: ...


def check_encoding(spec: Choices) -> None:
    """Raises ValueError naming the field that an encoding does not go with, and what would work."""
    encoding = spec.encoding
    if encoding != DenseEncoding():
        _check_unmasked(spec)
    if isinstance(encoding, SparseEncoding):
        _check_share(encoding)
        _check_strategy(encoding, spec.strategy)
        _check_residual(encoding, spec.privacy)


def _check_unmasked(spec: Choices) -> None:
    if isinstance(spec.secure_aggregation, NoSecureAggregation):
        return
    raise ValueError(
        f"encoding.kind {spec.encoding.kind!r} with these settings does not go with secure_aggregation.kind "
        f"{spec.secure_aggregation.kind!r}: a masked coordinate is a word of a ring that looks random and can be "
        "neither left out, narrowed nor compressed; take encoding.kind 'dense' and nothing else"
    )


def _check_share(encoding: SparseEncoding) -> None:
    if (encoding.fraction is None) == (encoding.count is None):
        raise ValueError(
            f"encoding.fraction or encoding.count says how many elements of each tensor {encoding.kind!r} sends; name "
            "one of the two, for example fraction 0.01"
        )


def _check_strategy(encoding: SparseEncoding, strategy: Strategy) -> None:
    if not isinstance(strategy, MeanStrategy):
        raise ValueError(
            f"strategy.kind {strategy.kind!r} compares what clients sent, and with encoding.kind {encoding.kind!r} "
            "they differ most in which elements they sent at all; take encoding.kind 'int8' or 'int4', or "
            "strategy.kind 'mean'"
        )


def _check_residual(encoding: SparseEncoding, privacy: Privacy) -> None:
    if encoding.error_feedback and isinstance(privacy, LocalLaplacePrivacy | LocalGaussianPrivacy):
        raise ValueError(
            f"encoding.error_feedback keeps what was not sent, and with privacy.kind {privacy.kind!r} that is either "
            "noise, which it would pile up, or data without noise, whose cost nobody counts; set it to false"
        )
