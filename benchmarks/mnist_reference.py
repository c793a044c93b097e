"""Federated averaging simulated with PyTorch alone, without FedQuorum (`python -m benchmarks.mnist_reference FOLDER`).

What the figures of `mnist_band` are compared with; shard, order and initialisation are drawn by PyTorch's own means.
"""

import copy
import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

NUM_CLIENTS = 10
BATCH_SIZE = 32
LEARNING_RATE = 0.05
ROUNDS_SHOWN = (5, 10, 20)
SEEDS = (0, 1, 2)
PIXEL_MEAN, PIXEL_DEVIATION = 0.1307, 0.3081


def read_images(path: Path) -> torch.Tensor:
    """Reads images as standardised float32 [N, 784]."""
    pixels = torch.frombuffer(bytearray(gzip.decompress(path.read_bytes())[16:]), dtype=torch.uint8)
    return (pixels.view(-1, 784) / 255 - PIXEL_MEAN) / PIXEL_DEVIATION


def read_labels(path: Path) -> torch.Tensor:
    """Reads labels as int64 [N]."""
    return torch.frombuffer(bytearray(gzip.decompress(path.read_bytes())[8:]), dtype=torch.uint8).long()


def simulate(folder: Path, *, seed: int, tell: Callable[[int, float], None]) -> None:
    """Trains for the rounds shown; `tell` is given a round and the accuracy on the test images after it."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    images, labels = (
        read_images(folder / "train-images-idx3-ubyte.gz"),
        read_labels(folder / "train-labels-idx1-ubyte.gz"),
    )
    test_images, test_labels = (
        read_images(folder / "t10k-images-idx3-ubyte.gz"),
        read_labels(folder / "t10k-labels-idx1-ubyte.gz"),
    )
    shards = torch.randperm(len(images)).view(NUM_CLIENTS, -1)
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    for number in range(1, max(ROUNDS_SHOWN) + 1):
        trained = [_train(copy.deepcopy(model), images, labels, shard=shard) for shard in shards]
        model.load_state_dict({name: sum(one[name] for one in trained) / NUM_CLIENTS for name in trained[0]})
        with torch.no_grad():
            tell(number, float((model(test_images).argmax(1) == test_labels).double().mean()))


def _train(
    model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor, *, shard: torch.Tensor
) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for batch in shard[torch.randperm(len(shard))].split(BATCH_SIZE):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.state_dict()


def main() -> None:
    """Prints the accuracy after the rounds shown for each seed."""
    for seed in SEEDS:
        accuracies: dict[int, float] = {}
        simulate(Path(sys.argv[1]), seed=seed, tell=accuracies.__setitem__)
        shown = "  ".join(f"round {number}: {100 * accuracies[number]:.2f}%" for number in ROUNDS_SHOWN)
        print(f"seed {seed}  {shown}", flush=True)


if __name__ == "__main__":
    main()
