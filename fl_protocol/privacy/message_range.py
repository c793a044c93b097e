"""Whether the messages that clients noise themselves fit into what the server accepts."""

from typing import Final

from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import LocalGaussianPrivacy, LocalLaplacePrivacy

_GAUSSIAN_WIDTHS: Final = 10.0
"""A Gaussian variable lies beyond 10 standard deviations once in 10^22."""
_LAPLACE_WIDTHS: Final = 50.0
"""A Laplace variable lies beyond 50 times its scale once in 10^21."""


def check_message_range(spec: RunSpec) -> None:
    """Raises ValueError if noise alone would have a client's update refused now and then as out of range.

    `spec` has its noise multiplier. Other kinds of privacy are not looked at.
    """
    privacy = spec.privacy
    if not isinstance(privacy, LocalLaplacePrivacy | LocalGaussianPrivacy) or privacy.noise_multiplier is None:
        return
    widths = _LAPLACE_WIDTHS if isinstance(privacy, LocalLaplacePrivacy) else _GAUSSIAN_WIDTHS
    noise = 2 * privacy.noise_multiplier * privacy.clipping_norm
    reach = privacy.clipping_norm + widths * noise
    if reach > spec.strategy.max_abs_delta:
        raise ValueError(
            f"strategy.max_abs_delta {spec.strategy.max_abs_delta:g} is less than the {reach:.4g} that a message may "
            f"reach by its noise, whose width is {noise:.4g} (twice privacy.clipping_norm x noise_multiplier): updates "
            "would be refused by chance; set it at least so high, or the clipping norm lower"
        )
