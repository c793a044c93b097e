"""A small network and a data set of images, for the demo and for first steps."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

ImageDataset = TensorDataset


def classifier(sizes: Sequence[int], *, seed: int) -> nn.Sequential:
    """Makes a multilayer perceptron with ReLU between its layers, e.g. sizes 784, 128, 64, 10; initialised by seed."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def image_dataset(images: NDArray[np.uint8], labels: NDArray[Any]) -> ImageDataset:
    """Makes a data set of grey images, uint8 [N, height, width] scaled to 0..1, with integer labels [N]."""
    scaled = torch.from_numpy(images.astype(np.float32) / np.float32(255))
    return TensorDataset(scaled, torch.from_numpy(labels.astype(np.int64)))


def use_threads(count: int) -> None:
    """Sets how many threads one operation of PyTorch may use; 1 gives the same bits on every machine size."""
    torch.set_num_threads(count)
