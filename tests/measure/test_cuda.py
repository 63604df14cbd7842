"""Everything that has a device path, on a GPU: equal to the CPU within rounding, in bfloat16 too; what it costs.

Run by ``make gpu``; skipped with a word where there is no CUDA device.
"""

import json
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from lipcomp.bound import all_pairs, certified_bound, measure_pairs, random_pairs, search_ball
from lipcomp.data._views import DigitViews, PhotoViews
from lipcomp.distributions import VonMisesFisher
from lipcomp.distributions._divergence import vmf_divergence
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.jacobian import frobenius_norm, spectral_norm
from lipcomp.jacobian._precision import full_precision
from lipcomp.measure import CleanAccuracy, CorruptionAccuracy, Images, Pairs, Plan, Sigma, Source, run
from lipcomp.measure._accuracy import KNNAccuracy, RobustAccuracy
from lipcomp.measure._compression import Compression
from lipcomp.measure._local import Frobenius
from lipcomp.measure._map import Map
from lipcomp.robustness.corruptions import corrupt, corruption_names

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def encoders():
    small = build_encoder(EncoderSpec("small_cnn", (1, 28, 28), projector=(64, 32)), seed=0).eval()
    large = build_encoder(EncoderSpec("resnet18_cifar", (3, 32, 32), projector=(256, 128)), seed=0).eval()
    return {"small": small.requires_grad_(False), "resnet18": large.requires_grad_(False)}


def images_of(encoder, n=8):
    return torch.rand(n, *encoder.image_shape, generator=torch.Generator().manual_seed(0))


def both(encoder, measure, n=8):
    """A measure on the CPU and on the GPU."""
    images = images_of(encoder, n)
    with full_precision():  # cuDNN's convolutions are in TF32 unless told otherwise
        here = measure(encoder.cpu(), images)
        there = measure(encoder.to(GPU), images.to(GPU))
    encoder.cpu()
    return here.double().cpu(), there.double().cpu()


@pytest.mark.parametrize("name", ["small", "resnet18"])
@pytest.mark.parametrize(
    "measure",
    [
        lambda e, x: e(x),
        lambda e, x: spectral_norm(e, x).sigma,
        lambda e, x: frobenius_norm(e, x, probes=4, generator=torch.Generator().manual_seed(0)).squared,
        lambda e, x: (
            measure_pairs(
                e,
                random_pairs(x.split(4), 0.5, generator=torch.Generator().manual_seed(0)),
                concentration=10.0,
            )["supremum"].values
        ),
        lambda e, x: all_pairs(e(x), x, concentration=10.0, fn=e)["direction"].values,
    ],
    ids=["direction", "sigma", "frobenius", "pairs", "all pairs"],
)
def test_equal_to_the_cpu(encoders, name, measure):
    here, there = both(encoders[name], measure)
    assert torch.allclose(here, there, rtol=2e-3, atol=1e-4 * float(here.abs().max()))


def test_pair_bounds_do_not_depend_on_tf32(encoders):
    encoder, x = encoders["small"], images_of(encoders["small"])

    def bounds(where):
        moved = random_pairs(x.to(where).split(4), 0.05, generator=torch.Generator().manual_seed(0))
        return measure_pairs(encoder.to(where), moved, concentration=64.0)["published"]

    here, there = bounds("cpu"), bounds(GPU)
    assert there.maximum == pytest.approx(here.maximum, rel=1e-3)
    assert torch.allclose(here.values, there.values, rtol=1e-3)
    encoder.cpu()


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_the_order_of_searched_and_certified_holds_there(encoders, name):
    encoder, x = encoders[name].to(GPU), images_of(encoders[name], 2).to(GPU)
    found = search_ball(encoder, x, 1e-3, starts=1, steps=5, generator=torch.Generator().manual_seed(0))
    certified = certified_bound(encoder, x, radius=1e-3).bound.to(found.sigma)
    assert (found.sigma <= certified * (1 + 1e-4)).all()
    encoder.cpu()


@pytest.mark.parametrize("table", ["mnist", "cifar", "imagenet"])
def test_corruptions_are_those_of_the_cpu(table):
    shape = (1, 28, 28) if table == "mnist" else (3, 32, 32)
    images = (torch.rand(6, *shape, generator=torch.Generator().manual_seed(0)) * 255).floor() / 255
    far = {}
    for name in corruption_names(table):
        here = corrupt(images, name, 3, table=table)
        there = corrupt(images.to(GPU), name, 3, table=table).cpu()
        far[name] = float(((here - there).abs() > 1.5 / 255).float().mean())
    assert {name: share for name, share in far.items() if share > 1e-3} == {}


def test_views_and_latents_are_those_of_the_cpu():
    for views, shape in ((DigitViews(), (1, 28, 28)), (PhotoViews(), (3, 40, 40))):
        x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
        here = views(x, torch.Generator().manual_seed(1))
        there = views(x.to(GPU), torch.Generator().manual_seed(1))
        for a, b in zip(here, there, strict=True):
            torch.testing.assert_close(a, b.cpu(), rtol=1e-3, atol=1e-3)
    mu = torch.nn.functional.normalize(torch.randn(4, 64, dtype=torch.float64), dim=1)
    kappa = torch.tensor(100.0).double()
    here, there = (
        vmf_divergence(m, k, m.roll(1, 0), k) for m, k in ((mu, kappa), (mu.to(GPU), kappa.to(GPU)))
    )
    torch.testing.assert_close(here, there.cpu(), rtol=1e-9, atol=1e-9 * float(here.abs().max()))
    drawn = VonMisesFisher(mu.float().to(GPU), torch.full((4,), 100.0, device=GPU)).rsample((50,))
    assert drawn.device.type == "cuda"
    assert torch.allclose(drawn.norm(dim=-1), torch.ones(50, 4, device=GPU), atol=1e-5)


def plan_on(path, device, precision="float32"):
    quantities = (
        CleanAccuracy(),
        KNNAccuracy(),
        CorruptionAccuracy(names=("fog", "shear"), severities=(3,)),
        Compression(pairs=64, draws=1),
        Pairs("views", Map(concentration=64.0), limit=64),
        Pairs("search", limit=4, starts=1, steps=3),
        Sigma(limit=16),
        Sigma(Map("logits"), limit=16),
        Frobenius(probes=4, limit=16),
        RobustAccuracy("pgd", "l2", 0.1, limit=16),
    )
    if precision == "bfloat16":
        quantities = quantities[:4]
    return Plan((Source(path),), Images("mnist5k", limit=200), quantities, device=device, precision=precision)


def measured(plan):
    return {(r.quantity, d.unit.label): r for d in run(plan) for r in d.records}


def test_a_plan_measures_the_same_there(save_small, tmp_path):
    path = save_small(
        tmp_path / "a.safetensors", objective={"name": "CSimCLR", "kappa_e": 64.0, "kappa_b": 10.0}
    )
    here, there = measured(plan_on(path, "cpu")), measured(plan_on(path, "cuda"))
    assert here.keys() == there.keys()
    for key, record in here.items():
        other = there[key]
        assert other.provenance["device"].startswith("cuda")
        assert other.identity == record.identity
        if "robust" in key[0] or "iterations" in key[0] or "residual.max" in key[0]:
            continue
        if key[0].startswith("accuracy"):
            assert abs(other.value - record.value) <= 0.02, key
        elif record.value is not None:
            assert other.value == pytest.approx(record.value, rel=2e-2, abs=1e-3), key


def test_bfloat16_is_another_number_and_says_so(save_small, tmp_path):
    path = save_small(
        tmp_path / "a.safetensors", objective={"name": "CSimCLR", "kappa_e": 64.0, "kappa_b": 10.0}
    )
    full, half = measured(plan_on(path, "cuda")), measured(plan_on(path, "cuda", "bfloat16"))
    for key, record in half.items():
        assert record.identity != full[key].identity
        assert record.provenance["precision"] == "bfloat16"
        if key[0].startswith("accuracy"):
            assert abs(record.value - full[key].value) < 0.05


def test_the_command_runs_there(save_small, tmp_path):
    path = save_small(tmp_path / "a.safetensors")
    words = ["-m", "lipcomp.jacobian", path, "--limit", "8", "--device", "cuda", "--json"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    record = json.loads(done.stdout.splitlines()[0])
    assert record["provenance"]["device"].startswith("cuda")


def test_what_it_costs(encoders, capsys):
    """sigma_max beside vmap(jacrev), ResNet-18 at 32 x 32: milliseconds per image and peak memory, printed."""
    encoder = encoders["resnet18"].to(GPU)
    x = images_of(encoder, 16).to(GPU)

    def clock(function, repeats=3):
        function()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        for _ in range(repeats):
            function()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / repeats, torch.cuda.max_memory_allocated() / 2**20

    def dense():
        rows = torch.func.vmap(torch.func.jacrev(lambda one: encoder(one[None])[0]))(x)
        return torch.linalg.svdvals(rows.flatten(2))[:, 0]

    ours, memory = clock(partial(spectral_norm, encoder, x, vectors=False))
    with torch.no_grad():
        forward, _ = clock(lambda: encoder(x), 20)
    theirs, dense_memory = clock(dense, 1)
    with full_precision():
        assert torch.allclose(spectral_norm(encoder, x).sigma, dense(), rtol=1e-3)
    with capsys.disabled():
        print(
            f"\nsigma_max on {torch.cuda.get_device_name()}: {1e3 * ours / 16:.2f} ms per image, {memory:.0f} MiB; "
            f"vmap(jacrev) {1e3 * theirs / 16:.2f} ms, {dense_memory:.0f} MiB ({theirs / ours:.1f} times); one "
            f"forward pass of the batch {1e3 * forward:.2f} ms"
        )
    encoder.cpu()
