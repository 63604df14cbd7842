"""The von Mises-Fisher distribution on the unit sphere S^(d-1).

    vMF(z; mu, kappa) = C_d(kappa) exp(kappa mu.z)        |z| = |mu| = 1, kappa >= 0                         (1.1)

Densities are with respect to the sphere's surface measure, in nats. kappa = 0 is the uniform distribution. Everything
that a subtraction would spoil is computed from what is left: the log density as its value at the mode less
kappa |z - mu|^2 / 2, the divergences as in :mod:`lipcomp.distributions._divergence`.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Shaped
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

from lipcomp._arguments import checked
from lipcomp.distributions import _bessel as bessel
from lipcomp.distributions._divergence import divergence_from_uniform, half_chord_squared, vmf_divergence
from lipcomp.distributions._sampling import sample_sphere, sample_von_mises_fisher


class _UnitVector(constraints.Constraint):
    """Vectors of length one, to 1e-4 in single precision and 1e-6 in double."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        tolerance = {torch.float64: 1e-6, torch.float32: 1e-4}.get(value.dtype, 1e-2)
        return (torch.linalg.vector_norm(value, dim=-1) - 1).abs() <= tolerance  # nan is not


unit_vector = _UnitVector()


@checked
class VonMisesFisher(Distribution):
    """vMF(mu, kappa) on the unit sphere of R^d.

    Parameters
    ----------
    loc
        Mean direction mu, unit vectors, shape (*batch, d).
    concentration
        kappa, from 0 to 1e12, one for all or one for each mean direction (shapes broadcast).
    validate_args
        Whether to check the values (torch's default: yes, unless Python runs with -O); this synchronises the device.

    Raises
    ------
    ValueError
        If d < 2, a mean direction is not a unit vector, a concentration is negative, above 1e12 or not finite, or the
        shapes do not broadcast.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.distributions import VonMisesFisher
    >>> mu = torch.nn.functional.normalize(torch.ones(4, 128), dim=-1)
    >>> e = VonMisesFisher(mu, torch.tensor(1024.0))
    >>> e.batch_shape, e.event_shape, e.rsample((10,)).shape
    (torch.Size([4]), torch.Size([128]), torch.Size([10, 4, 128]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": unit_vector,
        "concentration": constraints.nonnegative,
    }
    support = unit_vector
    has_rsample = True

    def __init__(
        self,
        loc: Shaped[Tensor, "*batch"],
        concentration: Shaped[Tensor, "*kappa_batch"] | float | int,
        validate_args: bool | None = None,
    ) -> None:
        if loc.ndim == 0 or not loc.is_floating_point():
            raise ValueError(
                f"loc must hold floating point unit vectors along its last axis, got shape {tuple(loc.shape)}, "
                f"{loc.dtype}"
            )
        bessel.check_dim(loc.shape[-1])
        kappa = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        try:
            batch_shape = torch.broadcast_shapes(loc.shape[:-1], kappa.shape)
        except RuntimeError:
            raise ValueError(
                f"concentration {tuple(kappa.shape)} does not broadcast with the batch {tuple(loc.shape[:-1])} of loc "
                f"{tuple(loc.shape)}; give one concentration per mean direction, not one per coordinate"
            ) from None
        looks = Distribution._validate_args if validate_args is None else validate_args
        if looks:
            _check_directions(loc)
            _check_concentrations(kappa)
        self.loc = loc.expand(*batch_shape, loc.shape[-1])
        self.concentration = kappa.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=False)
        self._validate_args = looks

    def expand(self, batch_shape: Any, _instance: Any = None) -> "VonMisesFisher":
        """The same distribution over a larger batch, without copying."""
        shape = Size(batch_shape)
        new = self._get_checked_instance(VonMisesFisher, _instance)
        new.loc = self.loc.expand(*shape, self.dim)
        new.concentration = self.concentration.expand(shape)
        Distribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def dim(self) -> int:
        """d, of the space around the sphere."""
        return self.event_shape[0]

    @property
    def mean_resultant_length(self) -> Tensor:
        """A_d(kappa) = |E z|."""
        return bessel.mean_resultant_length(self.dim, self.concentration)

    @property
    def mean(self) -> Tensor:
        """E z = A mu (1.2); inside the ball, not on the sphere."""
        return self.mean_resultant_length.unsqueeze(-1) * self.loc

    @property
    def mode(self) -> Tensor:
        """Mu, the direction of the highest density (any direction when kappa = 0)."""
        return self.loc

    @property
    def second_moment(self) -> Tensor:
        """E z z^T = (A/kappa) I + (1 - d A/kappa) mu mu^T (1.2), shape (*batch, d, d)."""
        across, along = self._moments()
        outer = self.loc.unsqueeze(-1) * self.loc.unsqueeze(-2)
        eye = torch.eye(self.dim, dtype=self.loc.dtype, device=self.loc.device)
        return across[..., None, None] * eye + along[..., None, None] * outer

    @property
    def covariance_matrix(self) -> Tensor:
        """Cov z = (A/kappa) (I - mu mu^T) + A' mu mu^T, shape (*batch, d, d)."""
        across, _ = self._moments()
        slope = bessel.mean_resultant_slope(self.dim, self.concentration)
        outer = self.loc.unsqueeze(-1) * self.loc.unsqueeze(-2)
        eye = torch.eye(self.dim, dtype=self.loc.dtype, device=self.loc.device)
        return across[..., None, None] * eye + (slope - across)[..., None, None] * outer

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance."""
        across, _ = self._moments()
        slope = bessel.mean_resultant_slope(self.dim, self.concentration)
        return across.unsqueeze(-1) + (slope - across).unsqueeze(-1) * self.loc.square()

    def _moments(self) -> tuple[Tensor, Tensor]:
        """A/kappa and 1 - d A/kappa = A_d A_{d+2}, which cancels nowhere."""
        a = self.mean_resultant_length
        above = bessel.mean_resultant_length(self.dim + 2, self.concentration)
        along = a * above
        return (1 - along) / self.dim, along

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats (1.1), as log C + kappa less kappa |z - mu|^2 / 2.

        Its gradients are those of this form: on the sphere the same as kappa mu.z's, off it without the radial part.
        """
        if self._validate_args:
            if value.ndim == 0 or value.shape[-1] != self.dim:
                raise ValueError(
                    f"value must be unit vectors of dimension {self.dim}, got shape {tuple(value.shape)}"
                )
            _check_directions(value, "value")
        top = bessel.scaled_log_normalizer(self.dim, self.concentration)
        return top - self.concentration * half_chord_squared(value, self.loc)

    def entropy(self) -> Tensor:
        """-log C - kappa A (1.3), in nats; negative once the density is concentrated."""
        return bessel.log_sphere_area(self.dim) - divergence_from_uniform(self.dim, self.concentration)

    def rsample(self, sample_shape: Any = Size(), generator: Generator | None = None) -> Tensor:  # noqa: B008
        """Exact draws, differentiable in the mean direction.

        Parameters
        ----------
        sample_shape
            Shape of the draws before the batch.
        generator
            Source of randomness; drawn on its device, so that one seed gives one stream on every machine.
        """
        shape = self._extended_shape(Size(sample_shape))
        return sample_von_mises_fisher(
            self.loc.expand(shape), self.concentration.expand(shape[:-1]), generator
        )

    def sample(self, sample_shape: Any = Size(), generator: Generator | None = None) -> Tensor:  # noqa: B008
        """Exact draws, without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)


class HypersphericalUniform(Distribution):
    """The uniform distribution on S^(d-1), of density 1 / area (1.6)."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = unit_vector

    def __init__(
        self,
        dim: int,
        batch_shape: Any = Size(),  # noqa: B008
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.dim = bessel.check_dim(dim)
        self._like = torch.empty((), dtype=dtype or torch.get_default_dtype(), device=device)
        super().__init__(Size(batch_shape), Size([dim]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HypersphericalUniform":
        """The same distribution over a larger batch."""
        return HypersphericalUniform(self.dim, batch_shape, self._like.dtype, self._like.device)

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return self._like.new_zeros(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """1/d in every coordinate."""
        return self._like.new_full(self._extended_shape(), 1 / self.dim)

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the log of the area."""
        if self._validate_args:
            _check_directions(value, "value")
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -bessel.log_sphere_area(self.dim))

    def entropy(self) -> Tensor:
        """The log of the area."""
        return self._like.new_full(self.batch_shape, bessel.log_sphere_area(self.dim))

    def sample(self, sample_shape: Any = Size(), generator: Generator | None = None) -> Tensor:  # noqa: B008
        """Exact draws."""
        return sample_sphere(self._extended_shape(Size(sample_shape)), self._like, generator)


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_vmf_vmf(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    _check_same_dim(p.dim, q.dim)
    return vmf_divergence(p.loc, p.concentration, q.loc, q.concentration)


@register_kl(VonMisesFisher, HypersphericalUniform)
def _kl_vmf_uniform(p: VonMisesFisher, q: HypersphericalUniform) -> Tensor:
    _check_same_dim(p.dim, q.dim)
    return divergence_from_uniform(p.dim, p.concentration).expand(
        torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    )


@register_kl(HypersphericalUniform, VonMisesFisher)
def _kl_uniform_vmf(p: HypersphericalUniform, q: VonMisesFisher) -> Tensor:
    _check_same_dim(p.dim, q.dim)
    return bessel.growth(q.dim, q.concentration).expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))


def _check_same_dim(p: int, q: int) -> None:
    if p != q:
        raise ValueError(f"both distributions must live on one sphere, got dimensions {p} and {q}")


def _check_directions(vectors: Tensor, name: str = "loc") -> None:
    fits = unit_vector.check(vectors)
    if not bool(fits.all()):
        norms = torch.linalg.vector_norm(vectors.detach(), dim=-1)
        raise ValueError(
            f"{name} must hold unit vectors along its last axis; {int((~fits).sum())} of {fits.numel()} are not, the "
            f"first has length {norms[~fits][0].item():.6g}. Divide by the norm (torch.nn.functional.normalize)"
        )


def _check_concentrations(kappa: Tensor) -> None:
    fits = (kappa >= 0) & (kappa <= bessel.LARGEST_CONCENTRATION)
    if not bool(fits.all()):
        bad = kappa.detach()[~fits]
        raise ValueError(
            f"concentration must be finite and not negative, got {bad[0].item():g} "
            f"({bad.numel()} of {kappa.numel()} values are not, or above {bessel.LARGEST_CONCENTRATION:g})"
        )
