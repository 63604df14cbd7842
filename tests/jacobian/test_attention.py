"""Attention's own differential against the dense Jacobian, in all the ways that attention is called."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipcomp.jacobian import Linearisation


class Tokens(nn.Module):
    """Attention in the ways that it is called."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.embed = nn.Linear(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=kind != "sequence first")
        self.qkv = nn.Linear(8, 24)

    def forward(self, images):
        x = self.embed(F.unfold(images, 2, stride=2).mT)
        if self.kind in ("packed", "weights"):
            x = self.attention(x, x, x, need_weights=self.kind == "weights")[0]
        elif self.kind == "sequence first":
            x = self.attention(x.mT.permute(2, 0, 1), *[x.mT.permute(2, 0, 1)] * 2, need_weights=False)[
                0
            ].transpose(0, 1)
        elif self.kind == "self, one tensor":
            x = x.transpose(0, 1)
            x = F.multi_head_attention_forward(
                x, x, x, 8, 2, self.attention.in_proj_weight, self.attention.in_proj_bias, None, None, False, 0.0,
                self.attention.out_proj.weight, self.attention.out_proj.bias, training=False, need_weights=False,
            )[0].transpose(0, 1)  # fmt: skip
        elif self.kind == "across":
            x = self.attention(x[:, :3], x, x, need_weights=False)[0]
        else:
            q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
            n = q.shape[2]
            options = {
                "masked": {"attn_mask": torch.arange(n * n).view(n, n) % 3 != 1},
                "causal": {"is_causal": True},
                "scaled": {"scale": 0.3},
            }
            x = (
                F.scaled_dot_product_attention(q, k, v, **options.get(self.kind, {}))
                .transpose(1, 2)
                .flatten(2)
            )
        return x.flatten(1)[:, :40]


@pytest.mark.parametrize(
    "kind",
    [
        "packed",
        "weights",
        "sequence first",
        "self, one tensor",
        "across",
        "masked",
        "causal",
        "scaled",
        "timm",
    ],
)
def test_attention_in_all_its_calls(kind, generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Tokens(kind).eval().double()
    images = torch.rand(3, 3, 8, 8, generator=generator, dtype=torch.float64)
    at = Linearisation(network, images, method="reverse")
    u = torch.randn(at.output.shape, generator=generator, dtype=torch.float64)
    v = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(at.output, network(images).detach())
    dense = torch.func.vmap(torch.func.jacrev(lambda x: network(x[None])[0]))(images).flatten(2)
    torch.testing.assert_close(at.transposed(u).flatten(1), torch.einsum("ndp,nd->np", dense, u))
    torch.testing.assert_close(at.forward(v), torch.einsum("ndp,np->nd", dense, v.flatten(1)))


def test_attention_that_drops_out_is_refused():
    def fn(x):
        q = x.flatten(2).unsqueeze(1)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.1).flatten(1)

    with pytest.raises(ValueError, match="training mode: its attention applies dropout"):
        Linearisation(fn, torch.rand(2, 3, 4, 4))


def test_attention_under_autocast_is_refused(generator):
    network = Tokens("packed").eval()
    images = torch.rand(3, 3, 8, 8, generator=generator)

    def fn(x):
        with torch.autocast("cpu", torch.bfloat16):
            return network(x)

    with pytest.raises(ValueError, match="autocast"):
        Linearisation(fn, images)
