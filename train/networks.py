"""The networks of a run, and one forward pass of each method.

==============  =====================================================================================================
online          the encoder that is kept: backbone, projector, for BYOL the predictor, for C-BYOL the decoder
target          BYOL: backbone and projector whose weights follow the online ones; its batch norm statistics are its own
backward_head   C-BYOL: the target's normalised projection -> the mean direction of b(z|y); trained, never averaged
class_encoder   supervised CEB: the mean directions of b(z|y), one per class
probe           the concurrent linear head, behind a stop-gradient
==============  =====================================================================================================

SimCLR passes both views through the network as one batch of 2B (so batch norm sees both); BYOL passes each view alone;
a supervised method passes the first. The probe reads all 2B images in SimCLR, the first view elsewhere.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from lipcomp.distributions import VonMisesFisher
from lipcomp.encoders import build_encoder
from lipcomp.encoders._encoder import Encoder
from lipcomp.encoders._heads import MLPHead
from lipcomp.objectives import Loss, Objective
from lipcomp.objectives._supervised import ClassEncoder
from train.data import seed_globals, stream
from train.parallel import Ranks
from train.recipe import Recipe

READINGS = 8  # of the same images, in which a generator of one's own shows
TRUNCATED_STD = 0.87962566103423978  # of a standard normal truncated to [-2, 2]
SEEDS = 32  # draws after which a network that skips layers at random is seen to do so
Images = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True)
class Step:
    """One forward pass: what to minimise, what to log, and the embeddings of each view."""

    value: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    embeddings: tuple[Float[Tensor, "batch dim"], ...]


class Trainee(nn.Module):
    """All that is trained or averaged in a run.

    Parameters
    ----------
    recipe
        What to build.
    seed
        Seed of the weights. Each part has its own random stream, so parts that both members of a pair have start equal.
    classes
        Number of classes of the concurrent linear head.
    """

    def __init__(self, recipe: Recipe, seed: int, classes: int) -> None:
        super().__init__()
        spec, paper = recipe.encoder, recipe.initialisation == "paper"
        self.family = recipe.objective.family
        self.online = build_encoder(spec, seed=seed)
        if paper:
            draw_weights(self.online, seed, "online")
        self.target: Encoder | None = None
        self.backward_head: nn.Module | None = None
        if self.family == "byol":
            bare = dataclasses.replace(spec, predictor=None, decoder=False)
            copied = recipe.target_start == "copy"
            self.target = build_encoder(bare, seed=seed if copied else seed + 1_000_003)
            if paper:
                draw_weights(self.target, seed, "online" if copied else "target")
            self.target.requires_grad_(False)
        if spec.decoder:  # C-BYOL
            assert spec.projector is not None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.backward_head = MLPHead(spec.projector[1], spec.projector[0], spec.projector[1])
            if paper:
                variance_scaling_(self.backward_head, stream(seed, "weights/backward_head"))
        self.class_encoder: ClassEncoder | None = None
        if self.family == "supervised":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.class_encoder = ClassEncoder(classes, _latent_width(self.online))
        self.probe_layer = recipe.probe
        self.probe: nn.Linear | None = None
        if recipe.probe is not None:
            width = int(self.online.backbone.out_features)  # type: ignore[arg-type]
            if recipe.probe == "projection":
                assert spec.projector is not None
                width = spec.projector[1]
            with torch.random.fork_rng(devices=[]):
                self.probe = nn.Linear(width, classes)
            variance_scaling_(self.probe, stream(seed, "weights/probe"))
        if recipe.perturb:
            self._perturb(recipe.perturb, seed)

    @torch.no_grad()
    def _perturb(self, scale: float, seed: int) -> None:
        """Multiply every weight by 1 + scale * n, n standard normal; a copied target stays a copy."""
        for name, weight in self.named_parameters():
            part = name.removeprefix("online.").removeprefix("target.")
            noise = torch.randn(weight.shape, generator=stream(seed, f"perturb/{part}"))
            weight.mul_(1 + scale * noise.to(weight.device))

    def has_spare_weights(self) -> bool:
        """Whether the backbone has weights that its features do not depend on."""
        backbone = self.online.backbone.eval()
        weights = [weight for weight in backbone.parameters() if weight.requires_grad]
        features = backbone(self.online.mean.new_zeros(2, *self.online.image_shape)).sum()
        backbone.train()
        if not weights or not features.requires_grad:
            return bool(weights)
        return None in torch.autograd.grad(features, weights, allow_unused=True)

    def check_draws(self, ranks: Ranks, rows: int) -> bool:
        """Whether the backbone skips layers at random in training; refuses one that no run could repeat.

        Two images are enough to see it; a network that does not take two is given ``rows``, as in a step.

        Raises
        ------
        ValueError
            If it computes something else for the same images and seeds, or ranks would skip different layers, whose
            batch norms then wait for each other.
        """
        images = 2
        try:
            self._drawn(0, 0, images)
        except Exception:  # batch norm over parts of a batch, say; what fails in every batch is raised below
            images = rows
        (first, layers), *again = (self._drawn(0, 0, images) for _ in range(READINGS))
        near = 1e-2 * float(first.nan_to_num(0, 0, 0).abs().max())  # sums on a GPU have no fixed order
        if not all(torch.allclose(first, other, rtol=1e-2, atol=near, equal_nan=True) for other, _ in again):
            raise ValueError(
                "the network computes something else for the same images and seeds of torch, numpy and random (does it "
                "have a generator of its own, or count its calls?), so no run could be repeated or continued; draw "
                "from torch's, numpy's or Python's own generator, and keep counts in buffers"
            )
        if ranks.size == 1:
            return False
        if any(self._drawn(rank, 0, images)[1] != layers for rank in range(1, SEEDS)):
            raise ValueError(
                "the network skips layers at random in training, by numbers of torch's generator, which differ on the "
                "ranks; decide with Python's random.random(), which is alike on all of them, or train on one rank"
            )
        return any(self._drawn(0, step, images)[1] != layers for step in range(1, SEEDS))

    @torch.no_grad()
    def _drawn(self, rank: int, step: int, images: int) -> tuple[Tensor, list[str]]:
        """The backbone's training output with the seeds of a rank and step, and the layers it called; nothing stays."""
        backbone, called = self.online.backbone, list[str]()
        hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
            for name, module in backbone.named_modules()
            if module._parameters or module._buffers  # others may come and go
        ]
        registered = [(module._buffers, dict(module._buffers)) for module in backbone.modules()]
        before = [(value, value.clone()) for value in (*backbone.parameters(), *backbone.buffers())]
        shape = (images, *self.online.image_shape)
        pixels = torch.linspace(0, 1, math.prod(shape), device=self.online.mean.device).view(shape)
        seed_globals(0, rank, step)
        try:
            out = backbone(pixels)
        finally:
            for hook in hooks:
                hook.remove()
            for buffers, names in registered:  # a forward pass may set others, or larger ones
                buffers.clear()
                buffers.update(names)
            for value, old in before:
                if not torch.equal(value, old):
                    value.copy_(old)
        return out, called

    def forward(
        self,
        objective: Objective,
        views: tuple[Images, Images],
        labels: Int64[Tensor, " batch"],
        generator: Generator,
        ranks: Ranks,
        rows: slice,
        whole: int,
    ) -> Step:
        """One forward pass on ``rows`` of a batch of ``whole`` images."""
        online: tuple[Tensor, ...]
        inputs: tuple[Tensor, ...]
        if self.family == "simclr":
            features, projections, latents = self._pass(torch.cat(views))
            online = inputs = latents.chunk(2)
            labels = labels.repeat(2)
        elif self.family == "supervised":
            features, projections, latents = self._pass(views[0])
            assert self.class_encoder is not None
            online = (latents,)
            inputs = (latents, labels, self.class_encoder.directions)
        else:
            first, second = (self._pass(view) for view in views)
            features, projections, online = first[0], first[1], (first[2], second[2])
            assert self.target is not None
            with torch.no_grad():  # the official order: view 2 first, which the running statistics remember
                target_2, target_1 = (self.target.embedding(view) for view in reversed(views))
            inputs = (*online, target_1, target_2)
        loss = objective(*inputs, **self._options(objective, views, generator, ranks, rows, whole))
        if type(loss) is not Loss:
            raise ValueError(
                f"{type(objective).__name__} must return a Loss(value, metrics), got {type(loss).__name__}"
            )
        value, metrics = loss.value, {"loss": loss.value.detach(), **loss.metrics}
        if self.probe is not None:
            read = features if self.probe_layer == "backbone" else projections
            with torch.autocast(read.device.type, enabled=False):
                logits = self.probe(read.detach().to(self.probe.weight.dtype))
                error = F.cross_entropy(logits, labels)
            value = value + error
            metrics["probe_loss"] = error.detach()
            metrics["probe_accuracy"] = (logits.argmax(1) == labels).float().mean()
        return Step(value, metrics, tuple(latent.detach() for latent in online))

    def _pass(self, images: Images) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled features, projection and latent of the online network."""
        features = self.online.features(images)
        projection = self.online.projector(features)
        return features, projection, self.online.predictor(projection)

    def _options(
        self,
        objective: Objective,
        views: tuple[Images, Images],
        generator: Generator,
        ranks: Ranks,
        rows: slice,
        whole: int,
    ) -> dict[str, object]:
        options: dict[str, object] = {"generator": generator}
        if ranks.size > 1:
            options |= {"gather": ranks.gather, "rank": ranks.rank}
        if self.family == "byol":
            options |= {"decoder": _decoder(self.online), "backward_head": self.backward_head}
        if hasattr(objective, "kappa_e") and len(views[0]) < whole:
            options["draw"] = lambda density: draw_rows(density, generator, rows, whole)
        if objective.needs_distances:
            options["distances"] = (views[0] - views[1]).flatten(1).norm(dim=1)
        return options

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the target's weights towards the online network's. Batch norm statistics are the target's own."""
        if self.target is not None:
            online = dict(self.online.named_parameters())
            names, slow = zip(*self.target.named_parameters(), strict=True)
            torch._foreach_lerp_(list(slow), [online[name] for name in names], 1 - decay)


def _latent_width(encoder: Encoder) -> int:
    return int(encoder.backbone.out_features if encoder.spec.projector is None else encoder.spec.projector[1])  # type: ignore[arg-type]


def _decoder(encoder: Encoder) -> nn.Module | None:
    return encoder.decoder if encoder.spec.decoder else None


def draw_weights(encoder: Encoder, seed: int, network: str) -> None:
    """The paper's initialisation of every part of an encoder, each with its own random stream."""
    for name, part in encoder.named_children():
        variance_scaling_(part, stream(seed, f"weights/{network}/{name}"))


def draw_rows(density: VonMisesFisher, generator: Generator, rows: slice, whole: int) -> Tensor:
    """Draw z for ``rows`` as one process that draws for the whole batch would.

    What a draw takes from the generator depends on the count, the dimension and kappa alone, so the other rows may
    have any mean direction. (With a concentration for each image, the rows' own count for all.)
    """
    mu, kappa = density.loc, density.concentration
    others = mu.new_zeros(whole, mu.shape[1])
    others[:, 0] = 1
    everywhere = others.index_copy(0, torch.arange(rows.start, rows.stop, device=mu.device), mu)
    constant = kappa.flatten()[:1].expand(whole)
    return VonMisesFisher(everywhere, constant, validate_args=False).rsample(generator=generator)[rows]


def variance_scaling_(network: nn.Module, generator: Generator) -> None:
    """Draw every kernel of ``network`` anew, in the order of its modules, and set the biases to 0.

    As in the official code: a normal truncated at two standard deviations, of variance 1/fan-in after the truncation
    (TensorFlow's ``VarianceScaling(1, "fan_in", "truncated_normal")``).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = 1 / math.sqrt(module.weight[0].numel()) / TRUNCATED_STD
            with torch.no_grad():
                nn.init.trunc_normal_(module.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
