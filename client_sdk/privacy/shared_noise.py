"""A client's share of the noise of a masked run (`distributed_skellam`), added before the update is masked.

The update is clipped, rounded at random on the run's grid so that it is no longer there than the run's noise is made
for, and integers are added to integers. Alone it is not private: that is what the masks are for.
"""

from collections.abc import Mapping

import numpy as np

from client_sdk.errors import UsageError
from client_sdk.privacy.clipping import Norm, clip
from fl_protocol.arrays import Tensor
from fl_protocol.privacy.conditional_rounding import round_conditionally
from fl_protocol.privacy.noise import Int64Array
from fl_protocol.privacy.shared_noise import shared_noise
from fl_protocol.privacy.skellam import add_skellam
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import DistributedSkellamPrivacy
from fl_protocol.specs.secure_aggregation import max_abs_delta


def noised_coordinates(delta: Mapping[str, Tensor], spec: RunSpec, *, key: bytes) -> tuple[Int64Array, float]:
    """Gives an update as one vector on the grid of `ring_of(spec)`, noised and ready to be masked, and its norm before.

    `delta` has the tensors of `coordinates_of`, in their order; NaN or infinity anywhere make it zero. `key` is 32
    bytes of `os.urandom` for this vector alone: whoever masks the same update again needs another. `spec` has its noise
    multiplier. Raises UsageError for more parameters than the noise was made for.
    """
    privacy = spec.privacy
    if not isinstance(privacy, DistributedSkellamPrivacy):
        raise UsageError(f"privacy.kind {privacy.kind!r} has no noise that clients share")
    noise, bound = shared_noise(spec), max_abs_delta(spec)
    clipped = clip(delta, clipping_norm=privacy.clipping_norm, norm=Norm.L2)
    values = [np.clip(each, -bound, bound) for each in clipped.values.values()]
    if (size := sum(each.size for each in values)) > privacy.max_parameters:
        raise UsageError(
            f"the update has {size} parameters, and privacy.max_parameters {privacy.max_parameters} is for how many at "
            "most the run's noise was made"
        )
    coordinates = round_conditionally(values, scale=noise.scale, max_norm=noise.max_norm, key=key)
    add_skellam(coordinates, key=key, first=0, variance=noise.variance)
    return coordinates, clipped.norm
