"""Corrupted images: the published corruptions, batched on tensors, with a seed for each image.

>>> import torch
>>> from lipcomp.robustness.corruptions import corrupt
>>> images = torch.rand(8, 1, 28, 28)
>>> noisy = corrupt(images, "shot_noise", 5, table="mnist", seed=0, indices=torch.arange(8))

Severities differ between benchmarks, so a table names which is meant
(:mod:`lipcomp.robustness.corruptions._tables`).

Given the same random numbers, the published code (hendrycks/robustness, google-research/mnist-c) and ours agree to
one grey level on at least 99.9% of the pixels, for every corruption, table and severity (``test_oracle.py``). Two
things differ on purpose: shot and impulse noise draw their numbers in another way, from the same distribution; frost
cuts from generated textures of the photographs' brightness and spectrum, unless you give the photographs
(:func:`~lipcomp.robustness.corruptions._weather.read_frost`). The elastic warp's lengths are in parts of the side.

What no corruption here does is the JPEG compression (quality 85) with which the published ImageNet-C was saved; see
:func:`resave_jpeg`. Its images are a different quantity: standard models lose 5.7 points more on them.
"""

from lipcomp.robustness.corruptions._corrupt import corrupt, corruption_names as corruption_names

__all__ = ["corrupt"]
