"""What a map and its images must be before anything is measured, and which outputs can be measured at all."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.modules.module import register_module_buffer_registration_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lipcomp._arguments import taking
from lipcomp.jacobian._frozen import frozen, math_attention
from lipcomp.jacobian._precision import doubled, full_precision
from lipcomp.jacobian._products import Map, as_rows, check_batch, narrowed, place_of

EXCLUSIONS = ("non-finite output", "zero-norm embedding", "non-finite derivative")
# Of a mean direction's norm: beyond float32 rounding, below any real defect.
TOLERANCE = 1e-3
# of two evaluations at one image, relative; some maps hold float32 inside
AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-6}
HALF = {torch.float16, torch.bfloat16}
HALF_AGREEMENT = 0.1  # of a deep network that rounds to bfloat16 with itself in float64
AT_ONCE = 32
REMEDY = "call .eval() on the encoder, and take random layers, batch statistics and what it updates out of it"


class Checked(NamedTuple):
    """What the check of a map has found: the dimension of its output, and whether that is a mean direction.

    ``wide`` is the same map in float64, if it rounds to half precision on its way.
    """

    dim: int
    directions: bool
    wide: Map | None


PIXELS = (0.0, 1.0)
"""The domain where the caller has no argument for it."""


def check_images(
    images: Float[Tensor, "n ..."], domain: tuple[float, float] | None = PIXELS, *, at_least: int = 1
) -> None:
    """Refuse images that are too few, not finite, or not pixels.

    Raises
    ------
    ValueError
        Naming what was received and the remedy.
    """
    check_batch(images, at_least)
    if torch._C._functorch.is_functorch_wrapped_tensor(images):
        raise ValueError(
            "images are inside torch.func.vmap or another transform; call this outside of it: it takes a batch"
        )
    if images.dtype not in AGREEMENT:
        raise ValueError(
            f"images must be float32 or float64, got {images.dtype}, which has only two or three digits; convert "
            f"images and encoder with .float()"
        )
    if images.numel() == 0:
        raise ValueError(f"images must hold pixels, got shape {tuple(images.shape)}")
    low, high = _range(images)
    if not (torch.isfinite(torch.tensor([low, high])).all()):
        raise ValueError("images must be finite; some pixels are NaN or infinite")
    if domain is not None and not (domain[0] <= low and high <= domain[1]):
        others = "" if domain is PIXELS else ", or give domain=None for other inputs"
        raise ValueError(
            f"images must be pixels in [{domain[0]:g}, {domain[1]:g}], got values from {low:.4g} to {high:.4g}; divide "
            f"bytes by 255, undo the normalisation (it belongs to the map){others}"
        )


def _range(images: Tensor) -> tuple[float, float]:
    low, high = images.detach().aminmax()
    return float(low), float(high)


def check_pixels(fn: Map, images: Float[Tensor, "n ..."]) -> None:
    """Refuse images outside [0, 1] for an encoder, which holds its own normalisation.

    Raises
    ------
    ValueError
        Naming the range received.
    """
    low, high = _range(images)
    if hasattr(fn, "image_shape") and not (low >= 0 and high <= 1):
        raise ValueError(
            f"images must be pixels in [0, 1], got values from {low:.4g} to {high:.4g}; undo the normalisation, which "
            f"the encoder does itself"
        )


def check_map(fn: Map, images: Float[Tensor, "n ..."]) -> Checked:
    """Refuse a map that draws random numbers, that updates what it keeps, or that mixes the images of a batch.

    Evaluates the first image alone by PyTorch's own operations, watching each of them, and between two images of noise
    by lipcomp's, one of which is evaluated alone too. The noise has no part in the data, so that neither equal nor
    dominated images hide anything, and tells whether the map gives mean directions: both have norm 1, in several
    numbers.

    Raises
    ------
    ValueError
        Naming the defect and the remedy.
    """
    if not callable(fn):
        raise ValueError(  # noqa: TRY004  (the package's one kind of refusal)
            f"fn must be a map of images, got a {type(fn).__name__}; of a checkpoint give its .encoder"
        )
    image = images[:1].detach()
    low, high = _range(image)
    noise = torch.rand((2, *image.shape[1:]), generator=torch.Generator().manual_seed(0)).to(image)
    noise = noise if low >= 0 and high <= 1 else low + max(high - low, 1.0) * noise
    with torch.no_grad():
        with (
            taking("fn", image),
            math_attention(),
            full_precision(),
            _Initialised(),
            _Watch(image.clone()) as watch,
        ):
            native = as_rows(fn(watch.image), 1)
        if native.dtype not in AGREEMENT:
            raise ValueError(
                f"fn must return float32 or float64, got {native.dtype}: half precision (or an autocast) leaves two or "
                f"three digits, and integers have no derivative; convert the encoder with .float()"
            )
        with taking("fn", image), frozen():
            among = as_rows(fn(torch.cat([noise[:1], image, noise[1:]])), 3)
            with _keeping_buffers():  # what depends on the shape alone is there by now
                apart = as_rows(fn(noise[:1].clone()), 1)
        if _differ(native, among[1:2]):
            _complain(fn, image, native, among[1:2])
        if _differ(apart, among[:1]):  # the image may dominate the noise
            _complain(fn, noise[:1], apart, among[:1])
        wide = _without_halves(fn, images.detach(), watch.rounds) if watch.rounds else None
    unit = (among[::2].norm(dim=1) - 1).abs() < TOLERANCE
    one = among[::2].abs().amax(1) > 1 - TOLERANCE  # number alone, as of a softmax that is sure of the noise
    return Checked(native.shape[1], bool(unit.all() and not one.all()), wide)


def _without_halves(fn: Map, images: Tensor, rounds: set[torch.dtype]) -> Map:
    """The same map in float64, without which one that rounds to half precision has two or three digits."""
    half = min(map(str, rounds))
    wide, _ = doubled(fn, images[:1], (torch.float32, *HALF))
    if wide is None or narrowed(wide, images[:1].double()):
        raise ValueError(
            f"fn rounds to {half} inside, where it cannot be run in float64 (in TorchScript, or cast "
            f"by a name), which leaves two or three digits: give the module in float32, before it is traced"
        )
    for part in images.split(AT_ONCE):
        rounded, exact = (as_rows(f(part.clone()), len(part)) for f in (fn, wide))
        for one, other in zip(rounded, exact, strict=True):
            if (off := _difference(one, other)) > HALF_AGREEMENT:
                raise ValueError(
                    f"fn's output in {half} is off by {off:.2g} of its size from that of the same map in float64: it "
                    f"over- or underflows, or branches on what is rounded; give the module in float32"
                )
    return wide


def _complain(fn: Map, image: Tensor, native: Tensor, among: Tensor) -> None:
    """Find out which of the three it was."""
    with frozen():
        alone, again = (as_rows(fn(image.clone()), 1) for _ in range(2))
    for one, other, defect in (
        (again, alone, "fn is not deterministic: two calls with the same image differ"),
        (alone, among, "fn mixes the images of a batch: an image alone gives another output than in company"),
    ):
        if _differ(one, other):
            raise ValueError(f"{defect} (by {_difference(one, other):.2g} of its size); {REMEDY}")
    raise ValueError(
        f"fn gives another output (by {_difference(native, alone):.2g} of its size) when its operations are replaced "
        f"by lipcomp's (lipcomp.jacobian._frozen); it may look at memory layouts: take that out, and please report it"
    )


def _difference(first: Tensor, other: Tensor) -> float:
    """The largest difference of two outputs, relative to the largest number; infinite where one alone is finite."""
    if not torch.equal(first.isfinite(), other.isfinite()):
        return float("inf")
    first, other = first.nan_to_num(0, 0, 0).double(), other.nan_to_num(0, 0, 0).double()
    scale = torch.maximum(first.abs().amax(), other.abs().amax()).clamp(min=1e-300)
    return float((first - other).abs().amax() / scale)


def _differ(first: Tensor, other: Tensor) -> bool:
    return _difference(first, other) > AGREEMENT[first.dtype]


@contextmanager
def _keeping_buffers() -> Iterator[None]:
    """Refuses another tensor in the place of a module's buffer."""
    thread = threading.get_ident()  # the hook is the process's

    def refuse(module: nn.Module, name: str, value: Tensor | None) -> None:
        if (
            threading.get_ident() == thread
            and (kept := module._buffers.get(name)) is not None
            and kept is not value
        ):
            raise ValueError(_updates(f"{type(module).__name__}.{name}"))

    hook = register_module_buffer_registration_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def _updates(what: str) -> str:
    return f"fn updates a tensor that it keeps ({what}): it is in training mode or has a state; {REMEDY}"


class _Initialised(TorchFunctionMode):
    """Refuses lazy parameters: their initialisation draws numbers, and refused half-way it leaves arbitrary ones."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if args and is_lazy(args[0]):
            raise ValueError(
                "fn has a lazy layer (torch.nn.Lazy...) that has no weights before its first call; call fn on an image "
                "once, then measure it"
            )
        return func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):
    """Sees every operation of a call, and refuses random draws and writes into tensors that were there before."""

    supports_higher_order_operators = True

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image
        self.rounds: set[torch.dtype] = set()  # to which types of half precision, what comes from the image
        self._images = {place_of(image)}
        self._own = {place_of(image): image}  # keeps them alive: a storage's place is used again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            raise ValueError(  # noqa: TRY004  (the package's one kind of refusal)
                f"fn uses torch's operator {func.name()}, which runs functions that cannot be watched; write it by "
                f"plain operations (torch.where for torch.cond)"
            )
        name = func.overloadpacket.__name__
        evaluates = ("rrelu" in name and not any(arg is True for arg in args)) or "attention" in name
        if torch.Tag.nondeterministic_seeded in func.tags and not evaluates:
            raise ValueError(
                f"fn draws random numbers ({name}): it is in training mode or not deterministic; {REMEDY}"
            )
        schema = func._schema.arguments
        written = [kwargs.get(spec.name, *args[i : i + 1]) for i, spec in enumerate(schema) if _writes(spec)]
        # statistics, though the schema does not say so
        if "batch_norm" in name and len(args) > 5 and args[5] is True:
            written += args[3:5]
        for tensor in tree_leaves(written):
            if isinstance(tensor, Tensor) and place_of(tensor) not in self._own:
                raise ValueError(_updates(name))
        result = func(*args, **kwargs)
        given, made = (
            [leaf for leaf in tree_leaves(v) if isinstance(leaf, Tensor)]
            for v in ((args, kwargs), (result, written))
        )
        if any(place_of(tensor) in self._images for tensor in given):
            self._images |= {place_of(tensor) for tensor in made}
            if any(tensor.dtype in AGREEMENT for tensor in given):
                self.rounds |= HALF & {tensor.dtype for tensor in made}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not _shares(tensor, args):
                self._own[place_of(tensor)] = tensor
        return result


def _writes(spec: Any) -> bool:
    return spec.alias_info is not None and spec.alias_info.is_write


def _shares(tensor: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether a result is a view of an argument: then it is as old as that."""
    place = place_of(tensor)
    return any(isinstance(other, Tensor) and place_of(other) == place for other in tree_leaves(args))


def check_layer(encoder: Any, layer: str) -> None:
    """Refuse a layer that an encoder (anything with ``layers()``) does not have.

    Raises
    ------
    ValueError
        Naming the layers it has.
    """
    if layer not in encoder.layers():
        raise ValueError(
            f"layer must be one of {', '.join(encoder.layers())} for this encoder, got {layer!r}"
        )


def usable_outputs(
    outputs: Float[Tensor, "n dim"], directions: bool
) -> tuple[Bool[Tensor, " n"], dict[str, int]]:
    """Which outputs can be measured, and how many were left out, by reason.

    A vector that is not finite is left out. Where the map gives mean directions (:func:`check_map`), so is a vector of
    another norm: it came from a zero embedding, where mu is not defined.
    """
    finite = outputs.isfinite().all(1)
    none = finite & directions & ((outputs.norm(dim=1) - 1).abs() >= TOLERANCE)
    counts = (int((~finite).sum()), int(none.sum()), 0)
    return (finite & ~none).cpu(), dict(zip(EXCLUSIONS, counts, strict=True))
