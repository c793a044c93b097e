"""FedQuorum for PyTorch: a module's tensors, a trainer around a module, an evaluator. Nothing here unpickles."""

from client_sdk.torch.dpsgd import DpsgdTrainer
from client_sdk.torch.freezing import normalisation_patterns
from client_sdk.torch.networks import ImageDataset, classifier, image_dataset, use_threads
from client_sdk.torch.parameters import load_into, tensors_of
from client_sdk.torch.trainer import TorchEvaluator, TorchTrainer, sgd

__all__ = [
    "DpsgdTrainer",
    "ImageDataset",
    "TorchEvaluator",
    "TorchTrainer",
    "classifier",
    "image_dataset",
    "load_into",
    "normalisation_patterns",
    "sgd",
    "tensors_of",
    "use_threads",
]
