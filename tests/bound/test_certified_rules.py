"""Certificates of single operations: exact where the operation is linear, never below the largest local constant."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipcomp.bound import certified_bound
from lipcomp.jacobian import spectral_norm

LINEAR = {
    "average": nn.AvgPool2d(3, 2, 1),
    "average of what is there": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, last windows not whole": nn.AvgPool2d((2, 3), ceil_mode=True),
    "average in a row": nn.Sequential(nn.Flatten(2), nn.AvgPool1d(5, 3)),
    "overlapping average": nn.AvgPool2d(4, 1),
    "adaptive": nn.AdaptiveAvgPool2d((3, 2)),
    "adaptive to more": nn.AdaptiveAvgPool2d((11, 16)),
    "adaptive to one": nn.AdaptiveAvgPool2d(1),
    "circular": nn.CircularPad2d((3, 2, 1, 4)),
    "reflected": nn.ReflectionPad2d((2, 1, 3, 0)),
    "repeated": nn.ReplicationPad2d(2),
    "constant": nn.ConstantPad2d(2, 0.7),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operations_are_exact(name, generator):
    network = nn.Sequential(LINEAR[name], nn.Flatten()).eval()
    images = torch.rand(2, 2, 7, 9, generator=generator, dtype=torch.float64)
    truth = float(spectral_norm(network, images, method="rows").sigma.max())
    assert float(certified_bound(network, images).bound.max()) == pytest.approx(truth, rel=1e-6)


class Sorted(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        x = x.flatten(1)
        if self.size == 2:
            pairs = x.unflatten(1, (-1, 2))
            low, high = (torch.min(pairs, 2, keepdim=True)[0], torch.max(pairs, 2, keepdim=True)[0])
            return torch.cat([low, high], 2).flatten(1)
        return torch.sort(x.unflatten(1, (-1, self.size)), dim=2)[0].flatten(1)


OTHERS = {
    "maximum": nn.MaxPool2d(3, 2, 1),
    "dilated maximum": nn.MaxPool2d(3, 2, 1, dilation=2),
    "maximum of overlapping windows": nn.MaxPool2d(3, 1),
    "maximum, last windows not whole": nn.MaxPool2d(2, ceil_mode=True),
    "maximum with its place": nn.MaxPool2d(2, return_indices=True),
    "norm": nn.LPPool2d(2, 2),
    "overlapping norm": nn.LPPool2d(2, 3, 1),
    "steep elu": nn.ELU(2.5),
    "prelu": nn.PReLU(2, 1.7),
    "sorted pairs": Sorted(2),
    "sorted": Sorted(7),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_operations_are_never_below_the_local_constant(name, generator):
    operation = OTHERS[name].double().requires_grad_(False)

    def fn(x):
        found = operation(x - 0.5)
        return (found[0] if isinstance(found, tuple) else found).flatten(1)

    images = torch.rand(6, 2, 7, 9, generator=generator, dtype=torch.float64)
    if not name.startswith("sorted"):  # equal numbers have no derivative when sorted
        images[0] = torch.where(
            torch.arange(63).view(7, 9) == 31, 1.0, 0.5
        )  # a point that lies in many windows
    truth = float(spectral_norm(fn, images, method="rows").sigma.max())
    certified = float(certified_bound(fn, images).bound.max())
    assert truth <= certified * (1 + 1e-9)
    assert certified <= truth * 2.01


def test_sorting_costs_nothing(generator):
    images = torch.rand(3, 2, 7, 9, generator=generator)
    for size in (2, 7, 126):
        assert certified_bound(Sorted(size), images).bound.tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda x: x.flatten(1).max(0, keepdim=True)[0].expand(len(x), -1), "along one axis of an image"),
        (lambda x: torch.sort(x.flatten(1), 0)[0], "over the images"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=1).flatten(1), "divisor of its own"),
        (lambda x: F.lp_pool2d(x, 3, 2).flatten(1), "by the 3-norm"),
        (lambda x: F.lp_pool2d(x, 2, 2, ceil_mode=True).flatten(1), "not whole"),
    ],
)
def test_what_has_no_rule_says_so(fn, reason, generator, monkeypatch):
    monkeypatch.setattr(
        "lipcomp.bound.certified.check_map", lambda fn, images: 1
    )  # some of these mix the images
    found = certified_bound(fn, torch.rand(2, 2, 7, 9, generator=generator))
    assert reason in found.reason
    assert found.bound.isinf().all()
