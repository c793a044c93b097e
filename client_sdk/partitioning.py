"""Splits one data set over many clients, as the literature does: for simulations, examples and tests.

Every function gives a list with one int64 array of indices for each client, ascending; together they hold each example
exactly once. The same arguments with the same integer `seed` give the same split; a numpy Generator is drawn from.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client_sdk.errors import UsageError

Partition = list[NDArray[np.int64]]
"""For each client the indices of its examples."""

Seed = int | np.random.Generator

MIN_ALPHA: Final = 1e-3
MAX_ALPHA: Final = 1e6


def iid(num_examples: int, num_clients: int, *, seed: Seed) -> Partition:
    """Deals examples at random; the sizes differ by one at most.

    Raises UsageError unless each client can have an example.
    """
    _check_sizes(num_examples, num_clients, min_examples=1)
    order = np.random.default_rng(seed).permutation(num_examples)
    return [np.sort(part) for part in np.array_split(order, num_clients)]


def dirichlet(labels: ArrayLike, num_clients: int, *, alpha: float, seed: Seed, min_examples: int = 1) -> Partition:
    """Skews the labels: each label's examples are shared out by a draw from Dirichlet(alpha) (Yurochkin et al. 2019).

    The smaller `alpha`, the fewer labels a client sees: 100 is nearly IID, 0.1 leaves most clients two or three labels.
    A client that ends below `min_examples` is filled up with random examples of the clients that hold most, so that a
    split always comes out. Raises UsageError unless alpha is from 0.001 to 1e6 and each client can have `min_examples`.
    """
    of_example, num_labels = _codes(labels)
    _check_sizes(of_example.size, num_clients, min_examples=min_examples)
    generator, shares = np.random.default_rng(seed), _alphas(alpha, num_clients)
    owner = np.empty(of_example.size, dtype=np.int64)
    for label in range(num_labels):
        members = generator.permutation(np.flatnonzero(of_example == label))
        counts = _apportion(members.size, generator.dirichlet(shares))
        owner[members] = np.repeat(np.arange(num_clients), counts)
    _fill_up(owner, num_clients=num_clients, min_examples=min_examples, generator=generator)
    return _by_owner(owner, num_clients)


def pathological(labels: ArrayLike, num_clients: int, *, labels_per_client: int, seed: Seed) -> Partition:
    """Gives each client exactly `labels_per_client` labels, the shards of McMahan et al. 2017 cut between labels.

    Each label goes to as many clients as any other, give or take one, and is shared out evenly among them. Raises
    UsageError if there are fewer labels than a client should have, more than all clients can have, or fewer examples of
    a label than clients that should hold it.
    """
    of_example, num_labels = _codes(labels)
    _check_sizes(of_example.size, num_clients, min_examples=1)
    if not 1 <= labels_per_client <= num_labels:
        raise UsageError(f"labels_per_client {labels_per_client} must be 1 to {num_labels}, the number of labels")
    if labels_per_client * num_clients < num_labels:
        raise UsageError(
            f"{num_clients} clients with labels_per_client {labels_per_client} leave out some of {num_labels} labels; "
            f"labels_per_client must be at least {-(-num_labels // num_clients)}"
        )
    generator = np.random.default_rng(seed)
    held = _deal_labels(num_labels, num_clients, labels_per_client=labels_per_client, generator=generator)
    owner = np.empty(of_example.size, dtype=np.int64)
    for label in range(num_labels):
        members = generator.permutation(np.flatnonzero(of_example == label))
        holders = np.flatnonzero(held[:, label])
        if members.size < holders.size:
            raise UsageError(
                f"label number {label} (in sorted order) has {members.size} examples for {holders.size} clients; "
                "lower num_clients or labels_per_client"
            )
        for holder, part in zip(holders, np.array_split(members, holders.size), strict=True):
            owner[part] = holder
    return _by_owner(owner, num_clients)


def quantity_skew(num_examples: int, num_clients: int, *, alpha: float, seed: Seed, min_examples: int = 1) -> Partition:
    """Skews the sizes: each client gets `min_examples`, the rest is shared out by a draw from Dirichlet(alpha).

    Which examples a client gets is random, so that only the sizes differ (Li et al. 2022). Raises UsageError as
    `dirichlet` does.
    """
    _check_sizes(num_examples, num_clients, min_examples=min_examples)
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(_alphas(alpha, num_clients))
    sizes = min_examples + _apportion(num_examples - num_clients * min_examples, shares)
    parts = np.split(generator.permutation(num_examples), np.cumsum(sizes)[:-1])
    return [np.sort(part) for part in parts]


def by_attribute(values: ArrayLike, num_clients: int | None = None, *, seed: Seed) -> Partition:
    """Splits by a natural attribute of the examples, such as the hospital, the writer or the scanner.

    Without `num_clients` each value is one client, in the values' sorted order. With more clients than values the
    larger values are split at random over several clients, in the same order; with fewer, whole values are put
    together so that the sizes are near each other. Raises UsageError unless each client can have an example.
    """
    of_example, num_values = _codes(values)
    num_clients = num_values if num_clients is None else num_clients
    _check_sizes(of_example.size, num_clients, min_examples=1)
    counts = np.bincount(of_example, minlength=num_values)
    if num_clients < num_values:
        return _by_owner(_pack(counts, num_clients)[of_example], num_clients)
    generator, parts = np.random.default_rng(seed), []
    for value, num_parts in enumerate(_clients_of_values(counts, num_clients)):
        members = generator.permutation(np.flatnonzero(of_example == value))
        parts += [np.sort(part) for part in np.array_split(members, num_parts)]
    return parts


def _codes(labels: ArrayLike) -> tuple[NDArray[np.int64], int]:
    """Numbers the labels 0..L-1 in their sorted order."""
    values: NDArray[Any] = np.asarray(labels)
    if values.ndim != 1:
        raise UsageError(f"labels have the shape {list(values.shape)}; one label for each example is needed")
    found, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.int64), len(found)


def _check_sizes(num_examples: int, num_clients: int, *, min_examples: int) -> None:
    if num_clients < 1:
        raise UsageError(f"num_clients {num_clients} must be at least 1")
    if min_examples < 0:
        raise UsageError(f"min_examples {min_examples} must not be negative")
    if num_examples < num_clients * min_examples:
        raise UsageError(f"{num_examples} examples are too few for {num_clients} clients with at least {min_examples}")


def _alphas(alpha: float, num_clients: int) -> NDArray[np.float64]:
    if not MIN_ALPHA <= alpha <= MAX_ALPHA:
        raise UsageError(f"alpha {alpha} must be {MIN_ALPHA} to {MAX_ALPHA:g}")
    return np.full(num_clients, float(alpha))


def _apportion(total: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rounds `total` x shares to whole numbers that add up to `total`, by the largest remainders."""
    exact = shares * (total / shares.sum())
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return np.asarray(counts)


def _fill_up(owner: NDArray[np.int64], *, num_clients: int, min_examples: int, generator: np.random.Generator) -> None:
    sizes = np.bincount(owner, minlength=num_clients)
    for client in np.flatnonzero(sizes < min_examples):
        while sizes[client] < min_examples:
            largest = int(sizes.argmax())
            taken = generator.choice(np.flatnonzero(owner == largest))
            owner[taken] = client
            sizes[largest] -= 1
            sizes[client] += 1


def _deal_labels(
    num_labels: int, num_clients: int, *, labels_per_client: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Chooses each client's labels: always those with the most places left, so that every place can be filled."""
    places = num_clients * labels_per_client
    left = np.full(num_labels, places // num_labels, dtype=np.int64)
    left[generator.permutation(num_labels)[: places % num_labels]] += 1
    held = np.zeros((num_clients, num_labels), dtype=np.bool_)
    for client in range(num_clients):
        ties = generator.permutation(num_labels)
        chosen = ties[np.argsort(-left[ties], kind="stable")[:labels_per_client]]
        held[client, chosen] = True
        left[chosen] -= 1
    return held


def _pack(counts: NDArray[np.int64], num_clients: int) -> NDArray[np.int64]:
    """Puts each value with the client that has least so far, the largest value first."""
    loads = np.zeros(num_clients, dtype=np.int64)
    client_of_value = np.empty(counts.size, dtype=np.int64)
    for value in np.argsort(-counts, kind="stable"):
        client = int(loads.argmin())
        client_of_value[value] = client
        loads[client] += counts[value]
    return client_of_value


def _clients_of_values(counts: NDArray[np.int64], num_clients: int) -> NDArray[np.int64]:
    """Gives each value a client, and each further client to the value whose clients hold most."""
    clients = np.ones(counts.size, dtype=np.int64)
    for _ in range(num_clients - counts.size):
        clients[int((counts / clients).argmax())] += 1
    return clients


def _by_owner(owner: NDArray[np.int64], num_clients: int) -> Partition:
    order = np.argsort(owner, kind="stable").astype(np.int64)
    bounds = np.cumsum(np.bincount(owner, minlength=num_clients))[:-1]
    return np.split(order, bounds)
