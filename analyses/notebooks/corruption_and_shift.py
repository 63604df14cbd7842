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
# # Corruption and shift
#
# Does smoothness make an encoder robust? This notebook fits a probe on a pair of models, corrupts the images, tests a
# shift to other writers, and checks whether the local constant of an image predicts the effect of a corruption. It
# takes about a minute and a half on a CPU. Three epochs and one seed show how to do it, but give no result.

# %% [markdown]
# First train the encoders, with the command that you would type in the root of the clone. A finished run is not
# trained again, and the notebooks share their runs.
#
# `auroc` and `clustered_logistic`, from a module whose name begins with an underscore, are private: they may change
# in any release.

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
from lipcomp.robustness import extract_features, fit_linear_probe
from lipcomp.robustness.corruptions import corruption_names
from lipcomp.statistics import adjust, paired_effect
from lipcomp.statistics._per_image import auroc, clustered_logistic

names = {"SimCLR": "mnist_simclr", "C-SimCLR": "mnist_c_simclr"}
encoders = {name: lipcomp.load_encoder(trained(recipe)).encoder for name, recipe in names.items()}
train, test = lipcomp.load_set("mnist5k", "train"), lipcomp.load_set("mnist5k", "test")

# %% [markdown]
# ## A probe that adds no noise
#
# The linear probe is a convex problem that is solved to its minimum, without learning rate, epochs or randomness.

# %%
probes = {}
some = torch.arange(0, len(train), 2)  # half of the training images, to save time
for name, encoder in encoders.items():
    features = extract_features(encoder, train, indices=some)
    probes[name] = fit_linear_probe(features, train.labels[some], penalties=[1e-2])
    clean = probes[name].accuracy(extract_features(encoder, test), test.labels)
    print(
        f"{name:9s} clean {clean.value:.1%}  [{clean.interval[0]:.1%}, {clean.interval[1]:.1%}]  n = {clean.n}"
    )

# %% [markdown]
# ## Corruptions
#
# The corruptions of MNIST-C, each at severity 3. Both models see the same draws: the noise of an image does not depend
# on its batch.

# %%
chosen = [c for c in corruption_names("mnist") if c != "identity"]
which = torch.arange(300)
right = {name: {} for name in encoders}
for corruption in chosen:
    for name, encoder in encoders.items():
        features = extract_features(
            encoder, test, indices=which,
            transform=lambda x, i, c=corruption: lipcomp.corrupt(x, c, 3, table="mnist", indices=i),
        )  # fmt: skip
        right[name][corruption] = (probes[name].predict(features) == test.labels[which]).numpy()
print(f"{'':18s}" + "".join(f"{name:>10s}" for name in encoders))
for corruption in chosen:
    print(f"{corruption:18s}" + "".join(f"{right[name][corruption].mean():10.1%}" for name in encoders))

# %%
order = sorted(chosen, key=lambda c: right["SimCLR"][c].mean())
figure, axis = plt.subplots(figsize=(6, 4))
for name, marker in zip(encoders, "o^", strict=True):
    axis.plot([right[name][c].mean() for c in order], order, marker, label=name)
axis.set(xlabel="accuracy at severity 3", xlim=(0, 1))
axis.legend()
plt.show()

# %% [markdown]
# ## Many corruptions are many tests
#
# The two models can be compared per image on each corruption, and Holm's correction keeps the chance of any false
# finding at 5%. These p-values are about images under *these two networks*; a comparison of methods needs seeds.

# %%
p_values = {}
for corruption in chosen:
    effect = paired_effect(
        right["C-SimCLR"][corruption].astype(float), right["SimCLR"][corruption].astype(float), resamples=1999
    )
    p_values[corruption] = effect.p_value
family = adjust(p_values, method="holm")
found = [name for name, rejected in zip(family.names, family.rejected, strict=True) if rejected]
print(f"{family.method}: {len(found)} of {family.tests} differ after correction")

# %% [markdown]
# ## A natural shift, and its control
#
# The UCI digits have other writers, another scanner, and are eight pixels wide. Part of the loss in accuracy comes from
# the resolution: MNIST digits reduced to 8 x 8 and enlarged again show how much.

# %%
for data in ("mnist5k", "mnist5k_8x8", "uci_digits"):
    images = lipcomp.load_set(data, "test")
    row = [
        probes[name].accuracy(extract_features(encoder, images), images.labels)
        for name, encoder in encoders.items()
    ]
    print(f"{data:12s}" + "".join(f"{r.value:8.1%} [{r.interval[0]:.1%}, {r.interval[1]:.1%}]" for r in row))

# %% [markdown]
# ## Per image: does a larger local constant predict a changed prediction?
#
# One row is one image under one model: the score is the local constant at the clean image, and the label says whether
# the corruption changed the prediction. Rows of the same image are dependent, and so are rows of the same model; both
# are passed as groups. Images are compared only within a model (`within`), so that differences between models do not
# count.

# %%
subset = torch.arange(100)
clean_right = {
    name: probes[name].predict(extract_features(e, test, indices=subset)) for name, e in encoders.items()
}
score, label, image, model = [], [], [], []
for name, encoder in encoders.items():
    sigma = lipcomp.spectral_norm(encoder, test.batch(subset), vectors=False).sigma.numpy()
    features = extract_features(
        encoder, test, indices=subset,
        transform=lambda x, i: lipcomp.corrupt(x, "shot_noise", 5, table="mnist", indices=i),
    )  # fmt: skip
    flipped = (probes[name].predict(features) != clean_right[name]).numpy()
    score.append(sigma)
    label.append(flipped)
    image.append(subset.numpy())
    model.append(np.full(len(subset), name))
score, label, image, model = (np.concatenate(parts) for parts in (score, label, image, model))
print(f"{label.mean():.1%} of the predictions flip under shot noise")
print(auroc(score, label, [image, model], within=model))
print(clustered_logistic(score, label, image, within=model))

# %% [markdown]
# ## Summary
#
# - A null result is a result: compare it with what this n could have found.
# - Many corruptions are many tests. Images, models and seeds are different units: say which n a p-value has.
