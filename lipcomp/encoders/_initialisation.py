"""How an encoder's weights start: the official code's initialisation, drawn from a generator.

Kernels of convolutions and linear maps: a normal truncated at two standard deviations, of variance 1/fan-in after the
truncation (TensorFlow's ``VarianceScaling(1, "fan_in", "truncated_normal")``); biases 0. Batch norm starts at gamma 1,
beta 0, the last one of a residual block at gamma 0 (:class:`lipcomp.encoders.ResNet` does that).
"""

import math

import torch
from torch import Generator, nn

# Standard deviation of a standard normal truncated to [-2, 2].
_TRUNCATED_STD = 0.87962566103423978


def variance_scaling_(network: nn.Module, generator: Generator) -> None:
    """Draw every kernel of ``network`` anew, in the order of its modules, and set the biases to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            std = 1 / math.sqrt(fan_in) / _TRUNCATED_STD
            with torch.no_grad():
                nn.init.trunc_normal_(module.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
