"""Flower and NVFlare do the same work in the same run (`python -m benchmarks beside_peers`, after `make bench-peers`).

From the last of 50 updates of 10M parameters to the new model, beside the peers' own code that decodes and averages
them in memory; and a whole round of four instant clients, in plain HTTP and the SDK's, beside Flower's deployment and
NVFlare's simulator, whose clients are those frameworks' own.
"""

import asyncio
from typing import Final

import numpy as np

from benchmarks.eager import MANY, NUM_ELEMENTS, seconds_to_model
from benchmarks.measurements import Row, row
from benchmarks.peers import environments, flower_deployment
from benchmarks.server import Server, fresh_server
from benchmarks.whole_round import CLIENTS, NUM_CLIENTS, NUM_ROUNDS, TakePart, Values, round_seconds, warm

REPETITIONS: Final = 3
SIZES: Final = (1_000_000, 10_000_000)
NUM_NVFLARE_ROUNDS: Final = 6
NUM_FLOWER_ROUNDS: Final = 3


def measure() -> list[Row]:
    """Measures FedQuorum with file blobs and whichever of the peers is installed."""
    installed = [peer for peer, python in environments.PYTHONS.items() if python.exists()]
    return [*_aggregation(installed), *_rounds(installed)]


def _aggregation(installed: list[str]) -> list[Row]:
    values = np.random.default_rng(0).normal(scale=0.01, size=NUM_ELEMENTS).astype(np.float32)
    with fresh_server("sqlite", blob_store="files") as server:
        seconds = asyncio.run(seconds_to_model(server, values, num_updates=MANY))
        peak = server.peak_mebibytes()
    own, what = float(np.median(seconds)), f"{MANY} x {NUM_ELEMENTS // 10**6}M"
    rows = [row(f"{what}: FedQuorum, last update to model", "s", seconds)]
    rows.append(row(f"{what}: FedQuorum's server, peak memory", "MiB", [peak]))
    for peer in installed:
        told = environments.aggregation(peer, num_updates=MANY, num_elements=NUM_ELEMENTS, repetitions=REPETITIONS)
        name, ratio_of = f"{what}: {peer} {told['version']}", "FedQuorum's"
        rows.append(row(f"{name}, decode and average", "s", told["seconds"], of=own, ratio_of=ratio_of))
        rows.append(
            row(f"{name}, peak memory with the updates", "MiB", [told["peak_mebibytes"]], of=peak, ratio_of=ratio_of)
        )
    return rows


def _rounds(installed: list[str]) -> list[Row]:
    own = {size: _own_rounds(size) for size in SIZES}
    rows = [
        row(f"round, {_millions(size)}: FedQuorum, {clients}", "s", seconds)
        for size, measured in own.items()
        for clients, seconds in measured.items()
    ]
    for peer, by_size in _peers_rounds(installed).items():
        for size, seconds in by_size.items():
            for clients, measured in own[size].items():
                name, of = f"round, {_millions(size)}: {peer}", float(np.median(measured))
                rows.append(row(name, "s", seconds, of=of, ratio_of=f"FedQuorum's, {clients}"))
    return rows


def _own_rounds(size: int) -> dict[str, list[float]]:
    """Gives how long rounds took with each kind of clients."""
    values = np.random.default_rng(0).normal(scale=0.01, size=size).astype(np.float32)
    with fresh_server("sqlite", blob_store="files") as server:
        return {clients: _warm_rounds(server, values, take_part) for clients, take_part in CLIENTS.items()}


def _warm_rounds(server: Server, values: Values, take_part: TakePart) -> list[float]:
    warm(values, num_rounds=NUM_ROUNDS[values.size])
    return asyncio.run(round_seconds(server, values, num_rounds=NUM_ROUNDS[values.size], take_part=take_part))


def _peers_rounds(installed: list[str]) -> dict[str, dict[int, list[float]]]:
    peers: dict[str, dict[int, list[float]]] = {}
    if "Flower" in installed:
        peers["Flower's deployment"] = flower_deployment.rounds(
            num_clients=NUM_CLIENTS, num_elements=SIZES, num_rounds=NUM_FLOWER_ROUNDS
        )
    if "NVFlare" in installed:
        seconds = environments.nvflare_rounds(
            num_clients=NUM_CLIENTS, num_elements=SIZES[0], num_rounds=NUM_NVFLARE_ROUNDS
        )
        peers["NVFlare's simulator"] = {SIZES[0]: seconds}
    return peers


def _millions(size: int) -> str:
    return f"{size // 10**6}M parameters"
