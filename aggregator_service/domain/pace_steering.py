"""When a client that found nothing to do should ask again (pace steering, Bonawitz et al. 2019, section 2.3)."""

from typing import Final

MIN_PAUSE_SECONDS: Final = 1
MAX_PAUSE_SECONDS: Final = 300
_CHECK_INS_PER_SECOND: Final = 100
_CHECK_INS_PER_PLACE: Final = 10


def pause_seconds(*, num_clients: int, cohort_size: int, round_seconds: float, is_drawn: bool, fraction: float) -> int:
    """Gives the whole seconds after which a client should ask again, from 1 to 300.

    `num_clients` are those seen lately, `round_seconds` is how long a round is expected to take, and `fraction` in
    [0, 1) is the client's own chance, which spreads clients over half to one and a half times the mean. While there are
    at most ten clients for each place everyone is wanted and asks again at once; beyond that, ten ask for each place in
    the time of a round. Where the server draws who takes part, the chosen must hear of it: for the round's sake nobody
    pauses for longer than a tenth of it. Whatever the round, no more than 100 clients ask in a second, until the bound
    of 300 seconds makes it more.
    """
    surplus = max(0.0, num_clients / (_CHECK_INS_PER_PLACE * cohort_size) - 1)
    mean = round_seconds * (min(surplus, 0.1) if is_drawn else surplus)
    mean = max(mean, num_clients / _CHECK_INS_PER_SECOND, MIN_PAUSE_SECONDS)
    # Bounded before it is spread: else those beyond the bound would all come at the same moment.
    return max(MIN_PAUSE_SECONDS, int(min(mean, MAX_PAUSE_SECONDS / 1.5) * (0.5 + fraction)))
