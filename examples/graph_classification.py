"""A graph neural network on graphs that lie with ten clients (`python examples/graph_classification.py`).

Each handwritten digit becomes a graph: the 2 x 2 pixel cells that hold ink are its nodes (ink and position as
features), neighbouring cells are joined. A client holds graphs of few digits, as a laboratory holds molecules of few
families. Three graph convolutions (GraphConv, Morris et al. 2019) and the largest and mean value over the nodes tell
the digit.
Needs PyTorch Geometric: `pip install torch-geometric`. Prints a table and saves a plot, in about two minutes.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from plotting import Line, print_table, save_lines
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GraphConv, global_max_pool, global_mean_pool

from client_sdk import RoundSpec, RunSpec, SimulatedRound, Tensor, TrainingSpec, TrainingTask, partitioning, simulate
from client_sdk.demo import mnist
from client_sdk.torch import TorchEvaluator, TorchTrainer, load_into, tensors_of, use_threads

NUM_CLIENTS = 10
NUM_GRAPHS = 6_000
ALPHA = 0.5
CELL = 2
GRID = 28 // CELL
INK = 0.2
SPEC = RunSpec(
    name="digits-as-graphs",
    num_rounds=15,
    round=RoundSpec(quorum=NUM_CLIENTS),
    training=TrainingSpec(local_epochs=2, batch_size=32, learning_rate=0.001),
)
Example = tuple[Batch, torch.Tensor]


class GraphClassifier(nn.Module):
    """Three graph convolutions, pooling over the nodes, two layers: [graphs] to [graphs, classes]."""

    def __init__(self, num_features: int = 3, width: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        sizes = (num_features, width, width, width)
        self.convolutions = nn.ModuleList(GraphConv(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, graphs: Batch) -> torch.Tensor:
        """Gives the classes' scores of each graph of a batch."""
        nodes = graphs.x
        for convolution in self.convolutions:
            nodes = convolution(nodes, graphs.edge_index).relu()
        pooled = [pool(nodes, graphs.batch) for pool in (global_max_pool, global_mean_pool)]
        return self.head(torch.cat(pooled, dim=1))


class Graphs(Dataset[tuple[Data, int]]):
    """Graphs with what they show."""

    def __init__(self, graphs: Sequence[Data], labels: NDArray[np.int64]) -> None:
        self._graphs, self._labels = graphs, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Data, int]:
        return self._graphs[index], int(self._labels[index])


def graph_of(image: NDArray[np.uint8]) -> Data:
    """Makes a graph of an image, uint8 [28, 28]: a node for each cell that holds ink, joined with its neighbours."""
    ink = image.reshape(GRID, CELL, GRID, CELL).mean(axis=(1, 3)) / 255
    rows, columns = np.nonzero(ink > INK)
    places = np.stack([rows, columns], axis=1)
    near = np.abs(places[:, None] - places[None]).max(axis=2) == 1
    features = np.column_stack([ink[rows, columns], 4 * rows / GRID - 2, 4 * columns / GRID - 2])
    edges = np.stack(np.nonzero(near))
    return Data(x=torch.tensor(features, dtype=torch.float32), edge_index=torch.tensor(edges, dtype=torch.int64))


def collate(examples: Sequence[tuple[Data, int]]) -> Example:
    """Makes one batch of some graphs."""
    graphs, labels = zip(*examples, strict=True)
    return Batch.from_data_list(list(graphs)), torch.tensor(labels)


def loader(data: Graphs, *, shuffle: bool) -> DataLoader[Example]:
    """Batches graphs; the trainer seeds the generator by client and round."""
    return DataLoader(data, 32, shuffle=shuffle, collate_fn=collate, generator=torch.Generator())


def federation(images: mnist.MnistSubset) -> list[Graphs]:
    """Splits the training graphs over the clients, so that each one has mostly three or four digits."""
    graphs = [graph_of(image) for image in images.train_images[:NUM_GRAPHS]]
    labels = images.train_labels[:NUM_GRAPHS].astype(np.int64)
    shares = partitioning.dirichlet(labels, NUM_CLIENTS, alpha=ALPHA, seed=0, min_examples=50)
    return [Graphs([graphs[index] for index in mine], labels[mine]) for mine in shares]


def accuracy_of(model: Mapping[str, Tensor], held_out: Graphs) -> Mapping[str, float]:
    """Measures a global model on graphs that no client has."""
    module = GraphClassifier()
    load_into(module, model)
    return TorchEvaluator(module, loader(held_out, shuffle=False)).measure().metrics


def main() -> None:
    """Trains with ten clients, then with two of them alone, and compares."""
    use_threads(1)
    images = mnist.load()
    clients = federation(images)
    held_out = Graphs([graph_of(image) for image in images.test_images], images.test_labels.astype(np.int64))
    sizes = ", ".join(str(len(client)) for client in clients)
    print(f"{NUM_CLIENTS} clients with {sizes} graphs; accuracy on {len(held_out)} graphs that none of them has")

    def trainer(index: int) -> TorchTrainer:
        data = loader(clients[index], shuffle=True)
        return TorchTrainer(GraphClassifier(), data, optimizer=adam, client=f"client-{index}")

    def tell(done: SimulatedRound) -> None:
        print(f"round {done.round.number:2}/{SPEC.num_rounds}  accuracy {done.measured['accuracy']:.2%}", flush=True)

    torch.manual_seed(0)
    done = simulate(
        SPEC,
        tensors_of(GraphClassifier()),
        trainer,
        num_clients=NUM_CLIENTS,
        measure=lambda model: accuracy_of(model, held_out),
        on_round=tell,
    )
    together = [one.measured["accuracy"] for one in done.rounds]
    alone = [train_alone(client, held_out) for client in clients[:2]]
    print_table(
        ("trained by", "accuracy"),
        [("all ten, together", f"{together[-1]:.2%}")]
        + [(f"client {index} alone", f"{accuracy:.2%}") for index, accuracy in enumerate(alone)],
    )
    lines = [Line("ten clients together", tuple(enumerate(together, start=1)))]
    lines += [Line(f"client {index} alone", ((1, at), (SPEC.num_rounds, at))) for index, at in enumerate(alone)]
    save_lines("graph_classification.svg", lines, title="Digits as graphs", x="round", y="accuracy on held-out graphs")


def train_alone(data: Graphs, held_out: Graphs) -> float:
    """Trains on one client's graphs for as many epochs as it had in the federation."""
    torch.manual_seed(0)
    module = GraphClassifier()
    training = SPEC.training.model_copy(update={"local_epochs": SPEC.num_rounds * SPEC.training.local_epochs})
    trained = TorchTrainer(module, loader(data, shuffle=True), optimizer=adam)(
        TrainingTask(run_id="", round=1, attempt=1, base_version=0, model=tensors_of(module), training=training)
    )
    return accuracy_of(trained.tensors, held_out)["accuracy"]


def adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Makes Adam (Kingma and Ba 2015) the local optimizer; each task begins with fresh moments."""
    return torch.optim.Adam(parameters, lr=learning_rate)


if __name__ == "__main__":
    main()
