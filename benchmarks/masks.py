"""Masking ten million elements on one core, against a plain add of the same memory (`python -m benchmarks masks`)."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from aggregator_service.flow.sessions.mask_removal import mask_removal
from aggregator_service.flow.windows import window_of_sums
from benchmarks.measurements import Row, in_turns, row
from fl_protocol.masking import messages, prg, ring
from fl_protocol.masking.graph import graph_of
from fl_protocol.masking.prg import Mask
from fl_protocol.masking.quantisation import quantise
from fl_protocol.masking.ring import Extra, Words, choose_ring

NUM_ELEMENTS = 10_000_000
WINDOW = 1 << 17
NUM_MASKS = 10
REPETITIONS = 5

KEYS = [bytes([number]) * 32 for number in range(NUM_MASKS)]
MASKS = [Mask(key) for key in KEYS]
MANY = [Mask(number.to_bytes(32)) for number in range(400)]
RING = choose_ring(max_members=100, max_abs=1.0)
PLAIN = "plain add"


def measure() -> list[Row]:
    """Measures the mask add and what goes with it on one core, then over processes, and counts bytes on the wire."""
    return [*_one_core(), *_processes(), *_bytes_on_the_wire()]


def _one_core() -> Iterator[Row]:
    vector, other = np.zeros(NUM_ELEMENTS, dtype=np.uint32), np.ones(NUM_ELEMENTS, dtype=np.uint32)
    wide = np.zeros(NUM_ELEMENTS // 2, dtype=np.uint64)
    update = np.linspace(-1, 1, NUM_ELEMENTS, dtype=np.float32)
    packed = ring.pack(vector, RING.bits)
    work: dict[str, Callable[[], object]] = {
        PLAIN: lambda: np.add(vector, other, out=vector),
        "one mask, 32-bit words": lambda: prg.apply_masks(vector, MASKS[:1]),
        f"{NUM_MASKS} masks, 32-bit words": lambda: prg.apply_masks(vector, MASKS),
        f"{NUM_MASKS} masks, 64-bit words": lambda: prg.apply_masks(wide, MASKS),
        "rounding at random": lambda: _each_window(lambda at: quantise(update[at], ring=RING, key=KEYS[0])),
        f"packing to {RING.bits} bits": lambda: _each_window(lambda at: ring.pack(vector[at], RING.bits)),
        f"unpacking of {RING.bits} bits": lambda: _each_window(lambda at: _unpack(packed, at)),
    }
    seconds = in_turns(work, repetitions=REPETITIONS, clock=time.process_time)
    rates = {name: _rates(times, num_masks=NUM_MASKS if "masks" in name else 1) for name, times in seconds.items()}
    plain = float(np.median(rates[PLAIN]))
    for name, values in rates.items():
        yield row(f"{name}, 10M elements", "GB/s a core", values, of=plain, ratio_of="the plain add")


def _processes() -> Iterator[Row]:
    """Measures how long the masks of many vanished members take to come off, in this process and over all cores."""
    work: dict[str, Callable[[], object]] = {
        "in one process": lambda: prg.remove_masks(np.zeros(NUM_ELEMENTS, dtype=np.uint32), MANY),
        "over the cores, start included": _over_cores,
    }
    seconds = in_turns(work, repetitions=REPETITIONS)
    alone = float(np.median(seconds["in one process"]))
    for name, times in seconds.items():
        yield row(f"{len(MANY)} masks off 10M elements {name}", "s", times, of=alone, ratio_of="one process")


def _over_cores() -> None:
    size = window_of_sums(NUM_ELEMENTS)
    with mask_removal(MANY, num_elements=NUM_ELEMENTS, word_bytes=4) as removal:
        for first in range(0, NUM_ELEMENTS, size):
            sums = np.zeros(min(size, NUM_ELEMENTS - first), dtype=np.uint32)
            removal.ask(first, sums.size)
            removal.remove(sums, first=first)


def _bytes_on_the_wire() -> Iterator[Row]:
    for num_members, num_elements, max_weight in ((10, 1_000_000, 1), (100, 110_000, 1), (100, 110_000, 100)):
        chosen = choose_ring(
            max_members=num_members, max_abs=1.0, max_weight=max_weight, extras=[Extra("weight", max_weight)]
        )
        degree = graph_of(num_members).degree
        records = degree * (messages.SHARE_RECORD_BYTES + messages.UNMASK_RECORD_BYTES)
        sent = messages.ADVERTISE_BYTES + records + 64 + chosen.num_bytes(num_elements)
        weighted = "" if max_weight == 1 else f", weights to {max_weight}"
        name = f"sent by 1 of {num_members} with {num_elements} parameters{weighted}"
        yield row(name, "bytes a parameter", [sent / num_elements], of=4, ratio_of="4 bytes")


def _rates(seconds: Sequence[float], *, num_masks: int) -> list[float]:
    """Gives billions of bytes a second of vector that each mask was added to."""
    return [4 * NUM_ELEMENTS * num_masks / each / 1e9 for each in seconds]


def _each_window(work: Callable[[slice], object]) -> None:
    for first in range(0, NUM_ELEMENTS, WINDOW):
        work(slice(first, min(first + WINDOW, NUM_ELEMENTS)))


def _unpack(packed: bytes, at: slice) -> Words:
    width = RING.element_bytes
    return ring.unpack(memoryview(packed)[at.start * width : at.stop * width], RING.bits)
