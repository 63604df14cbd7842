# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of the bounds
#
# How fast can the output of an encoder change with its input? This notebook measures one trained encoder: the bounds
# that a pair of images proves, all pairs of a set, the local constant that no pair can exceed, and a search. Formula
# numbers refer to `docs/theory.md`. It takes about a minute on a CPU.

# %% [markdown]
# First train the encoders, with the command that you would type in the root of the clone. A finished run is not
# trained again, and the notebooks share their runs.
#
# `mean_value_check`, from a module whose name begins with an underscore, is private: it may change in any release.

# %%
import os
import subprocess
import sys
from pathlib import Path

import torch

root = next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "train" / "pretrain.py").exists())
runs = Path(os.environ.get("LIPCOMP_NOTEBOOK_RUNS", root / "runs" / "notebooks"))
torch.set_num_threads(min(2, os.cpu_count() or 1))


def trained(recipe, seed=0, epochs=3):
    out = runs / f"{recipe}-{seed}"
    if not (out / "model.safetensors").exists():
        command = [sys.executable, "-m", "train.pretrain", recipe, "--seed", str(seed), "--out", str(out)]
        command += ["--epochs", str(epochs), "--set", "warmup_epochs=0.3", "--evaluate-epochs", "0"]
        subprocess.run([*command, "--device", "cpu"], cwd=root, check=True)
    return out / "model.safetensors"


# %%
import matplotlib.pyplot as plt

import lipcomp
from lipcomp.bound import all_pairs, measure_pairs, random_pairs, search_ball
from lipcomp.data import batches
from lipcomp.jacobian._mean_value import mean_value_check

checkpoint = lipcomp.load_encoder(trained("mnist_c_simclr"))
encoder, kappa = checkpoint.encoder, checkpoint.concentration
digits = lipcomp.load_set("mnist5k", "test")
images = digits.batch(torch.arange(200))
print(checkpoint.describe())
print(f"kappa_e = {kappa:g}, images {tuple(images.shape)}, pixels in [{images.min():g}, {images.max():g}]")

# %% [markdown]
# ## One pair
#
# Two images at distance Delta, whose mean directions are a chord delta apart, prove five lower bounds of different
# constants. The published bound (3.1) is far below what the same pair proves about the same density (3.4).

# %%
with torch.no_grad():
    mu = encoder(images)
first, second = 0, 1
distance = (images[first] - images[second]).norm()
pair = lipcomp.lower_bounds(mu[[first]], mu[[second]], distance[None], concentration=kappa)
for bound in pair.bounds.values():
    print(f"{bound.label:34s} {bound.maximum:10.4f}  {bound.unit}")
print(
    f"\nthe supremum is {pair['supremum'].maximum / pair['published'].maximum:.1f} times the published bound"
)

# %% [markdown]
# That ratio is sqrt(2 kappa / A) at every angle: it depends on the concentration, not on the pair, and kappa is a
# hyperparameter. So **compare models by (3.5)**, delta / Delta, which does not contain kappa.

# %%
from lipcomp.distributions import VonMisesFisher

A = float(VonMisesFisher(mu[0].double(), kappa).mean_resultant_length)
print(f"sqrt(2 kappa / A) = {(2 * kappa / A) ** 0.5:.1f}")
assert abs((2 * kappa / A) ** 0.5 / (pair["supremum"].maximum / pair["published"].maximum) - 1) < 1e-6

# %% [markdown]
# ## All pairs, and pairs that are close
#
# The maximum over all pairs of a set is a better lower bound. Pairs made by a small random step are much closer and
# prove more: for distant images, the constant is averaged over the whole segment between them.

# %%
every = all_pairs(mu, images, concentration=kappa)
steps = measure_pairs(
    encoder,
    random_pairs(
        batches(digits, batch_size=100, indices=torch.arange(200)),
        0.5,
        generator=torch.Generator().manual_seed(0),
    ),
    concentration=kappa,
)
for name, result in (("all pairs", every), ("random steps of 0.5", steps)):
    bound = result["direction"]
    print(
        f"{name:20s} {bound.n:6d} pairs   median {bound.quantiles[0.5]:.3f}   largest {bound.maximum:.3f}",
        end="   ",
    )
    print(f"attained by images {bound.witness.pair} at distance {bound.witness.distance:.2f}")

# %% [markdown]
# ## What no pair can exceed
#
# At distance zero the ratio becomes the largest singular value of the Jacobian, the **local constant** (4.4). By the
# mean value inequality, a pair never exceeds the largest local constant on the segment between its images. This check
# tests both computations.

# %%
local = lipcomp.spectral_norm(encoder, images)
print(
    f"sigma_max: median {local.sigma.median():.3f}, largest {local.sigma.max():.3f} at image {local.witness}"
)
print(
    f"{int(local.converged.sum())} of {len(images)} converged, {local.iterations.float().mean():.1f} iterations each"
)
check = mean_value_check(encoder, images[:20], images[20:40])
assert check.holds.all()
share = float((check.ratio / check.largest_sigma).max())
print(f"20 segments: a pair reaches {share:.0%} of its segment's largest sigma at most")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for values, label in (
    (every["direction"].values, "all pairs, each image's best"),
    (steps["direction"].values, "random steps of 0.5"),
    (local.sigma, "local constant sigma_max"),
):
    axes[0].hist(values.log10().numpy(), bins=30, alpha=0.6, label=label)
axes[0].set(xlabel="log10 of 1 / pixel L2", ylabel="images")
axes[0].legend(fontsize=7)
direction = local.right[local.witness, 0]
axes[1].imshow(direction, cmap="coolwarm", vmin=-direction.abs().max(), vmax=direction.abs().max())
axes[1].set_title(f"what moves image {local.witness} most", fontsize=9)
axes[1].axis("off")
plt.show()

# %% [markdown]
# ## Searching a ball
#
# How large is the local constant near an image? A search moves a pair of points in the ball uphill and returns sigma
# at the best point (4.5). The result is again a lower bound, of the constant over the ball.

# %%
found = search_ball(encoder, images[:8], radius=0.5, starts=2, steps=15)
gain = found.sigma / found.sigma_at_image
print(f"sigma in the ball of radius 0.5 is {gain.median():.2f} times that at its centre (median of 8 images)")
assert (found.sigma >= found.sigma_at_image * (1 - 1e-4)).all()

# %% [markdown]
# ## Summary
#
# - Every number here is a **lower** bound of a Lipschitz constant, and comes with the pair or point that attains it.
# - Pixels are raw, in [0, 1]: normalisation and batch norm are part of the encoder. Otherwise two models are measured
#   in different units.
# - (3.1) to (3.4) contain kappa. Compare models by (3.5) or by sigma_max.
