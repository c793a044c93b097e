"""Makes the MNIST subset that ships with the package from the four original files.

Usage: python scripts/make_mnist_subset.py TRAIN_IMAGES.gz TRAIN_LABELS.gz TEST_IMAGES.gz TEST_LABELS.gz TARGET_FOLDER

Prints the SHA-256 digests that client_sdk/demo/mnist.py checks.
"""

import argparse
import gzip
import hashlib
import struct
from pathlib import Path

NUM_TRAIN = 20_000
NUM_TEST = 2_000
PIXELS = 28 * 28


def first_images(path: Path, count: int) -> bytes:
    """Returns an IDX file of the first `count` images of the gzipped IDX file at `path`."""
    content = gzip.decompress(path.read_bytes())
    return struct.pack(">4I", 0x0803, count, 28, 28) + content[16 : 16 + count * PIXELS]


def first_labels(path: Path, count: int) -> bytes:
    """Returns an IDX file of the first `count` labels of the gzipped IDX file at `path`."""
    content = gzip.decompress(path.read_bytes())
    return struct.pack(">2I", 0x0801, count) + content[8 : 8 + count]


def write_gzip(path: Path, content: bytes) -> None:
    """Writes `content` gzipped, without a time in it, and prints the digest of the file."""
    # Without a time in the header the same input makes the same file again.
    compressed = gzip.compress(content, compresslevel=9, mtime=0)
    path.write_bytes(compressed)
    print(f'    "{path.name}": "{hashlib.sha256(compressed).hexdigest()}",')


def main() -> None:
    """Makes the four files."""
    parser = argparse.ArgumentParser(description="Makes the MNIST subset that ships with the package.")
    for name in ("train_images", "train_labels", "test_images", "test_labels", "target_folder"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    target: Path = given.target_folder
    target.mkdir(parents=True, exist_ok=True)
    write_gzip(target / "train-images-idx3-ubyte.gz", first_images(given.train_images, NUM_TRAIN))
    write_gzip(target / "train-labels-idx1-ubyte.gz", first_labels(given.train_labels, NUM_TRAIN))
    write_gzip(target / "t10k-images-idx3-ubyte.gz", first_images(given.test_images, NUM_TEST))
    write_gzip(target / "t10k-labels-idx1-ubyte.gz", first_labels(given.test_labels, NUM_TEST))


if __name__ == "__main__":
    main()
