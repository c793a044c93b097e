"""How a learning rate changes over a run's rounds; the server's and the clients' rates use the same schedules.

A rate is computed with additions, multiplications and divisions alone, which IEEE 754 rounds alike everywhere: the
`cos` and `pow` of two C libraries may differ in the last bit, and a model that was made with one could then not be
verified with the other.
"""

import math
from typing import Annotated, Final, Literal

from pydantic import Discriminator, Field, Tag

from fl_protocol.messages import RequestMessage, kind_or

MAX_ROUNDS: Final = 1_000_000

WarmupRounds = Annotated[int, Field(ge=0, le=MAX_ROUNDS)]
"""For so many rounds w the rate rises linearly: round t has t / (w + 1) of the full rate, which round w + 1 has."""


class ConstantSchedule(RequestMessage):
    """The same rate in every round after the warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_rounds: WarmupRounds = 0


class StepSchedule(RequestMessage):
    """The rate is multiplied by `factor` after every `every` rounds, counted from the end of the warm-up."""

    kind: Literal["step"]
    every: Annotated[int, Field(ge=1, le=MAX_ROUNDS)]
    factor: Annotated[float, Field(gt=0, le=1)]
    warmup_rounds: WarmupRounds = 0


class CosineSchedule(RequestMessage):
    """The rate falls along half a cosine (Loshchilov & Hutter 2017, SGDR, arXiv 1608.03983, without restarts).

    `num_rounds` counts from round 1, the warm-up included; the rate would be `final_factor` of the full one in the
    round after them, and stays there.
    """

    kind: Literal["cosine"]
    num_rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)]
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_rounds: WarmupRounds = 0


class ExponentialSchedule(RequestMessage):
    """The rate is multiplied by `factor` after every round that follows the warm-up."""

    kind: Literal["exponential"]
    factor: Annotated[float, Field(gt=0, le=1)]
    warmup_rounds: WarmupRounds = 0


AnySchedule = ConstantSchedule | StepSchedule | CosineSchedule | ExponentialSchedule

Schedule = Annotated[
    Annotated[ConstantSchedule, Tag("constant")]
    | Annotated[StepSchedule, Tag("step")]
    | Annotated[CosineSchedule, Tag("cosine")]
    | Annotated[ExponentialSchedule, Tag("exponential")],
    Discriminator(kind_or("constant")),
]
"""The field's type in a spec: a schedule that does not say its `kind` is constant."""


def learning_rate(schedule: AnySchedule, base: float, round_number: int) -> float:
    """Gives the rate of a round, numbered from 1: `base` times what the warm-up or the schedule leaves of it."""
    warmup = schedule.warmup_rounds
    if round_number <= warmup:
        return base * (round_number / (warmup + 1))
    return base * _factor(schedule, round_number - warmup - 1)


def check_schedule(schedule: AnySchedule, base: float, *, field: str, num_rounds: int) -> None:
    """Raises ValueError if a schedule cannot serve a run of so many rounds; `field` is its dotted name in the spec."""
    last = f"num_rounds {num_rounds}"
    warmup = schedule.warmup_rounds
    if isinstance(schedule, CosineSchedule) and schedule.num_rounds < num_rounds:
        raise ValueError(f"{field}.num_rounds {schedule.num_rounds} ends before {last}; it must be at least that")
    if warmup >= num_rounds:
        raise ValueError(
            f"{field}.warmup_rounds {warmup} does not end before {last}; it must be at most {num_rounds - 1}"
        )
    if learning_rate(schedule, base, num_rounds) == 0:
        raise ValueError(f"{field} of kind {schedule.kind} brings learning_rate {base} to 0 before {last}")


def _factor(schedule: AnySchedule, elapsed: int) -> float:
    match schedule:
        case ConstantSchedule():
            return 1.0
        case StepSchedule():
            return _power(schedule.factor, elapsed // schedule.every)
        case ExponentialSchedule():
            return _power(schedule.factor, elapsed)
        case CosineSchedule():
            length = schedule.num_rounds - schedule.warmup_rounds
            fall = 0.0 if elapsed >= length else _half_cosine(elapsed / length)
            return schedule.final_factor + (1 - schedule.final_factor) * fall


def _power(factor: float, exponent: int) -> float:
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= factor
        factor *= factor
        exponent >>= 1
    return result


def _half_cosine(progress: float) -> float:
    # (1 + cos(pi p)) / 2 = cos(pi p / 2)^2 for p in 0..1, by 12 terms of the series: the next one is below 1e-18.
    angle = math.pi * progress / 2
    square = angle * angle
    cosine = 1.0
    for term in range(24, 0, -2):
        cosine = 1 - cosine * square / (term * (term - 1))
    return cosine * cosine
