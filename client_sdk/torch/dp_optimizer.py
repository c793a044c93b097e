"""Opacus' optimizer with noise from a keyed generator on a grid of integers, in place of PyTorch's.

Opacus draws its noise in floating point from PyTorch's process-wide generator, which whoever knows the seed can repeat,
and adds it in floating point, which lets the last bits of a sum tell its summands apart (Mironov 2012). Its own answer
(`secure_mode`) needs a package that no present PyTorch can load. Here the sum of clipped gradients is rounded to the
grid, integer noise is added, and only then is it a floating-point number again.
"""

import os
from typing import Any, Final

import numpy as np
import torch
from opacus.optimizers import DPOptimizer  # type: ignore[import-untyped]

from fl_protocol.privacy import lattice
from fl_protocol.privacy.noise import KEY_BYTES, add_lattice_gaussian


class LatticeOptimizer(DPOptimizer):
    """Clips each example's gradient, adds them up and adds lattice noise; NaN and infinity count as zero gradients.

    Two sums that differ by one example lie at most max_grad_norm apart, and sqrt(m) steps further once each of the m
    coordinates is rounded: the noise is scaled to that. The gradients themselves are in the model's own type, whose
    rounding is not charged.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        num_elements = sum(parameter.numel() for parameter in self.params)
        # `sensitivity` allows for sqrt(m) / 2 steps, the rounding of one vector; here two are rounded.
        steps = lattice.sensitivity(self.max_grad_norm, 4 * num_elements)
        self._stddev: Final = self.noise_multiplier * steps

    def without_examples(self) -> None:
        """Stands in for the backward pass of an empty batch: no gradients, and noise all the same."""
        for parameter in self.params:
            parameter.grad_sample = torch.zeros((0, *parameter.shape), dtype=parameter.dtype, device=parameter.device)

    def clip_and_accumulate(self) -> None:
        """Clips and adds up the examples' gradients, with zero in place of a gradient that is not finite."""
        finite: torch.Tensor | None = None
        for sample in self.grad_samples:
            of_parameter = torch.isfinite(sample.flatten(start_dim=1)).all(dim=1)
            finite = of_parameter if finite is None else finite & of_parameter
        if finite is not None and not bool(finite.all()):
            for parameter in self.params:
                parameter.grad_sample = self._get_flat_grad_sample(parameter).clone()
                parameter.grad_sample[~finite] = 0
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Adds the step's noise, from a key of its own."""
        key, first = os.urandom(KEY_BYTES), 0
        for parameter in self.params:
            clipped = parameter.summed_grad.detach().to("cpu", torch.float64).numpy().reshape(-1)
            totals = lattice.quantise(clipped, factor=1.0, clipping_norm=self.max_grad_norm)
            add_lattice_gaussian(totals, key=key, first=first, stddev=self._stddev)
            noised = totals.astype(np.float64) * lattice.step(self.max_grad_norm)
            parameter.grad = torch.from_numpy(noised).view(parameter.shape).to(parameter.device, parameter.dtype)
            first += totals.size
