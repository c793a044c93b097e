"""Noise that a client adds to its own message (`local_laplace`, `local_gaussian`), on the public grid of integers.

The update is clipped, rounded to multiples of the grid's step (a power of two that the clipping norm alone decides),
and integer noise is added to the integers. Any two updates are neighbours for whoever reads the message, and they lie
up to twice the clipping norm apart, so the noise is as wide as the multiplier times twice the sensitivity.

The message carries each noised integer times the step in the tensor's own type. Float64 holds that exactly. Float32 has
24 bits and the noised integers may have more, so it is rounded, half to even: but after the noise, and from the noised
integer alone. What is sent is a function of what the mechanism released, whatever the update was, and tells no more
than that. It is floats added to floats that tell the summands apart by their last bits (Mironov 2012); there are none.
"""

from collections.abc import Mapping

import numpy as np

from client_sdk.privacy.clipping import Norm, clip, like
from fl_protocol.arrays import Tensor
from fl_protocol.privacy import lattice
from fl_protocol.privacy.noise import add_lattice_gaussian, add_lattice_laplace
from fl_protocol.specs.privacy import LocalLaplacePrivacy, LocalPrivacy


def noised(
    delta: Mapping[str, Tensor], privacy: LocalPrivacy, *, noise_multiplier: float, key: bytes
) -> tuple[dict[str, Tensor], float]:
    """Clips and noises floating-point tensors as one vector in their order, and gives them with the norm they had.

    `noise_multiplier` is the noise (standard deviation, or scale of Laplace noise) over twice the clipping norm; `key`
    is 32 fresh bytes of `os.urandom`, for this message alone.
    """
    is_laplace = isinstance(privacy, LocalLaplacePrivacy)
    clipped = clip(delta, clipping_norm=privacy.clipping_norm, norm=Norm.L1 if is_laplace else Norm.L2)
    num_elements = sum(values.size for values in clipped.values.values())
    sensitivity = (lattice.l1_sensitivity if is_laplace else lattice.sensitivity)(privacy.clipping_norm, num_elements)
    width, step = 2 * noise_multiplier * sensitivity, lattice.step(privacy.clipping_norm)
    sent: dict[str, Tensor] = {}
    first = 0
    for name, values in clipped.values.items():
        totals = lattice.quantise(values.reshape(-1), factor=1.0, clipping_norm=privacy.clipping_norm)
        if is_laplace:
            add_lattice_laplace(totals, key=key, first=first, scale=width)
        else:
            add_lattice_gaussian(totals, key=key, first=first, stddev=width)
        sent[name] = like(delta[name], (totals.astype(np.float64) * step).reshape(values.shape))
        first += totals.size
    return sent, clipped.norm
