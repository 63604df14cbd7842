"""J v and Jᵀ u of any map from images to vectors, for a whole batch, each at the price of about one forward pass.

For a map f evaluated once at a batch x, with J_i the Jacobian of f at image i (theory (4.1)):

    g(u) = Jᵀ u     reverse mode through the recorded graph of f
    J v             reverse mode through the recorded graph of g, which is linear in u: (dg/du)ᵀ v = J v

so two recorded graphs serve every later product, in either direction, and f itself is never run again. What makes
the second pass cheap is that the weights are constants here. Autograd's own double backward of a convolution runs
two convolutions, forward mode three; inside :func:`frozen` a convolution is replaced by a pair of functions each of
which is the derivative of the other, one convolution in either direction, which keep nothing but the weight. An
evaluation-mode batch norm becomes a product with a constant, and attention takes the math kernel, which alone has
the derivatives.

An operator without a second derivative (hard sigmoid and the like) falls back on forward mode, at three
convolutions a layer; one that has neither is named in the error.

>>> import torch
>>> from lipcomp.jacobian.products import Linearisation
>>> matrix = torch.tensor([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
>>> at = Linearisation(lambda x: x @ matrix.T, torch.zeros(1, 3))
>>> at.transposed(torch.tensor([[1.0, 0.0]]))
tensor([[3., 0., 4.]])
>>> at.forward(torch.tensor([[1.0, 1.0, 0.0]]))
tensor([[3., 2.]])
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Map = Callable[[Tensor], Tensor]


class Linearisation:
    """The differential of ``fn`` at every image of a batch, ready for products on both sides.

    Parameters
    ----------
    fn
        Any differentiable map of a batch, each image for itself; outputs are flattened to vectors.
    images
        The batch, first axis the images.
    method
        "reverse" (two recorded graphs), "forward" (forward-mode products for J v), or "auto": reverse, and
        forward from the first operator on that has no second derivative.

    Raises
    ------
    ValueError
        If the output does not depend differentiably on the images, does not have one row an image, or (while
        running) a layer mixes the images of a batch or draws random numbers.
    """

    def __init__(self, fn: Map, images: Float[Tensor, "batch ..."], method: str = "auto") -> None:
        if method not in ("auto", "reverse", "forward"):
            raise ValueError(f'method must be "auto", "reverse" or "forward", got {method!r}')
        self._fn, self._method = fn, method
        self._images = images.detach().clone().requires_grad_()
        with torch.enable_grad(), frozen():
            output = fn(self._images)
        if not isinstance(output, Tensor) or output.shape[:1] != images.shape[:1]:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"fn must return one row an image; for {len(images)} images it returned {found}")
        if not output.requires_grad:
            raise ValueError(
                "fn's output does not depend differentiably on the images (it was detached, rounded, or computed "
                "under no_grad); give a map that autograd can follow"
            )
        self._output = output.flatten(1)
        self.output: Float[Tensor, "batch dim"] = self._output.detach()
        self._cotangent: Tensor | None = None
        self._pullback: Tensor | None = None

    def transposed(self, u: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch ..."]:
        """Jᵀ u for every image."""
        if self._pullback is None and self._method != "forward":
            return self._record(u)
        (product,) = torch.autograd.grad(
            self._output, self._images, u, retain_graph=True, materialize_grads=True
        )
        return product

    def forward(self, v: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch dim"]:
        """J v for every image."""
        if self._method == "forward":
            return self._dual(v)
        if self._pullback is None:
            self._record(torch.zeros_like(self.output))
        assert self._pullback is not None
        assert self._cotangent is not None
        if not self._pullback.requires_grad:  # J = 0
            return torch.zeros_like(self.output)
        try:
            (product,) = torch.autograd.grad(
                self._pullback, self._cotangent, v, retain_graph=True, materialize_grads=True
            )
        except RuntimeError as error:
            self._fall_back(error)
            return self._dual(v)
        return product

    def _record(self, u: Tensor) -> Tensor:
        """Jᵀ u, keeping the graph from u to the product."""
        self._cotangent = u.detach().clone().requires_grad_()
        try:
            with frozen():
                (self._pullback,) = torch.autograd.grad(
                    self._output, self._images, self._cotangent, create_graph=True, materialize_grads=True
                )
        except RuntimeError as error:
            self._fall_back(error)
            return self.transposed(u)
        return self._pullback.detach()

    def _fall_back(self, error: RuntimeError) -> None:
        if self._method == "reverse" or _missing_operator(error) is None:
            raise _named(error, "double backward") from error
        self._method, self._pullback, self._cotangent = "forward", None, None

    def _dual(self, v: Tensor) -> Tensor:
        try:
            with forward_ad.dual_level(), _math_attention(), torch.no_grad():
                output = self._fn(forward_ad.make_dual(self._images.detach(), v.to(self._images.dtype)))
                tangent = forward_ad.unpack_dual(output).tangent
                return torch.zeros_like(self.output) if tangent is None else tangent.flatten(1).clone()
        except (RuntimeError, NotImplementedError) as error:
            raise _named(error, "forward mode") from error


def _missing_operator(error: BaseException) -> str | None:
    """The operator that an autograd error complains about, if that is what it complains about."""
    patterns = (
        r"derivative for '?([\w:.]+)'? is not implemented",
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


def _named(error: BaseException, needed: str) -> Exception:
    operator = _missing_operator(error)
    if operator is None:
        return error if isinstance(error, Exception) else RuntimeError(str(error))
    return ValueError(
        f"fn uses the operator {operator}, which has no derivative for {needed}, so J v cannot be computed; replace "
        f'that layer, or take the row loop, which needs first derivatives only (method="rows")'
    )


@contextmanager
def frozen() -> Iterator[None]:
    """Run a map as a function of its input alone: weights constant, batch norm affine, attention differentiable."""
    with _math_attention(), _Frozen():
        yield


@contextmanager
def _math_attention() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Frozen(TorchFunctionMode):
    """Replaces what a map calls by versions whose derivatives cost one operation in each direction."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args = tuple(_constant(value) for value in args)
        kwargs = {name: _constant(value) for name, value in (kwargs or {}).items()}
        replacement = REPLACEMENTS.get(func)
        return func(*args, **kwargs) if replacement is None else replacement(*args, **kwargs)


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, nn.Parameter) else value


def _convolution(dims: int) -> Callable[..., Tensor]:
    native = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]

    def convolve(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or weight.requires_grad or input.dim() != dims + 2:
            return native(input, weight, bias, stride, padding, dilation, groups)
        options = (_repeat(stride, dims), _repeat(padding, dims), _repeat(dilation, dims), groups)
        return _Convolution.apply(input, weight, bias, options)

    return convolve


def _repeat(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims // len(value))


class _Convolution(torch.autograd.Function):
    """A convolution by a constant weight; its derivative is :class:`_Transposed`."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.options = input.shape, options
        stride, padding, dilation, groups = options
        return torch.convolution(
            input, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _Transposed.apply(cotangents[0], weight, ctx.shape, ctx.options), None, None, None


class _Transposed(torch.autograd.Function):
    """The transpose of a convolution without bias; its derivative is the convolution again."""

    @staticmethod
    def forward(ctx: Any, cotangent: Tensor, weight: Tensor, shape: Any, options: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.options = options
        stride, padding, dilation, groups = options
        unread = cotangent.new_empty(1).expand(shape)  # only its shape is read
        return torch.ops.aten.convolution_backward(
            cotangent, unread, weight, None, stride, padding, dilation, False, [0] * len(stride), groups,
            [True, False, False],
        )[0]  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _Convolution.apply(cotangents[0], weight, None, ctx.options), None, None, None


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        raise ValueError(
            "fn is in training mode, or its batch norm keeps no statistics: it normalises by the batch, which mixes "
            "the images; call .eval() on the encoder first"
        )
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (1, -1) + (1,) * (input.dim() - 2)
    return torch.addcmul(shift.view(shape), input, scale.view(shape))


def _dropout(native: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if training and p > 0:
            raise ValueError(
                f"fn is in training mode: it applies dropout with p = {p}, so it is not deterministic; call .eval() "
                f"on the encoder first"
            )
        return input

    return dropout


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6  # the native operator has no second derivative


REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
    F.batch_norm: _batch_norm,
    F.hardsigmoid: _hardsigmoid,
    **{
        native: _dropout(native)
        for native in (
            F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
        )
    },
}  # fmt: skip
