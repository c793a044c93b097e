"""Reads MNIST: the subset that ships with the package, or the whole data set from a folder."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

PACKAGED = Path(__file__).parent / "data"
TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"

PACKAGED_SHA256: Mapping[str, str] = {
    "train-images-idx3-ubyte.gz": "db50ff8c228354421e9b49d552099ea6cc5776a5086d228119c40ff94b0b1a8c",
    "train-labels-idx1-ubyte.gz": "08503bf86caeecf163f3790b28850ccf016870bfff4cbd6a4cdfb94a25f44916",
    "t10k-images-idx3-ubyte.gz": "fa2fa0f453d30da7368de1b3d971c4d7d337993bb97663d604822d2b60473905",
    "t10k-labels-idx1-ubyte.gz": "9016d84c0ff2a402884fc39ac1dfcb3ec411c5581759174110390192c6e1c7b5",
}

# An IDX file starts with two zero bytes, the element type (8: unsigned byte) and the number of dimensions.
_IDX_UNSIGNED_BYTES = b"\x00\x00\x08"


class MnistError(ValueError):
    """Says that a file is not the MNIST file it should be, naming the file."""


@dataclass(frozen=True, slots=True, eq=False)
class MnistSubset:
    """Holds images of handwritten digits and what they show.

    Images are uint8 [N, 28, 28], 0 (background) to 255 (ink); labels are uint8 [N], 0 to 9. The arrays are read-only.
    """

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.uint8]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.uint8]


def load() -> MnistSubset:
    """Loads the first 20,000 training and the first 2,000 test images, which ship with the package.

    Raises:
        MnistError: if a file is not, byte for byte, the one that was shipped.
        OSError: if a file cannot be read.
    """
    return _subset({name: _packaged_bytes(name, digest) for name, digest in PACKAGED_SHA256.items()})


def load_idx(folder: Path) -> MnistSubset:
    """Loads the whole data set, 60,000 training and 10,000 test images, from its four `.gz` files in `folder`.

    Raises:
        MnistError: if a file is damaged, or images and labels do not belong together.
        OSError: if a file cannot be read.
    """
    return _subset({name: (folder / name).read_bytes() for name in PACKAGED_SHA256})


def _packaged_bytes(name: str, digest: str) -> bytes:
    content = (PACKAGED / name).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise MnistError(f"{PACKAGED / name} has SHA-256 {found}, not {digest}: reinstall fedquorum")
    return content


def _subset(files: Mapping[str, bytes]) -> MnistSubset:
    images = {name: parse_idx(name, files[name], num_dimensions=3) for name in (TRAIN_IMAGES, TEST_IMAGES)}
    labels = {name: parse_idx(name, files[name], num_dimensions=1) for name in (TRAIN_LABELS, TEST_LABELS)}
    for images_name, labels_name in ((TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS)):
        if len(images[images_name]) != len(labels[labels_name]):
            raise MnistError(
                f"{images_name} holds {len(images[images_name])} images "
                f"and {labels_name} {len(labels[labels_name])} labels"
            )
    return MnistSubset(images[TRAIN_IMAGES], labels[TRAIN_LABELS], images[TEST_IMAGES], labels[TEST_LABELS])


def parse_idx(name: str, compressed: bytes, *, num_dimensions: int) -> npt.NDArray[np.uint8]:
    """Parses a gzipped IDX file of unsigned bytes into a read-only array of its `num_dimensions` dimensions.

    Raises:
        MnistError: if it is not such a file, naming it as `name`.
    """
    try:
        content = gzip.decompress(compressed)
    except (OSError, EOFError, zlib.error) as error:
        raise MnistError(f"{name} is not a whole gzip file: {error}") from error
    header_size = 4 + 4 * num_dimensions
    if content[:4] != _IDX_UNSIGNED_BYTES + bytes([num_dimensions]) or len(content) < header_size:
        raise MnistError(f"{name} is not an IDX file of unsigned bytes in {num_dimensions} dimensions")
    shape = np.frombuffer(content, dtype=">u4", count=num_dimensions, offset=4).tolist()
    if len(content) - header_size != math.prod(shape):
        raise MnistError(f"{name} announces shape {shape} and holds {len(content) - header_size} values")
    return np.frombuffer(content, dtype=np.uint8, offset=header_size).reshape(shape)
