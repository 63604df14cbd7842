"""Whole training steps against the official implementation (tests/reference/official_steps.npz).

The reference values come from running the official ``run.py`` under TensorFlow (tests/reference/official_steps.md):
the same starting weights, views, labels and vMF draws go through our loop, and every loss part, every gradient, the
weights after LARS, the target after its average and the batch norm statistics are compared. Differences are relative
to the largest entry of each tensor. The reference is the official code in float64 (rounded to float32 when stored), so
a float64 run of ours must agree to the rounding, a float32 run to its own.
"""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lipcomp.data._loading import ViewBatch
from lipcomp.data._sets import TensorImages
from lipcomp.distributions import VonMisesFisher
from lipcomp.encoders import EncoderSpec, _encoder as encoders
from lipcomp.encoders._resnet import ResNet
from train.imagenet import MEAN, STD, imagenet
from train.parallel import Ranks
from train.pretrain import Run
from train.settings import Settings

METHODS = ("simclr", "c_simclr", "byol", "c_byol")
NETWORKS = {
    "_resnet": "online.backbone",
    "_projection_head": "online.projector",
    "_projector": "online.predictor",
    "_target_resnet": "target.backbone",
    "_target_head": "target.projector",
    "_target_projector": "backward_head",
}
LAYERS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@pytest.fixture(scope="module")
def steps(request):
    path = request.path.parents[1] / "reference" / "official_steps.npz"
    with np.load(path) as file:
        return dict(file.items())


def our_name(path):
    """A variable of the official code, by its path in the object graph -> our parameter or buffer."""
    if path.startswith("model/supervised_head"):
        return "probe.weight" if path.endswith("kernel") else "probe.bias"
    _, network, rest = path.split("/", 2)
    prefix, last = NETWORKS[network], rest.rsplit("/", 1)[1]
    if match := re.match(r"linear_layers/(\d)/dense", rest):
        if match[1] == "3":  # after the predictor's layers 0 and 2 (a draw stands between)
            return "online.decoder.weight"
        return f"{prefix}.{0 if match[1] == '0' else 3}.weight"
    if rest.startswith("linear_layers/0/bn_relu"):
        return f"{prefix}.1.{LAYERS[last]}"
    if rest.startswith("initial"):
        return f"{prefix}.conv1.weight" if last == "kernel" else f"{prefix}.bn1.{LAYERS[last]}"
    group, block, part, number = re.match(r"block_groups/(\d)/layers/(\d)/(\w+)/(\d)", rest).groups()
    place = f"{prefix}.layer{int(group) + 1}.{block}"
    if part == "shortcut_layers":
        return f"{place}.downsample.{number}.{LAYERS.get(last, 'weight')}"
    return (
        f"{place}.{'conv' if last == 'kernel' else 'bn'}{int(number) // 2 + 1}.{LAYERS.get(last, 'weight')}"
    )


def tensors(steps, method, what, names="names", dtype=torch.float32):
    """Our name -> tensor, from the flat array of a snapshot."""
    shapes = dict(zip(steps[f"{method}/names"].tolist(), steps[f"{method}/shapes"].tolist(), strict=True))
    flat, found, start = steps[f"{method}/{what}"], {}, 0
    for path in steps[f"{method}/{names}"].tolist():
        shape = [int(n) for n in shapes[path].split("x")]
        value = torch.from_numpy(flat[start : (start := start + math.prod(shape))].astype(np.float64)).to(
            dtype
        )
        value = value.reshape(shape)
        if path.endswith("kernel"):
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        found[our_name(path)] = value
    assert start == len(flat)
    return found


class Recorded:
    """Hands out the draws of the official code, turned from the first axis to mu as TensorFlow Probability does it."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def __call__(self, density, sample_shape=(), generator=None):
        s, mu = torch.from_numpy(next(self.draws)[0]).to(density.loc), density.loc
        axis = torch.zeros_like(mu)
        axis[:, 0] = 1
        u = nn.functional.normalize(axis - mu, dim=1)
        return s - 2 * (s * u).sum(1, keepdim=True) * u


def build(steps, method, monkeypatch, tmp_path):
    """A run of the paper's recipe at a network of 3 to 24 channels, at the official starting weights."""
    name = "resnet18_three_channels_tf"
    monkeypatch.setitem(
        encoders.BACKBONES, name, lambda channels: ResNet(18, "imagenet", 3 / 64, channels, "tensorflow")
    )
    paper = imagenet(method)
    recipe = replace(
        paper,
        encoder=replace(
            EncoderSpec(name, (3, 40, 40), MEAN, STD, projector=(32, 16)),
            predictor=paper.encoder.predictor and 32,
            decoder=paper.encoder.decoder,
        ),
        epochs=1,
        batch_size=8,
        warmup_epochs=0,
        weight_decay=1e-3,
        target_decay=0.9,
        probe="projection",
    )
    pixels = torch.zeros(64, 3, 40, 40, dtype=torch.uint8)
    images = TensorImages("views", pixels, torch.arange(64) % 10, tuple("0123456789"))
    run = Run(recipe, 0, tmp_path, Settings(channels_last=False, evaluate_epochs=0), Ranks(), images, print)
    missing, unexpected = run.trainee.load_state_dict(tensors(steps, method, "start"), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return run


def count_rows(network):
    """How many values each batch norm takes a variance of; filled in by the next pass."""
    counts = {}

    def note(name):
        def hook(module, inputs):
            counts[name] = inputs[0].numel() // inputs[0].shape[1]

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(note(name))
    return counts


def difference(ours, theirs):
    """Largest difference, relative to the largest entry."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)).item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_steps_equal_the_official_code(steps, method, dtype, monkeypatch, tmp_path):
    run = build(steps, method, monkeypatch, tmp_path)
    run.trainee.to(dtype)
    counts = count_rows(run.trainee)
    source = Recorded([d for step in range(3) for d in steps.get(f"{method}/draws{step}", [])])
    monkeypatch.setattr(VonMisesFisher, "rsample", lambda density, *a, **k: source(density))
    start = tensors(steps, method, "start", dtype=dtype)
    found = {}
    for step in range(3):
        # Contiguous, since oneDNN 3.12 for AVX2 writes beyond its memory where channels of 3 and 6 come last.
        views = torch.from_numpy(steps["views"][step]).permute(0, 1, 4, 2, 3).to(dtype).contiguous() / 255
        logged = run.step(
            run.trainee, ViewBatch(step, (views[0], views[1]), torch.from_numpy(steps["labels"][step]))
        )
        for ours, theirs in expected_parts(steps, method, step).items():
            # I(Y;Z) is the logarithm of the batch less a cross-entropy, and both round
            size = abs(theirs) + (math.log(views.shape[1]) if ours == "i_yz" else 0.0)
            found[step, "loss", ours] = abs(float(logged[ours]) - theirs) / size
        if step == 0:
            gradients = tensors(steps, method, "gradient0", "gradient_names", dtype=dtype)
            # The official code adds the decay of the linear head's kernel to the loss, we to the update.
            run.trainee.probe.weight.grad += run.recipe.weight_decay * start["probe.weight"]
            for name, parameter in run.trainee.named_parameters():
                if parameter.requires_grad:
                    found[step, "gradient", name] = difference(parameter.grad, gradients.pop(name))
            assert not gradients
        if step in (0, 2):
            state = run.trainee.state_dict()
            passes = (step + 1) * (2 if method.endswith("byol") else 1)
            for name, moved in tensors(steps, method, f"moved{step}", dtype=dtype).items():
                ours = state[name] - start[name]
                # PyTorch's is the unbiased variance, TensorFlow's the biased one
                if name.endswith("running_var"):
                    kept, count = 0.9**passes * start[name], counts[name.removesuffix(".running_var")]
                    ours = kept + (state[name] - kept) * (count - 1) / count - start[name]
                kind = (
                    "statistics"
                    if "running" in name
                    else "target"
                    if name.startswith("target")
                    else "weights"
                )
                found[step, kind, name] = difference(start[name] + ours, start[name] + moved)
                found[step, kind + ": move", name] = difference(ours, moved)
    # Float32 rounds: the official code's own float32 run has gradients 2e-5 from its float64 run (a bias that begins at
    # 0 is its gradient then), and LARS moves a kernel by a thousandth of itself, so that a move is known to 1e-3 only.
    # Steps amplify it: with AVX2 alone the third loss of SimCLR moves by 7e-4, a bias by 4e-3. So float64 holds the
    # weights of later steps.
    rounded = {"gradient": 5e-5, "weights": 5e-5, "weights: move": 1e-2, "target: move": 1e-2}
    for (step, kind, name), value in found.items():
        most = 1e-5 if step == 0 else 3e-5
        if dtype == torch.float32 and step:
            most = 2e-3 if kind == "loss" else math.inf
        elif dtype == torch.float32:
            most = rounded.get(kind, most)
        assert value < most, (step, kind, name, value)


def expected_parts(steps, method, step):
    """Our name of a logged value -> the official one (some of theirs are of one direction, or sums)."""

    def part(name):
        return float(steps[f"{method}/part{step}/{name}"])

    expected = {"loss": part("loss"), "probe_loss": part("probe")}
    if "simclr" in method:
        expected["i_yz"] = (part("i_y_zx") + part("i_x_zy")) / 2
    if method == "c_simclr":
        expected["residual_information"] = (part("i_xzx_y") + part("i_yzy_x")) / 2
    return expected
