"""sigma_max against linear maps, dense float64 Jacobians of real encoders, and its own certificates."""

import pytest
import torch
from torch.nn import functional as F

from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.jacobian import spectral_norm
from lipcomp.jacobian._dense import jacobian


@pytest.fixture(scope="module")
def encoder():
    spec = EncoderSpec("small_cnn", (1, 16, 16), mean=(0.13,), std=(0.31,), projector=(32, 16))
    return build_encoder(spec, seed=3).eval()


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (12, 12)])
def test_a_linear_map_reaches_its_largest_singular_values(shape, generator):
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    images = torch.rand(6, shape[1], generator=generator, dtype=torch.float64)
    truth = torch.linalg.svdvals(matrix)
    found = spectral_norm(lambda x: x @ matrix.T, images, k=3, method="lanczos")
    torch.testing.assert_close(found.values, truth[:3].expand(6, 3), rtol=1e-4, atol=0)
    assert (found.sigma <= truth[0] * (1 + 1e-12)).all()
    assert found.converged.all()


@pytest.mark.parametrize("method", ["lanczos", "rows"])
def test_singular_vectors_satisfy_their_definition(encoder, method, generator):
    images = torch.rand(3, 1, 16, 16, generator=generator, dtype=torch.float64)
    fn = encoder.double()
    found = spectral_norm(fn, images, rtol=1e-10, method=method)
    rows = jacobian(fn, images).flatten(2)
    pushed = torch.einsum("ndp,np->nd", rows, found.right.flatten(1))
    scale = float(found.sigma.max())
    torch.testing.assert_close(pushed, found.sigma[:, None] * found.left, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(found.right.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found.left.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_a_real_encoder_against_the_dense_jacobian_in_float64(encoder, generator):
    images = torch.rand(5, 1, 16, 16, generator=generator, dtype=torch.float64)
    fn = encoder.double()
    dense = torch.autograd.functional.jacobian(lambda x: fn(x).sum(0), images).permute(1, 0, 2, 3, 4)
    truth = torch.linalg.svdvals(dense.flatten(2))
    torch.testing.assert_close(
        spectral_norm(fn, images, method="lanczos").sigma, truth[:, 0], rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        spectral_norm(fn, images, k=4, method="rows").values, truth[:, :4], rtol=1e-9, atol=0
    )


def test_a_normalised_linear_map_in_closed_form(generator):
    """J = (I - mu muᵀ) W / |W x|."""
    weight = torch.randn(24, 30, generator=generator, dtype=torch.float64)
    images = torch.rand(4, 30, generator=generator, dtype=torch.float64)
    hidden = images @ weight.T
    mu = F.normalize(hidden, dim=1)
    projector = torch.eye(24, dtype=torch.float64) - mu[:, :, None] * mu[:, None, :]
    truth = torch.linalg.matrix_norm(projector @ weight / hidden.norm(dim=1)[:, None, None], 2)
    found = spectral_norm(lambda x: F.normalize(x @ weight.T, dim=1), images)
    torch.testing.assert_close(found.sigma, truth, rtol=1e-4, atol=0)


def test_the_batch_does_not_change_the_values(encoder, generator):
    images = torch.rand(7, 1, 16, 16, generator=generator)
    fn = encoder.float()
    whole = spectral_norm(fn, images, batch_size=7)
    parts = spectral_norm(fn, images, batch_size=2)
    torch.testing.assert_close(whole.sigma, parts.sigma, rtol=1e-4, atol=0)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_vision_transformer_of_timm(pool, generator):
    vision = pytest.importorskip("timm").models.vision_transformer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = vision.VisionTransformer(
            img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=0, global_pool=pool
        ).eval()
    images = torch.rand(4, 3, 16, 16, generator=generator)
    truth = spectral_norm(network.double(), images.double(), method="rows").sigma
    found = spectral_norm(network.float(), images, method="lanczos")
    assert found.converged.all()
    torch.testing.assert_close(found.sigma.double(), truth, rtol=1e-4, atol=0)


@pytest.mark.parametrize("factor", [1e-30, 1e-18, 1e-6, 1e12, 1e25])
def test_a_scaling_of_the_map_scales_sigma_whatever_its_size(factor, generator):
    """In float32, where the squares of these numbers are zero or infinite."""
    matrix = torch.randn(40, 30, generator=generator)
    images = torch.rand(3, 40, generator=generator)
    truth = torch.linalg.svdvals(matrix.double())[0] * factor
    for method in ("lanczos", "rows"):
        found = spectral_norm(lambda x: (x @ matrix) * factor, images, method=method)
        assert found.converged.all()
        torch.testing.assert_close(found.sigma.double(), truth.expand(3), rtol=1e-4, atol=0)
    assert spectral_norm(lambda x: 0 * (x @ matrix), images, method="lanczos").sigma.eq(0).all()


def test_what_float32_has_no_digits_for_is_measured_in_float64_or_not_converged(generator):
    matrix, images = torch.randn(40, 30, generator=generator), torch.rand(3, 40, generator=generator)
    truth = torch.linalg.svdvals(matrix.double())[0]
    for power in (-34, -36, -39, -43, -60):
        found = spectral_norm(
            lambda x, p=power: (x @ matrix) * 10.0 ** (p / 2) * 10.0 ** (p / 2), images, method="rows"
        )
        wrong = (found.sigma.double() / (truth * 10.0**power) - 1).abs() > 1e-4
        assert not (found.converged & wrong).any()
        assert found.converged.all() or power < -36


@pytest.mark.parametrize("method", ["lanczos", "rows"])
@pytest.mark.parametrize("wide", [True, False])
def test_what_is_rounding_alone_is_no_evidence(method, wide, generator, monkeypatch):
    """Instance norms of constant maps: float32 gave 1e-4 for a map that is constant."""
    weight = torch.randn(4, 30, generator=generator)

    def constant(x):
        pooled = x.mean((2, 3), keepdim=True).expand_as(x).tanh()
        return torch.nn.functional.normalize(
            torch.nn.functional.instance_norm(pooled).flatten(2)[..., 0] @ weight + 1
        )

    images = torch.rand(3, 4, 6, 6, generator=generator)
    if not wide:
        monkeypatch.setattr("lipcomp.jacobian._spectral_norm.doubled", lambda fn, images: (None, None))
    found = spectral_norm(constant, images, method=method)
    assert (found.sigma < 1e-9).all() if wide else not (found.converged & (found.sigma > 0)).any()
