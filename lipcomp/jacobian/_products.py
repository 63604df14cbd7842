"""J v and Jᵀ u of any map from images to vectors, for a whole batch, each at the price of about one forward pass.

For a map f evaluated once at a batch x, with J_i the Jacobian of f at image i (theory (4.1)):

    g(u) = Jᵀ u     reverse mode through the recorded graph of f
    J v             reverse mode through the recorded graph of g, which is linear in u: (dg/du)ᵀ v = J v

so two recorded graphs serve every later product, in either direction, and f itself is never run again. What makes
the second pass cheap is that the weights are constants here. Autograd's own double backward of a convolution runs
two convolutions, forward mode three; here it is one in either direction (:mod:`lipcomp.jacobian._frozen`).

An operator without a second derivative (hard sigmoid and the like) falls back on forward mode, at three
convolutions per layer; one that has neither is named in the error.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lipcomp._arguments import estimating, estimator
from lipcomp._norms import PlainNorms
from lipcomp.jacobian._frozen import frozen, math_attention
from lipcomp.jacobian._operator import Operator
from lipcomp.jacobian._precision import doubled, full_precision

Map = Callable[[Tensor], Tensor]
FIRST = "the first derivative"
FINE = (1e-5, 1e-6, 1e-7, 1e-8, 1e-9), 3e-7  # steps of differences, and how far one may be off anyhow
ROUGH = (1e-2, 1e-3, 1e-4), 1e-3  # the same in float32
TOGETHER = 8  # images that are compared with differences at once
SOME = 64  # images among which one unlike the first is sought
ROWS = 'replace that layer, or take the row loop, which needs first derivatives only (method="rows")'


def check_batch(images: Float[Tensor, "n ..."], at_least: int = 1) -> None:
    """Refuse what is no batch of images in floating point, or has too few of them."""
    dense = isinstance(images, Tensor) and images.layout == torch.strided
    if not dense or images.dim() < 2 or not images.is_floating_point():
        kind = f"{images.dtype} {tuple(images.shape)}" if dense else type(images).__name__
        if isinstance(images, Tensor) and not dense:
            kind = f"{images.layout}, which .to_dense() converts"
        raise ValueError(f"images must be a floating-point batch, first axis the images; got {kind}")
    if len(images) < at_least:
        raise ValueError(f"need at least {at_least} image{'s' * (at_least > 1)}, got {len(images)}")


def as_rows(output: object, images: int) -> Tensor:
    """A map's output as one vector per image.

    Raises
    ------
    ValueError
        If it is no tensor, or has not one row per image.
    """
    if not isinstance(output, Tensor) or output.shape[:1] != (images,):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        remedy = "" if isinstance(output, Tensor) else "; give a function that returns the tensor among them"
        raise ValueError(f"fn must return one row per image; for {images} images it returned {found}{remedy}")
    return output.flatten(1) if output.dim() > 1 else output.unsqueeze(1)


@estimator
class Linearisation(Operator):
    """The differential of ``fn`` at every image of a batch, as an operator: ``J @ v``, ``J.T @ u``, ``J.to_scipy()``.

    Operators compose: ``J.T @ J``; ``Linearisation(g, f(x)) @ Linearisation(f, x)`` is the differential of g after f.

    Parameters
    ----------
    fn
        Any differentiable map of a batch that treats images independently; outputs are flattened to vectors.
    images
        The batch, first axis the images.
    method
        "reverse" (two recorded graphs), "forward" (forward-mode products for J v), or "auto": reverse, and
        forward from the first operator on that has no second derivative.
    verify
        Compare the derivative with differences of values first: at two images, and at all where fn does what autograd
        does not see (detaches, leaves torch, has a backward of its own). Once is enough for one map and its images.

    Raises
    ------
    ValueError
        If the output does not depend differentiably on the images, does not have one row per image, or (while
        running) a layer mixes the images of a batch or draws random numbers.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.jacobian import Linearisation
    >>> matrix = torch.tensor([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
    >>> J = Linearisation(lambda x: x @ matrix.T, torch.zeros(1, 3))
    >>> J @ torch.tensor([[1.0, 1.0, 0.0]])
    tensor([[3., 2.]])
    >>> (J @ J.T) @ torch.tensor([[1.0, 0.0]])
    tensor([[25.,  0.]])
    >>> J.to_scipy().shape
    (2, 3)
    """

    def __init__(
        self, fn: Map, images: Float[Tensor, "batch ..."], *, method: str = "auto", verify: bool = True
    ) -> None:
        if method not in ("auto", "reverse", "forward"):
            raise ValueError(f'method must be "auto", "reverse" or "forward", got {method!r}')
        check_batch(images)
        self._fn, self._method = fn, method
        self._images = images.detach().clone().requires_grad_()
        try:
            with torch.enable_grad(), frozen() as mode:
                output = as_rows(fn(self._images * 1), len(images))  # a copy: fn may write into what it gets
        except RuntimeError as error:
            raise named_error(error, FIRST) from error
        if not output.requires_grad:
            raise ValueError(
                "fn's output does not depend differentiably on the images (it was detached, rounded, or computed "
                "under no_grad); give a map that autograd can follow"
            )
        self._output = output
        self.output: Float[Tensor, "batch dim"] = self._output.detach()
        self.out_shape, self.in_shape = tuple(output.shape), tuple(images.shape)
        self.dtype, self.device = output.dtype, output.device
        self._cotangent: Tensor | None = None
        self._pullback: Tensor | None = None
        self._checked = False
        nodes = list(_nodes(output))
        self._hidden = mode.left or any(map(_of_others, nodes))
        native = any("BatchNorm" in node.name() or "jit" in node.name() for node in nodes)  # not replaced
        self._norms: Callable[[], AbstractContextManager[object]] = PlainNorms if native else nullcontext
        if verify:
            _verify(fn, unlike(self._images.detach()))
            self.verify_hidden()

    def verify_hidden(self) -> None:
        """Compare the derivative with differences at every image, if fn does what autograd does not see.

        What it does so may depend on the image.
        """
        for images in self._images.detach().split(TOGETHER) if self._hidden else ():
            _verify(self._fn, images)

    @estimating()
    def transposed(self, u: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch ..."]:
        """Jᵀ u for every image."""
        if self._pullback is None and self._method != "forward":
            return self._record(u)
        return self._pulled(u)

    def _pulled(self, u: Tensor) -> Tensor:
        try:
            with full_precision(), self._norms():
                (product,) = torch.autograd.grad(
                    self._output, self._images, u, retain_graph=True, materialize_grads=True
                )
        except RuntimeError as error:
            raise named_error(error, FIRST) from error
        return product

    @estimating()
    def forward(self, v: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch dim"]:
        """J v for every image."""
        if self._method == "forward":
            return self._dual(v)
        if self._pullback is None:
            self._record(self._random())
        assert self._pullback is not None
        assert self._cotangent is not None
        if not self._pullback.requires_grad:  # J = 0
            return torch.zeros_like(self.output)
        try:
            with full_precision(), self._norms():
                (product,) = torch.autograd.grad(
                    self._pullback, self._cotangent, v, retain_graph=True, materialize_grads=True
                )
        except RuntimeError as error:
            self._fall_back(error)
            return self._dual(v)
        recorded = self._cotangent.detach(), self._pullback.detach()
        if not self._checked and not _adjoint(product, v, *recorded, self.scale()):
            self._fall_back(RuntimeError(f"derivative for {self._broken_node()} is not implemented"))
            return self._dual(v)
        self._checked = True
        return product

    def scale(self) -> Float[Tensor, " batch"]:
        """The map's own scale at every image, ‖fn(x)‖ / ‖x‖: rounding of a derivative is a small part of it."""
        size = self._images.detach().flatten(1).norm(dim=1)
        return self.output.norm(dim=1) / size.where(size > 0, torch.ones_like(size))

    def _random(self) -> Tensor:
        return torch.randn(self.output.shape, generator=torch.Generator().manual_seed(0)).to(self.output)

    def _broken_node(self) -> str:
        """The name of the operation whose derivative ends the recorded graph."""
        assert self._pullback is not None
        if any(node.name() in ("Error", "DelayedError", "NotImplemented") for node in _nodes(self._pullback)):
            return "one that is marked once_differentiable"
        return "one with a wrong second derivative"

    def _record(self, u: Tensor) -> Tensor:
        """Jᵀ u, keeping the graph from u to the product."""
        self._cotangent = u.detach().clone().requires_grad_()
        try:
            with frozen(), self._norms():
                (self._pullback,) = torch.autograd.grad(
                    self._output, self._images, self._cotangent, create_graph=True, materialize_grads=True
                )
        except RuntimeError as error:
            self._fall_back(error)
            return self.transposed(u)
        return self._pullback.detach()

    def _fall_back(self, error: RuntimeError) -> None:
        if self._method == "reverse" or _missing_operator(error) is None:
            raise named_error(error, "double backward") from error
        self._method, self._pullback, self._cotangent = "forward", None, None

    def _dual(self, v: Tensor) -> Tensor:
        try:
            with forward_ad.dual_level(), math_attention(), full_precision(), torch.no_grad():
                output = self._fn(
                    forward_ad.make_dual(self._images.detach().clone(), v.to(self._images.dtype))
                )
                tangent = forward_ad.unpack_dual(output).tangent
                product = (
                    torch.zeros_like(self.output) if tangent is None else as_rows(tangent, len(v)).clone()
                )
        except (RuntimeError, NotImplementedError) as error:
            raise named_error(error, "forward mode") from error
        if not self._checked and not _adjoint(product, v, u := self._random(), self._pulled(u), self.scale()):
            raise ValueError(
                f"an operator of fn has no second derivative and a wrong one in forward mode, so J v cannot be "
                f"computed; {ROWS}"
            )
        self._checked = True
        return product


def unlike(images: Float[Tensor, "n ..."]) -> Float[Tensor, "one_or_two ..."]:
    """The first image, and of some others the one that is furthest from it."""
    some = images[:: max(1, len(images) // SOME)]
    return some[[0, int(_lengths(some - some[:1]).argmax())]] if len(some) > 1 else some


def _nodes(tensor: Tensor) -> Iterator[Any]:
    """The operations that autograd has recorded for a tensor."""
    waiting: list[Any] = [tensor.grad_fn]
    seen = {None}
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def _of_others(node: Any) -> bool:
    """Whether an operation has a backward in Python that is not lipcomp's."""
    return not getattr(node, "_forward_cls", Operator).__module__.startswith("lipcomp.jacobian")


def _verify(fn: Map, images: Float[Tensor, "n ..."]) -> None:
    """Compare J v with differences of values, a little beside every image, where nothing is tied.

    What is detached takes a matrix E from J. Where that moves sigma_max by 1e-4, E v may be 1e-6 of J v, or seen by
    few u: so whole vectors are compared, to the digits that the differences have.

    Raises
    ------
    ValueError
        If autograd's derivative is another.
    """
    wide, _ = doubled(fn, images[:1])
    fn, images = (fn, images) if wide is None else (wide, images.double())
    generator, differences = torch.Generator().manual_seed(0), ROUGH if wide is None else FINE
    off = _off(fn, images, differences, generator)
    if wide is not None and not bool(off.isnan().all()) and torch.float32 in narrowed(fn, images[:1]):
        differences = ROUGH
        off = _off(fn, images, differences, generator)
    again = off.isfinite()
    if bool(again.any()):  # elsewhere: the point may lie beside a kink
        off = _off(fn, images[again], differences, generator)
    if bool(off.isfinite().any()):
        raise ValueError(
            f"fn's derivative by autograd is not that of its values (off by {float(off[off.isfinite()].max()):.2g} "
            f"of its size in one direction): it detaches what depends on the images, rounds it, takes it out of torch, "
            f"writes through .data or no_grad, or has a backward of its own (straight-through, a hook), so its local "
            f"constant cannot be measured; take that out"
        )


def _off(
    fn: Map,
    images: Float[Tensor, "n ..."],
    differences: tuple[tuple[float, ...], float],
    generator: torch.Generator,
) -> Float[Tensor, " n"]:
    """How far J v is from the nearest difference, relative; NaN if it is that one, infinite if none has the digits."""
    noise, v = (torch.randn(images.shape, generator=generator).to(images) for _ in range(2))
    ones = [1] * (images.dim() - 2)
    channels = images.shape[1] if ones else 1
    level = torch.randn((len(images), channels, *ones), generator=generator).to(images)
    level = level.expand_as(images)  # means and norms are what is detached most, and change along it
    size, v_norm, level_norm = (
        number.view(-1, 1, *ones)
        for number in (images.flatten(1).abs().amax(1), _lengths(v), _lengths(level))
    )
    size = size.where(size > 0, torch.ones_like(size))
    images, v = images + 1e-3 * (size * noise.sigmoid() - images), v / v_norm + level / level_norm
    at = Linearisation(fn, images, verify=False)
    (steps, slack), u = differences, None
    try:
        product = at.forward(v)
    except (RuntimeError, ValueError):  # no second derivative: one number of J v
        u = at._random()
        product = (at.transposed(u) * v).flatten(1).sum(1, keepdim=True)
    nearest = apart = larger = product.new_full((len(images),), math.inf)
    right, before = torch.zeros_like(nearest, dtype=torch.bool), None
    for step in steps:
        with torch.no_grad(), math_attention(), full_precision():
            one, other = (as_rows(fn(images + side * step * size * v), len(images)) for side in (1, -1))
        moved = (one - other) / (2 * step * size.view(-1, 1))
        moved = moved if u is None else (moved * u).sum(1, keepdim=True)
        larger = torch.maximum(_lengths(product), _lengths(moved))
        nearest = torch.fmin(nearest, _lengths(moved - product))
        right |= ~(nearest > slack * (larger + at.scale()))
        if bool(right.all()):
            break
        if before is not None:
            apart = torch.fmin(apart, _lengths(moved - before))
        before = moved
    off = (nearest / larger).where(nearest > 10 * apart, torch.full_like(nearest, math.inf))
    return off.masked_fill(right, math.nan)


def _lengths(vectors: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    return vectors.flatten(1).norm(dim=1)


def place_of(tensor: Tensor) -> int:
    """What tells memory from other memory; a sparse tensor, or one in oneDNN's layout, shares its own with none."""
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:
        return id(tensor)


class _Narrowing(TorchDispatchMode):
    """Sees to which floating-point types something in float64 that comes from the image is rounded."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()
        self._made = {place_of(image): image}  # keeps them alive: a storage's place is used again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # a map in float64 says float64 of all
            result = func(*args, **(kwargs or {}))
            given, made = (
                [leaf for leaf in tree_leaves(v) if isinstance(leaf, Tensor)]
                for v in ((args, kwargs), result)
            )
            if any(place_of(tensor) in self._made for tensor in given):
                self._made |= {place_of(tensor): tensor for tensor in made}
                if torch.float64 in {tensor.dtype for tensor in given}:
                    self.found |= {tensor.dtype for tensor in made} & {
                        torch.float32,
                        torch.float16,
                        torch.bfloat16,
                    }
        return result


def narrowed(fn: Map, image: Float[Tensor, "1 ..."]) -> set[torch.dtype]:
    """The types to which a map rounds float64 that comes from the image; weights that it rounds are what they are."""
    with torch.no_grad(), math_attention(), _Narrowing(image) as mode:
        fn(image.clone())
    return mode.found


def _adjoint(product: Tensor, v: Tensor, u: Tensor, pulled: Tensor, floor: Tensor) -> bool:
    """Whether (J v).u = v.(Jᵀ u): a derivative that is silently zero or wrong breaks it.

    ``floor`` is the size below which a Jacobian is rounding alone: that of the output over that of the image.
    """
    slack = {torch.float32: 1e-4}.get(product.dtype, 1e-6)  # some maps in float64 hold float32 inside
    product, v, u, pulled = (part.flatten(1).cpu().double() for part in (product, v, u, pulled))
    difference = (product * u).sum(1) - (v * pulled).sum(1)
    sizes = [part.norm(dim=1) for part in (product, v, u, pulled)]
    scale = sizes[0] * sizes[2] + sizes[1] * sizes[3] + sizes[1] * sizes[2] * floor.cpu().double()
    return not bool((difference.abs() > slack * scale).any())


def _missing_operator(error: BaseException) -> str | None:
    """The operator that an autograd error complains about, if that is what it complains about."""
    patterns = (
        r"derivative for '?([\w:. ]+?)'? is not implemented",
        r"[Tt]rying to use forward AD with ([\w:.]+)",
        r"Could not run '?([\w:.]+)'?",
        r"([\w:.]*[Bb]ackward\w*) (?:does not support|is not differentiable)",
        r"([\w:.]+) does not support (?:double backward|forward|jvp)",
    )
    for pattern in patterns:
        found = re.search(pattern, str(error))
        if found:
            return found.group(1)
    return None


def named_error(error: BaseException, needed: str) -> Exception:
    """What to raise for an error of autograd: the operator and the remedy, where they are known."""
    if "modified by an inplace operation" in str(error) or "out=... arguments" in str(error):
        return ValueError(
            f"fn writes into a tensor in a way that autograd cannot follow ({str(error)[:120]}...): write into a copy "
            f"(.clone()), or use the operation that returns its result"
        )
    remedy = "replace that layer" if needed == FIRST else ROWS
    operator = _missing_operator(error)
    if operator is not None:
        return ValueError(
            f"fn uses the operator {operator}, which has no derivative for {needed}, so J v cannot be computed; "
            f"{remedy}"
        )
    line = (str(error).splitlines() or [""])[0]
    if isinstance(error, NotImplementedError) or "requires grad" in line or "require grad" in line:
        return ValueError(f"fn cannot be followed for {needed} ({line[:200]}); {remedy}")
    return error if isinstance(error, Exception) else RuntimeError(str(error))
