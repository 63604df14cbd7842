"""LARS against the official implementation, and against the formula written as a loop over numpy arrays."""

import copy

import numpy as np
import pytest
import torch

from train.optimizers import LARS


@pytest.mark.parametrize("nesterov", [0, 1])
@pytest.mark.parametrize("wd", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize(("name", "tolerance"), [("f64", 2e-7), ("f32", 2e-6)])
def test_six_steps_equal_the_official_code(reference, wd, nesterov, name, tolerance):
    """tests/reference/objectives.npz; its float64 run used lr = float32(0.7)."""
    values = np.load(reference / "objectives.npz")
    prefix = f"lars/{name}/wd{wd}_nesterov{nesterov}_classic1"
    if f"{prefix}/W" not in values:
        prefix = f"lars/{name}/wd{wd:g}_nesterov{nesterov}_classic1"
    dtype = torch.float64 if name == "f64" else torch.float32
    w, b, z = (torch.from_numpy(values[f"lars/in/{k}0"]).to(dtype).requires_grad_() for k in "Wbz")
    optimizer = LARS(
        [{"params": [w, z]}, {"params": [b], "weight_decay": 0.0, "adapt": False}],
        lr=float(np.float32(0.7)),
        weight_decay=wd,
        nesterov=bool(nesterov),
    )
    for step in range(6):
        for tensor, key in ((w, "gW"), (b, "gb"), (z, "gz")):
            tensor.grad = torch.from_numpy(values[f"lars/in/{key}"][step]).to(dtype)
        optimizer.step()
        for tensor, key in ((w, "W"), (b, "b"), (z, "z")):
            np.testing.assert_allclose(
                tensor.detach(), values[f"{prefix}/{key}"][step], rtol=tolerance, atol=tolerance
            )
        for tensor, key in ((w, "vW"), (b, "vb")):
            velocity = optimizer.state[tensor]["momentum"]
            np.testing.assert_allclose(
                velocity, values[f"{prefix}/{key}"][step], rtol=tolerance, atol=tolerance
            )


def test_a_state_taken_to_another_optimizer_goes_on_bitwise(generator):
    def make():
        weights = [torch.ones(3, 3, requires_grad=True), torch.ones(3, requires_grad=True)]
        return weights, LARS(weights, lr=0.1, weight_decay=1e-3)

    gradients = torch.randn(6, 3, 3, generator=generator)

    def advance(weights, optimizer, some):
        for g in some:
            weights[0].grad, weights[1].grad = g, g[0]
            optimizer.step()

    one, optimizer = make()
    advance(one, optimizer, gradients[:3])
    two, other = make()
    for a, b in zip(two, one, strict=True):
        a.data.copy_(b)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(one, optimizer, gradients[3:])
    advance(two, other, gradients[3:])
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("momentum", 1.0), ("trust", float("nan"))])
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        LARS([torch.zeros(1, requires_grad=True)], **{"lr": 0.1, name: value})
