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
# Does smoothness make robust? A pair of models is probed, its images are corrupted and the writers exchanged; then
# each image's local constant is asked whether it predicts what a corruption does to that image. About a minute and a
# half on a CPU; with three epochs and one seed it shows the method, not the finding.

# %% [markdown]
# Train what is missing, from the root of the clone: the command is the one you would type. A finished run is
# found and left alone, and the other notebooks find it too.

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
from lipcomp.robustness import fit_linear_probe
from lipcomp.robustness._features import extract_features
from lipcomp.robustness.corruptions import corruption_names
from lipcomp.statistics import adjust, paired_effect
from lipcomp.statistics._per_image import auroc, clustered_logistic

names = {"SimCLR": "mnist_simclr", "C-SimCLR": "mnist_c_simclr"}
encoders = {name: lipcomp.load_encoder(trained(recipe)).encoder for name, recipe in names.items()}
train, test = lipcomp.load_set("mnist5k", "train"), lipcomp.load_set("mnist5k", "test")

# %% [markdown]
# ## A probe that adds no noise
#
# The linear probe is a convex problem solved to its minimum: no learning rate, no epochs, no luck of its own.

# %%
probes = {}
some = torch.arange(0, len(train), 2)  # half of the training images: the notebook is to be quick
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
# The corruptions of MNIST-C, each at severity 3, the same draws for both models: an image gets the same noise in
# whatever batch it comes.

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
# Image by image the two models can be compared on each corruption, and Holm's correction keeps the chance of any
# false finding at 5%. These p-values speak of images under *these two networks*; for the methods, seeds are needed.

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
# Other writers, another scanner: the UCI digits, eight pixels wide. Part of the loss is resolution; the MNIST digits
# taken to 8 x 8 and back say how much.

# %%
for data in ("mnist5k", "mnist5k_8x8", "uci_digits"):
    images = lipcomp.load_set(data, "test")
    row = [
        probes[name].accuracy(extract_features(encoder, images), images.labels)
        for name, encoder in encoders.items()
    ]
    print(f"{data:12s}" + "".join(f"{r.value:8.1%} [{r.interval[0]:.1%}, {r.interval[1]:.1%}]" for r in row))

# %% [markdown]
# ## Image by image: does a larger local constant predict a flip?
#
# A row is an image under a model: the score is its local constant at the clean image, the label whether the
# corruption changed the prediction. Rows of one image depend on each other, rows of one model too; both are given as
# groups. Inside a model only images are compared (`within`), so a rougher model cannot pass for rougher images.

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
# ## To take along
#
# - A null result is a result: it is read against what the n at hand could have found.
# - Corruptions are many tests; images, models and seeds are different units. Say which n a p-value has.
