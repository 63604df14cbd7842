"""Nearest neighbours in pixel space, in blocks of bounded memory.

The squared distances of a block of images to a block of others are one matrix product (see
:mod:`lipcomp.bound.all_pairs`); of every image the few nearest are kept. The product only nominates: twice as many as
asked for are kept, and ranked by their differences; where images are so close that the product loses their distance,
it comes from the difference at once. Duplicates are neighbours at distance 0; the bounds count them out.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int64
from torch import Tensor

from lipcomp.bound._all_pairs import NEAR, Images, block_length


def nearest_neighbours(
    images: Images, n: int, k: int = 1, *, advance: Callable[[int], object] | None = None
) -> Int64[Tensor, "n k"]:
    """Indices of the k < n nearest other images of every image, L2 over raw pixels.

    ``images`` may be a function from indices to a batch; ``advance`` is called with the number of finished images.
    """
    if not 1 <= k < n:
        raise ValueError(
            f"neighbours={k} needs at least {max(k, 1) + 1} images, got {n}; take more images, "
            f"or fewer neighbours (at least 1)"
        )
    load = (lambda indices: images[indices]) if isinstance(images, Tensor) else images
    size = block_length(load(torch.arange(1)).numel())
    wanted = min(2 * k, n - 1)
    blocks = torch.arange(n).split(size)
    found = []
    for rows in blocks:
        images_here = load(rows).flatten(1)
        centre = images_here.float().nan_to_num(0, 0, 0).mean(0)
        here = images_here.float() - centre
        own = here.square().sum(1)
        best = here.new_full((len(rows), 0), 0.0)
        place = torch.zeros((len(rows), 0), dtype=torch.int64, device=here.device)
        for columns in blocks:
            images_there = load(columns).flatten(1)
            there = images_there.float() - centre
            other = there.square().sum(1)
            squared = torch.addmm(other, here, there.T, alpha=-2).add_(own[:, None])
            largest = torch.cat([own, other]).nan_to_num(0, 0, 0).max()
            for part in (squared <= NEAR * largest).nonzero().split(1024):
                i, j = part.unbind(1)
                step = images_there[j].double() - images_here[i].double()
                squared[i, j] = step.square().sum(1).to(squared)
            squared[rows[:, None] == columns[None, :]] = torch.inf
            squared.nan_to_num_(torch.inf)  # an image that is not finite is nobody's neighbour
            near, at = squared.topk(min(wanted, len(columns)), largest=False)
            best = torch.cat([best, near], 1)
            place = torch.cat([place, columns.to(at.device)[at]], 1)
            best, order = best.topk(min(wanted, best.shape[1]), largest=False)
            place = place.gather(1, order)
        found.append(_ranked(load, rows, place.cpu(), best.isinf().cpu())[:, :k])
        if advance is not None:
            advance(len(rows))
    return torch.cat(found)


def _ranked(load: Callable[[Tensor], Tensor], rows: Tensor, places: Tensor, unknown: Tensor) -> Tensor:
    """Order every image's candidates by their exact distances."""
    here = load(rows).flatten(1)
    distances = torch.stack(
        [(load(column).flatten(1).double() - here.double()).norm(dim=1).cpu() for column in places.T], 1
    )
    return places.gather(1, distances.masked_fill(unknown, torch.inf).argsort(1))
