"""What is measured leaves the caller's world alone, and a map with a life of its own is refused."""

import copy
import threading

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lipcomp.bound import (
    all_pairs,
    certified_accuracy,
    certified_bound,
    certified_radius,
    lower_bounds,
    measure_pairs,
    random_pairs,
    search_ball,
)
from lipcomp.jacobian import Linearisation, frobenius_norm, spectral_norm


def in_place(x):
    return x.mul_(2.0).flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_survive_a_layer_that_works_in_place(dtype, generator):
    images = torch.rand(4, 3, 4, 4, generator=generator, dtype=dtype) * 0.4
    before = images.clone()
    for method in ("lanczos", "rows"):
        torch.testing.assert_close(
            spectral_norm(in_place, images, method=method).sigma, torch.full((4,), 2.0).to(dtype)
        )
    frobenius_norm(in_place, images)
    search_ball(in_place, images, 0.1, starts=1, steps=2)
    for radius in (1e-6, 0.1):
        measure_pairs(in_place, random_pairs([images], radius, generator=generator), normalised=False)
    assert torch.equal(images, before)


class Changed(nn.Module):
    """The convolution's input is changed before the batch norm asks for it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = x * 1.0
        y = self.conv(x)
        x.mul_(3.0)
        return self.norm(y).flatten(1)


def test_a_convolution_whose_input_is_changed_keeps_its_derivative(generator):
    network = Changed().eval().requires_grad_(False)
    images = torch.rand(2, 3, 6, 6, generator=generator)
    plain = nn.Sequential(network.conv, network.norm, nn.Flatten())
    torch.testing.assert_close(spectral_norm(network, images).sigma, spectral_norm(plain, images).sigma)


class Tokens(nn.Module):
    """Features that go on as tokens, as in LeViT and XCiT: the norm's gradient comes in their layout."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 3, padding=1), norm, nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        return self.linear(torch.cat([tokens[:, :1], tokens], 1))[:, 1:].tanh().flatten(1)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.InstanceNorm2d(8)])
def test_a_traced_norm_is_right_in_every_layout(norm):
    """PyTorch's own backward is wrong there for one image, and a traced network calls it."""
    torch.manual_seed(0)
    network = Tokens(norm).double().eval()
    image = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    traced = torch.jit.trace(network, image)
    for method in ("rows", "lanczos"):
        found, truth = (spectral_norm(f, image, method=method).sigma for f in (traced, network))
        torch.testing.assert_close(found, truth)


def test_instance_norm_does_not_depend_on_the_batch(generator):
    """PyTorch's own backward is wrong for one image in channels-last layout, which convolutions choose."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 4, 1),
        nn.InstanceNorm2d(4), nn.Tanh(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.LazyLinear(30),
    ).eval()  # fmt: skip
    images = torch.rand(3, 3, 12, 12, generator=generator)
    with torch.no_grad():
        network(images)
    found = [
        spectral_norm(network, images, batch_size=size, method=m).sigma
        for size in (1, 3)
        for m in ("rows", "lanczos")
    ]
    truth = spectral_norm(network.double(), images.double(), method="rows").sigma
    for sigma in found:
        torch.testing.assert_close(sigma.double(), truth, rtol=1e-4, atol=0)


def per_image(layer):
    """All images as the channels of one, so that the layer's weights may be each image's own."""

    def fn(x):
        own = 1 + 3 * x.amax((2, 3)).flatten()
        return layer(x.reshape(1, -1, 4, 4), own).view(len(x), -1)

    return fn


@pytest.mark.parametrize(
    "fn",
    [
        per_image(lambda x, own: F.conv2d(x, torch.ones(x.shape[1], 1, 3, 3).to(x), own, groups=x.shape[1])),
        per_image(lambda x, own: F.instance_norm(x, weight=own)),
        per_image(lambda x, own: F.instance_norm(x, bias=own)),
        per_image(lambda x, own: F.batch_norm(x, 0 * own.detach(), 1 + 0 * own.detach(), own, own)),
    ],
)
def test_weights_that_depend_on_the_image_are_no_constants(fn, generator):
    images = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    rows = torch.cat(
        [torch.autograd.functional.jacobian(fn, x[None]).flatten(2).flatten(0, 1)[None] for x in images]
    )
    truth = torch.linalg.matrix_norm(rows, 2)
    for method in ("lanczos", "rows"):
        torch.testing.assert_close(spectral_norm(fn, images, method=method).sigma, truth, rtol=1e-4, atol=0)


def settings():
    backends = torch.backends
    return (
        backends.mha.get_fastpath_enabled(), backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled(),
        backends.cuda.mem_efficient_sdp_enabled(), torch.get_float32_matmul_precision(),
    )  # fmt: skip


def test_threads_leave_the_settings_as_they_were(generator):
    network = nn.Sequential(nn.Flatten(), nn.Linear(27, 40), nn.Tanh(), nn.Linear(40, 30)).eval()
    images = torch.rand(6, 3, 3, 3, generator=generator)
    before, alone, found = settings(), spectral_norm(network, images).sigma, {}

    def measure(number):
        for _ in range(5):
            found[number] = spectral_norm(network, images).sigma

    threads = [threading.Thread(target=measure, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settings() == before
    assert len(found) == 4
    for sigma in found.values():
        torch.testing.assert_close(sigma, alone)


TRAINING = {
    "stochastic depth": torchvision.ops.StochasticDepth(0.01, "row"),
    "dropout": nn.Dropout(0.01),
    "batch norm": nn.BatchNorm1d(30),
    "spectral norm": nn.utils.parametrizations.spectral_norm(nn.Linear(30, 30)),
    "old spectral norm": nn.utils.spectral_norm(nn.Linear(30, 30)),
    "instance norm": nn.Sequential(
        nn.Unflatten(1, (3, 10)), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten()
    ),
    "rrelu": nn.RReLU(),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINING)
def test_layers_that_draw_or_update_are_refused_and_not_touched(name, generator):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 30), TRAINING[name], nn.Linear(30, 8)).train()
    images = torch.rand(3, 3, 2, 2, generator=generator)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    randomness = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=r"training mode|not deterministic"):
        spectral_norm(network, images)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    if name != "rrelu":  # found out by its outputs
        assert torch.equal(randomness, torch.random.get_rng_state())
    assert spectral_norm(network.eval(), images).converged.all()


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0),
        lambda x: x - x[:1],
        lambda x: x - x[-1:],
        lambda x: x.cumsum(0),
        lambda x: x + 1e-3 * x.sum(0),
        lambda x: x / x.amax(),
    ],
)
@pytest.mark.parametrize(
    "images",
    [
        torch.full((3, 5), 0.3),
        torch.rand(1, 5),
        torch.tensor([[1e-6] * 5, [1.0] * 5]),
        torch.eye(5)[:2],
    ],
)
def test_batch_mixing_shows_whatever_the_images(mix, images):
    with pytest.raises(ValueError, match="mixes the images"):
        spectral_norm(mix, images)


def autocast_inside(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (x.flatten(1) @ torch.ones(12, 4)).float()


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x.flatten(1).long(), "int64"),
        (lambda x: x.flatten(1).bfloat16(), "bfloat16"),
        (autocast_inside, "autocast"),
        (lambda x: x.sum(), "one row"),
        (lambda x: (x, x), "returned tuple; give a function that returns the tensor"),
        (
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)).double(),
            r"images of torch.float32 on cpu",
        ),
        (object(), "fn must be a function, got object"),
    ],
)
def test_what_cannot_be_measured_is_named(fn, message, untyped):
    with pytest.raises(ValueError, match=message):
        spectral_norm(fn, torch.rand(3, 3, 2, 2), method="lanczos")


def test_a_map_of_one_image_at_a_time_is_refused_with_what_works(generator):
    """As traced or exported with one image; torch's own error came."""
    images = torch.rand(3, 1, 2, 3, generator=generator)
    fn = lambda x: torch.sin(x.reshape(1, 6))  # noqa: E731
    for single in (fn, torch.jit.trace(fn, images[:1])):
        with pytest.raises(
            ValueError, match=r"lambda x: torch\.cat\(\[fn\(image\[None\]\) for image in x\]\)"
        ):
            spectral_norm(single, images[:1])
        found = spectral_norm(
            lambda x, single=single: torch.cat([single(image[None]) for image in x]), images
        )
        torch.testing.assert_close(found.sigma, images.flatten(1).cos().abs().amax(1))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", ["lanczos", "rows"])
def test_activation_checkpointing_changes_nothing(reentrant, method, generator):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(16, 26)).eval()
    images = torch.rand(2, 3, 4, 4, generator=generator)

    def fn(x):
        part = checkpoint(network[0], x, use_reentrant=reentrant)
        return checkpoint(network[1:], part, use_reentrant=reentrant)

    found = [spectral_norm(f, images, method=method).sigma for f in (fn, network)]
    torch.testing.assert_close(*found)
    searched = [search_ball(f, images, 0.1, starts=1, steps=2).sigma for f in (fn, network)]
    torch.testing.assert_close(*searched)
    calls = []
    checkpoint(lambda x: calls.append(x) or network(x), images, use_reentrant=False).sum().backward()
    assert len(calls) == 2  # torch's own is in its place again


def test_transforms_and_outputs_of_one_number(generator):
    images, weight = torch.rand(3, 12, generator=generator), torch.rand(12, generator=generator)
    with pytest.raises(ValueError, match="outside"):
        torch.func.vmap(lambda batch: spectral_norm(lambda x: x, batch).sigma)(images[None])
    mapped = torch.func.vmap(lambda x: F.conv1d(x[None, None], weight[None, None, :3])[0, 0])
    direct = lambda x: F.conv1d(x[:, None], weight[None, None, :3])[:, 0]  # noqa: E731
    torch.testing.assert_close(spectral_norm(mapped, images).sigma, spectral_norm(direct, images).sigma)
    torch.testing.assert_close(
        spectral_norm(lambda x: F.linear(x, weight), images).sigma, weight.norm().expand(3)
    )


@pytest.mark.parametrize("method", ["lanczos", "rows"])
def test_the_last_batch_of_one_changes_nothing(method, generator):
    network = nn.Sequential(nn.Flatten(), nn.Linear(27, 60), nn.GELU(), nn.Linear(60, 40)).eval()
    images = torch.rand(7, 3, 3, 3, generator=generator)
    found = [spectral_norm(network, images, batch_size=size, method=method).sigma for size in (3, 7)]
    torch.testing.assert_close(*found, rtol=2e-6, atol=0)
    stream = torch.Generator().manual_seed(5)
    pieces = [spectral_norm(network, part, method=method, generator=stream).sigma for part in images.split(3)]
    whole = spectral_norm(network, images, method=method, generator=torch.Generator().manual_seed(5)).sigma
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=2e-6, atol=0)
    fn, exact = network.double(), images.double()  # in float32 an ascent amplifies rounding
    searched = [search_ball(fn, exact, 0.3, starts=2, steps=3, batch_size=size).sigma for size in (3, 7)]
    torch.testing.assert_close(*searched, rtol=1e-6, atol=0)


class Unit(nn.Module):
    def forward(self, x):
        return F.normalize(x, dim=1)


def test_numbers_do_not_depend_on_where_the_call_stands(surroundings, generator):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 26)).eval()
    encoder = nn.Sequential(network, Unit())
    images = torch.rand(3, 1, 4, 4, generator=generator)
    with torch.no_grad():
        mu, labels = encoder(images), network(images).argmax(1)

    def measured():
        near, close = (
            measure_pairs(encoder, random_pairs([images], radius), concentration=9.0)
            for radius in (0.1, 1e-6)
        )
        J = Linearisation(network, images)
        return [
            spectral_norm(network, images, method="lanczos").sigma, spectral_norm(network, images, method="rows").sigma,
            frobenius_norm(network, images).norm, search_ball(network, images, 0.1, starts=1, steps=2).sigma,
            near["mean"].values, close["direction"].values, all_pairs(mu, images, fn=encoder)["direction"].values,
            lower_bounds(mu[:2], mu[1:], images[:2, 0, 0, 0])["direction"].values,
            certified_bound(network, images[:1], radius=1e-3).bound, certified_radius(network, images[:1], 1e-3),
            certified_accuracy(network, images[:1], labels[:1], [1e-4]), J @ images, J.T @ J.output,
        ]  # fmt: skip

    expected = measured()
    with surroundings():
        found = measured()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0, equal_nan=True)


def test_weights_made_in_inference_mode_are_constants_too(generator):
    images = torch.rand(2, 3, 4, 4, generator=generator)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(16, 26)).eval()
    with torch.inference_mode():
        made = copy.deepcopy(network)
    for method in ("lanczos", "rows"):
        torch.testing.assert_close(
            spectral_norm(made, images, method=method).sigma,
            spectral_norm(network, images, method=method).sigma,
        )
