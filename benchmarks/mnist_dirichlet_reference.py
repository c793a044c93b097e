"""Federated averaging over unequal clients, simulated with PyTorch alone, without FedQuorum.

What `mnist_dirichlet` is compared with: it shares no code with FedQuorum. What is left to chance is drawn by PyTorch's
own means (`draw`), or is another experiment's draws, so that only the order of the images differs.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

NUM_CLIENTS = 20
COHORT_SIZE = 10
ALPHA = 0.1
BATCH_SIZE = 32
LEARNING_RATE = 0.05
PIXEL_MEAN, PIXEL_DEVIATION = 0.1307, 0.3081

Images = tuple[torch.Tensor, torch.Tensor]
"""Pixels, uint8 [N, 28, 28], and labels, uint8 [N]."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Each client's examples, the initial model, and the clients of each round."""

    clients: Sequence[torch.Tensor]
    initial: dict[str, torch.Tensor]
    cohorts: Sequence[Sequence[int]]


def network() -> nn.Sequential:
    """Makes the network with PyTorch's own initialisation."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def draw(labels: torch.Tensor, *, num_rounds: int, seed: int) -> Draws:
    """Draws everything anew."""
    torch.manual_seed(seed)
    cohorts = [torch.randperm(NUM_CLIENTS)[:COHORT_SIZE].tolist() for _ in range(num_rounds)]
    return Draws(split(labels), network().state_dict(), cohorts)


def accuracies(train: Images, test: Images, *, draws: Draws, seed: int) -> list[float]:
    """Trains a round with each of the cohorts; gives the accuracy on the test images after each, in per cent."""
    torch.manual_seed(seed)
    images, labels = _prepared(train)
    test_images, test_labels = _prepared(test)
    model = network()
    model.load_state_dict(draws.initial)
    curve = []
    for cohort in draws.cohorts:
        held = [draws.clients[index] for index in cohort]
        total = sum(len(mine) for mine in held)
        mean = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
        for mine in held:
            for name, tensor in _trained(copy.deepcopy(model), images[mine], labels[mine]).items():
                mean[name] += tensor * (len(mine) / total)
        model.load_state_dict(mean)
        with torch.no_grad():
            right = (model(test_images).argmax(1) == test_labels).double().mean()
        curve.append(100 * float(right))
    return curve


def split(labels: torch.Tensor) -> list[torch.Tensor]:
    """Shares each label's examples out by a draw from Dirichlet(0.1); whoever got none takes one of the largest."""
    parts: list[list[torch.Tensor]] = [[] for _ in range(NUM_CLIENTS)]
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members))]
        shares = torch.distributions.Dirichlet(torch.full((NUM_CLIENTS,), ALPHA, dtype=torch.float64)).sample()
        bounds = (shares.cumsum(0)[:-1] * len(members)).round().long()
        for part, chosen in zip(parts, members.tensor_split(bounds), strict=True):
            part.append(chosen)
    clients = [torch.cat(part) for part in parts]
    for index, mine in enumerate(clients):
        if len(mine) == 0:
            largest = max(range(NUM_CLIENTS), key=lambda other: len(clients[other]))
            clients[index], clients[largest] = clients[largest][:1], clients[largest][1:]
    return clients


def _prepared(images: Images) -> Images:
    pixels, labels = images
    return (pixels / 255 - PIXEL_MEAN) / PIXEL_DEVIATION, labels.long()


def _trained(model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for batch in torch.randperm(len(labels)).split(BATCH_SIZE):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.state_dict()
