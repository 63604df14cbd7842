"""Linear maps between batches, one block per image, that compose as those of curvlinops do."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Union, overload

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Product = Callable[[Tensor], Tensor]


class Operator:
    """A linear map and its transpose, as functions of batches; the matrix is block-diagonal and never formed.

    Parameters
    ----------
    forward, transposed
        The products with the matrix and with its transpose.
    out_shape, in_shape
        Shapes of a result and of what is multiplied, first axis the images.
    dtype, device
        Of both.
    """

    forward: Product
    transposed: Product

    def __init__(
        self,
        forward: Product,
        transposed: Product,
        out_shape: tuple[int, ...],
        in_shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.forward, self.transposed = forward, transposed
        self.out_shape, self.in_shape, self.dtype, self.device = out_shape, in_shape, dtype, device

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix, all images together."""
        return math.prod(self.out_shape), math.prod(self.in_shape)

    @property
    def T(self) -> "Operator":
        """The transpose."""
        return Operator(self.transposed, self.forward, self.in_shape, self.out_shape, self.dtype, self.device)

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: "Operator") -> "Operator": ...
    def __matmul__(self, other: Union[Tensor, "Operator"]) -> Union[Tensor, "Operator"]:
        shape = other.out_shape if isinstance(other, Operator) else tuple(other.shape)
        if math.prod(shape) != self.shape[1] or shape[:1] != self.in_shape[:1]:
            raise ValueError(
                f"a factor of shape {self.in_shape} is needed on the right of @, got {tuple(shape)}"
            )
        if isinstance(other, Tensor):
            return self.forward(other.reshape(self.in_shape))
        right = other
        return Operator(
            lambda v: self.forward(right.forward(v).reshape(self.in_shape)),
            lambda u: right.transposed(self.transposed(u).reshape(right.out_shape)),
            self.out_shape, right.in_shape, self.dtype, self.device,
        )  # fmt: skip

    def to_scipy(self) -> "LinearOperator":
        """A ``scipy.sparse.linalg.LinearOperator`` of ``shape``, for ``svds``, ``lsqr`` and the like."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        def product(of: Product, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
            def multiplied(vector: np.ndarray) -> np.ndarray:
                batch = torch.as_tensor(np.ascontiguousarray(vector), dtype=self.dtype, device=self.device)
                return np.asarray(of(batch.reshape(shape)).detach().reshape(-1).cpu())

            return multiplied

        return LinearOperator(
            self.shape,
            matvec=product(self.forward, self.in_shape),
            rmatvec=product(self.transposed, self.out_shape),
            dtype=np.dtype(str(self.dtype).removeprefix("torch.")),
        )
