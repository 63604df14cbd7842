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
# # Pairs and compression
#
# Does compression make an encoder smoother? C-SimCLR is compared with the SimCLR that has the same seed: equal
# initial weights, equal data order, equal augmentations, one field of the recipe replaced. About a minute on a CPU;
# three epochs show how to do it, but give no result (`make study` does).

# %% [markdown]
# First train the encoders, with the command that you would type in the root of the clone. A finished run is not
# trained again, and the notebooks share their runs.
#
# Names imported from modules that begin with an underscore (`view_pairs`, `DigitViews`, `closed_residual`) are
# private: they may change in any release.

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
import numpy as np

import lipcomp
from lipcomp.bound import measure_pairs
from lipcomp.bound._pairs import view_pairs
from lipcomp.data import batches
from lipcomp.data._views import DigitViews
from lipcomp.objectives._residual import closed_residual, residual_floor
from lipcomp.statistics import correlation, paired_effect, smallest_detectable_effect

names = {"SimCLR": "mnist_simclr", "C-SimCLR": "mnist_c_simclr"}
models = {name: lipcomp.load_encoder(trained(recipe)) for name, recipe in names.items()}
digits = lipcomp.load_set("mnist5k", "test")
images = digits.batch(torch.arange(300))
for name, model in models.items():
    print(f"{name:9s}", model.subject())

# %% [markdown]
# ## Did it compress?
#
# The residual information (2.2) is what the latent contains about one view that the other view does not predict, in
# nats. Its floor (2.4) depends only on the two concentrations and the dimension, so the **excess** is what training
# changes. Both models are measured at the concentrations of C-SimCLR, since an uncompressed model has none.

# %%
objective = models["C-SimCLR"].metadata.objective
kappa_e, kappa_b = objective["kappa_e"], objective["kappa_b"]
one, other = DigitViews()(images, torch.Generator().manual_seed(0))
excess = {}
for name, model in models.items():
    with torch.no_grad():
        mu, nu = model.encoder(one), model.encoder(other)
    floor = residual_floor(mu.shape[1], kappa_e, kappa_b)
    excess[name] = (closed_residual(mu, kappa_e, nu, kappa_b) - floor).numpy()
    print(f"{name:9s} excess residual {excess[name].mean():.3f} nats over a floor of {floor:.2f}")

# %% [markdown]
# ## Is it smoother?
#
# The same images answer this in two ways: by pairs of views (3.5) and by the local constant at each image. Both models
# measure the same images, so the comparison is per image.

# %%
sigma, views = {}, {}
for name, model in models.items():
    sigma[name] = lipcomp.spectral_norm(model.encoder, images, vectors=False).sigma.numpy()
    # the same generator for both models: the same views
    pairs = view_pairs(
        batches(digits, batch_size=100, indices=torch.arange(300)),
        DigitViews(),
        torch.Generator().manual_seed(1),
    )
    views[name] = measure_pairs(model.encoder, pairs)["direction"].values.numpy()
    print(
        f"{name:9s} sigma_max {np.median(sigma[name]):.3f}   views {np.median(views[name]):.4f}   (medians)"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for axis, (values, label) in zip(axes, ((sigma, "sigma_max"), (views, "pairs of views")), strict=True):
    axis.loglog(values["SimCLR"], values["C-SimCLR"], ".", ms=3)
    ends = [min(map(np.min, values.values())), max(map(np.max, values.values()))]
    axis.loglog(ends, ends, color="grey", lw=1)
    axis.set(xlabel="SimCLR", ylabel="C-SimCLR", title=f"{label}, one point per image")
plt.show()

# %% [markdown]
# ## What does one pair of models prove?
#
# Over **images**, the difference between these two networks is estimated well. Over **seeds** there is only one pair,
# and one pair has no spread: no interval and no p-value. The unit of replication is the training run.

# %%
images_effect = paired_effect(np.log(sigma["C-SimCLR"]), np.log(sigma["SimCLR"]), resamples=1999)
print("over images, log sigma:", images_effect)
seeds_effect = paired_effect([np.median(np.log(sigma["C-SimCLR"]))], [np.median(np.log(sigma["SimCLR"]))])
print("over seeds:            ", seeds_effect)
print()
for n in (1, 3, 5, 6, 10):
    print(f"{n:2d} seeds:", smallest_detectable_effect(n))

# %% [markdown]
# ## Do the measures agree?
#
# If pairs of views and the local constant measure the same property, they should rank the images in the same order.

# %%
for name in models:
    print(f"{name:9s}", correlation(sigma[name], views[name], resamples=999))

# %% [markdown]
# ## Summary
#
# - The gradient of the compression term is that of a positive pair with weight 1 + beta, plus vMF noise. So
#   `mnist_weighted_simclr` and `mnist_noisy_simclr` are the controls, and the default study trains the first.
# - n counts training runs, not images. Three seeds cannot give a p-value below 0.25, whatever the effect.
