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
