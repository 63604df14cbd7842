"""Replicas in one process: each is a thread, and gather waits for the others' rows, gradients and all."""

import threading

import pytest
import torch


def losses_of_replicas(objective, inputs, replicas, **by_row):
    """The losses of every replica, in one graph. Inputs and ``by_row`` are split by rows; call keywords go through."""
    barrier, slots, losses, errors = threading.Barrier(replicas), {}, [None] * replicas, []

    def replica(rank):
        step = 0

        def gather(rows):
            nonlocal step
            slots[step, rank] = rows
            barrier.wait(20)
            whole = torch.cat([slots[step, other] for other in range(replicas)])
            step += 1
            return whole

        try:
            mine = [x.chunk(replicas)[rank] for x in inputs]
            keywords = {name: value[rank] for name, value in by_row.items()}
            losses[rank] = objective(*mine, gather=gather, rank=rank, **keywords).value
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=replica, args=(rank,)) for rank in range(replicas)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return losses


@pytest.fixture
def replicated():
    return losses_of_replicas


def make_views(rows=12, dim=16, seed=0, closeness=1.0):
    g = torch.Generator().manual_seed(seed)
    one = torch.randn(rows, dim, generator=g, dtype=torch.float64)
    two = one + closeness * torch.randn(rows, dim, generator=g, dtype=torch.float64)
    return one.requires_grad_(), two.requires_grad_()


def call_by_family(objective, at, **keywords):
    if objective.family == "byol":
        targets = [h.detach().roll(1, 0) + 0.1 * h.detach() for h in at]
        return objective(*at, *targets, **keywords)
    if objective.family == "supervised":
        labels = torch.arange(len(at[0])) % 4
        return objective(at[0], labels, torch.eye(16, dtype=at[0].dtype)[:4] + 0.1, **keywords)
    return objective(*at, **keywords)


@pytest.fixture
def views():
    """Two views' embeddings, leaves in float64."""
    return make_views


@pytest.fixture
def call():
    """Calls an objective of any family on two views' embeddings."""
    return call_by_family
