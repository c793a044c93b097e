"""Linear regression with numpy: an initial model, and a trainer for `fedquorum participate`.

The data of this participant is made up from its process id; the weights that it hides are 2, -1 and 0.5, the bias is 3.
"""

import os
import sys
from pathlib import Path

import numpy as np

from client_sdk import TrainedModel, TrainingTask
from fl_protocol.arrays import encode

TRUE_WEIGHTS = np.array([2.0, -1.0, 0.5], dtype=np.float32)
TRUE_BIAS = np.float32(3.0)

_random = np.random.default_rng(os.getpid())
inputs = _random.normal(size=(200, 3)).astype(np.float32)
targets = inputs @ TRUE_WEIGHTS + TRUE_BIAS + _random.normal(scale=0.1, size=200).astype(np.float32)


def trainer(task: TrainingTask) -> TrainedModel:
    """Descends the mean squared error on this participant's data, from the round's global model."""
    weights, bias = np.array(task.model["weights"]), np.array(task.model["bias"])
    for _ in range(task.local_epochs):
        error = inputs @ weights + bias - targets
        weights -= task.learning_rate * 2 * (inputs.T @ error) / len(inputs)
        bias -= task.learning_rate * 2 * error.mean()
    loss = float(np.square(inputs @ weights + bias - targets).mean())
    return TrainedModel(tensors={"weights": weights, "bias": bias}, num_examples=len(inputs), metrics={"loss": loss})


def write_initial_model(path: Path) -> None:
    """Writes a model of zeros as safetensors."""
    zeros = {"weights": np.zeros(3, dtype=np.float32), "bias": np.zeros((), dtype=np.float32)}
    path.write_bytes(b"".join(encode(zeros, {})))


if __name__ == "__main__":
    write_initial_model(Path(sys.argv[1]))
