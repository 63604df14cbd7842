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
# # Your own checkpoint
#
# From a checkpoint of another library to bounds, local constants and records. No code in a checkpoint is executed. This
# notebook makes a file with random weights in MoCo's layout; use your own path instead. Less than a minute on a CPU.

# %%
import os
import tempfile
from pathlib import Path

import torch
import torchvision

import lipcomp

torch.set_num_threads(min(2, os.cpu_count() or 1))
torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A file in MoCo's layout
#
# It holds a query and a key encoder, a queue and an optimiser. Most loaders fail on the prefix `module.encoder_q.`.

# %%
query, key = (torchvision.models.resnet18(num_classes=128) for _ in range(2))
state = {f"module.encoder_q.{name}": value for name, value in query.state_dict().items()}
state |= {f"module.encoder_k.{name}": value for name, value in key.state_dict().items()}
state |= {"module.queue": torch.randn(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
torch.save(
    {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}}},
    folder / "moco.pth.tar",
)

# %% [markdown]
# ## Load it
#
# `load_encoder` recognises the layout, accounts for **every** key and prints its assumptions. If the file does not say
# how images are normalised, the convention of the format is used, with a note; `mean=`, `std=` and `image_size=`
# override it.

# %%
checkpoint = lipcomp.load_encoder(folder / "moco.pth.tar", image_size=64)
encoder = checkpoint.encoder
print(checkpoint.describe())
print("layers:", encoder.layers())

# %% [markdown]
# The loaded encoder gives the same output as the original network.

# %%
images = torch.rand(8, 3, 64, 64)
mean, std = (
    torch.tensor(v).view(3, 1, 1) for v in (checkpoint.preprocessing.mean, checkpoint.preprocessing.std)
)
with torch.no_grad():
    features = torch.nn.Sequential(*list(query.eval().children())[:-1], torch.nn.Flatten())(
        (images - mean) / std
    )
    assert torch.allclose(encoder.features(images), features, atol=1e-5)

# %% [markdown]
# ## Images from a folder
#
# Any folder of images can be used, with one folder per class or without. These images are random; use your own folder.

# %%
from PIL import Image

rng = torch.Generator().manual_seed(0)
for i in range(24):
    small = torch.rand(3, 4, 4, generator=rng)
    smooth = torch.nn.functional.interpolate(small[None], size=64, mode="bicubic", align_corners=False)[
        0
    ].clamp(0, 1)
    target = folder / "photos" / f"class{i % 3}" / f"{i}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((smooth.permute(1, 2, 0) * 255).byte().numpy()).save(target)
photos = lipcomp.load_set(str(folder / "photos"), image_shape=encoder.image_shape)
batch = photos.batch(torch.arange(24))
print(len(photos), "images,", photos.classes, tuple(batch.shape))

# %% [markdown]
# ## Measure
#
# An encoder without a concentration is measured by the bound without kappa (3.5) and by its local constant.

# %%
with torch.no_grad():
    mu = encoder(batch)
distance = (batch[:12] - batch[12:]).flatten(1).norm(dim=1)
bounds = lipcomp.lower_bounds(mu[:12], mu[12:], distance)
print(f"{bounds['direction'].label}: {bounds['direction'].maximum:.4f} {bounds['direction'].unit}")
local = lipcomp.spectral_norm(encoder, batch[:6])
print(f"local constant: median {local.sigma.median():.4f}, largest {local.sigma.max():.4f}")

# %% [markdown]
# ## A network in memory
#
# `wrap` gives any module the same interface. Pass the mean and std of the network, and the layer to measure.

# %%
own = lipcomp.wrap(
    torchvision.models.resnet18(), mean=(0.5,) * 3, std=(0.5,) * 3, layer="avgpool", image_shape=(3, 64, 64)
)
print(f"wrapped: sigma_max {lipcomp.spectral_norm(own, batch[:4]).sigma.median():.4f}")

# %% [markdown]
# ## Save the results
#
# A record is one value, with what was measured, how, and by which code. Records are appended to a file; `to_frame`
# makes a data frame of them.

# %%
from lipcomp.records import Record, append_records, read_records

append_records(
    folder / "mine.jsonl",
    [
        Record("bound.direction.max", bounds["direction"].maximum, bounds["direction"].unit, n=bounds["direction"].n,
               subject=checkpoint.subject()),
        Record("sigma_max.max", float(local.sigma.max()), "1/pixel L2", n=6,
               subject=checkpoint.subject()),
    ],
)  # fmt: skip
print(lipcomp.to_frame(read_records(folder / "mine.jsonl"))[["quantity", "value", "unit", "n"]])

# %% [markdown]
# The same from a shell, for one checkpoint or many:
#
# ```
# python -m lipcomp.bound moco.pth.tar --data photos --out mine.jsonl
# python -m lipcomp.jacobian moco.pth.tar --data photos --limit 200 --out mine.jsonl
# ```
