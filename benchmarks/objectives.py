"""A C-SimCLR step against the same step written plainly, and the gradient variance that the closed form saves.

    python -m benchmarks.objectives                 about a minute
    python -m benchmarks.objectives --json objectives.json

*Plainly* means through the distributions: every z scored under every b(z|y_k) by its log density, which makes a
B x B x d tensor, with torch's own autograd through the normaliser. Ours takes the logits as one matrix product. A step
is the objective, forward and backward, on embeddings. Processor time of one thread, the least of several runs.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._harness import seconds, show
from lipcomp._commands import Parser, run
from lipcomp.distributions import VonMisesFisher
from lipcomp.distributions._bessel import log_normalizer
from lipcomp.objectives import CBYOL, CSimCLR, Objective, SimCLR


def plain_log_prob(z: Tensor, mu: Tensor, kappa: Tensor) -> Tensor:
    """(1.1) as it is printed."""
    return log_normalizer(z.shape[-1], kappa) + kappa * (z * mu).sum(-1)


def plain_step(h1: Tensor, h2: Tensor, kappa_e: float, kappa_b: float, beta: float) -> Tensor:
    """C-SimCLR with both directions and the double batch, from log densities alone."""
    mu = F.normalize(h1, dim=1), F.normalize(h2, dim=1)
    e = [VonMisesFisher(direction, kappa_e) for direction in mu]
    z = [one.rsample() for one in e]
    ke, kb = h1.new_tensor(kappa_e), h1.new_tensor(kappa_b)
    total = h1.new_zeros(())
    rows = len(h1)
    for x, y in ((0, 1), (1, 0)):
        candidates = torch.cat([mu[y], mu[x]])
        scores = plain_log_prob(z[x][:, None, :], candidates[None, :, :], kb)
        scores = scores.masked_fill(torch.eye(rows, 2 * rows).roll(rows, 1).bool(), -math.inf)
        i_yz = math.log(2 * rows - 1) - F.cross_entropy(scores, torch.arange(rows))
        residual = (plain_log_prob(z[x], mu[x], ke) - plain_log_prob(z[x], mu[y], kb)).mean()
        total = total + beta * residual - i_yz
    return total


def backward(step: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], object]:
    """The step with its gradient."""
    return lambda: torch.autograd.grad(step(), leaves)


def steps(repeats: int) -> list[dict[str, Any]]:
    """Times of whole steps."""
    rows, ceb = [], CSimCLR(1024.0, 10.0, 1.0)
    closed = replace(ceb, closed_form=True)
    for batch, d in ((128, 64), (256, 128), (512, 128), (512, 256)):
        g = torch.Generator().manual_seed(0)
        h = [torch.randn(batch, d, generator=g).requires_grad_() for _ in range(2)]
        ours = seconds(backward(lambda h=h: ceb(*h).value, h), repeats)
        row = {"quantity": f"C-SimCLR, batch {batch}, d = {d}", "ours, ms": 1e3 * ours}
        row["plain / ours"] = seconds(backward(lambda h=h: plain_step(*h, 1024.0, 10.0, 1.0), h), 2) / ours
        row["SimCLR / ours"] = seconds(backward(lambda h=h: SimCLR(0.1)(*h).value, h), repeats) / ours
        row["closed form / ours"] = seconds(backward(lambda h=h: closed(*h).value, h), repeats) / ours
        kappas = torch.full((batch,), 1024.0, requires_grad=True)
        by_row = backward(lambda h=h, k=kappas: ceb(*h, kappa_e=(k, k)).value, [*h, kappas])
        row["kappa(x) / ours"] = seconds(by_row, 3) / ours
        rows.append(row)
    return rows


def variances(draws: int) -> list[dict[str, Any]]:
    """Total variance of the gradient over the draws of z, sampled residual over closed form."""
    rows = []
    for name, objective in (("C-SimCLR", CSimCLR()), ("C-BYOL", CBYOL())):
        for kappa_e, beta, d in ((1024.0, 1.0, 64), (1024.0, 0.1, 64), (16384.0, 1.0, 256), (100.0, 1.0, 64)):
            g = torch.Generator().manual_seed(0)
            one = torch.randn(64, d, generator=g)
            h = [(one + 0.3 * torch.randn(64, d, generator=g)).requires_grad_() for _ in range(2)]
            targets = [x.detach() + 0.2 * torch.randn(64, d, generator=g) for x in h]
            total = {}
            for closed in (False, True):
                made: Objective = replace(objective, kappa_e=kappa_e, beta=beta, closed_form=closed)
                more = targets if name == "C-BYOL" else []
                grads = [
                    torch.cat(
                        torch.autograd.grad(
                            made(*h, *more, generator=torch.Generator().manual_seed(draw)).value, h
                        )
                    )
                    for draw in range(draws)
                ]
                total[closed] = torch.stack(grads).var(0).sum().item()
            rows.append(
                {
                    "quantity": f"{name}, kappa_e {kappa_e:g}, beta {beta:g}, d = {d}",
                    "variance, sampled": total[False],
                    "variance, closed form": total[True],
                    "sampled / closed": total[False] / total[True],
                }
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ratios."""
    parser = Parser(prog="python -m benchmarks.objectives", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="runs of each, of which the fastest counts")
    parser.add_argument("--draws", type=int, default=200, help="draws of z for the variances")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts = {"steps": steps(options.repeats), "variances": variances(options.draws)}
    show(parts, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
