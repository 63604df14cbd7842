"""Two gloo processes are one process with the whole batch: losses of every step to 1e-6, all weights to 1e-9."""

import json
import os
import socket
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from train.folder import BusyError
from train.parallel import Ranks, started_ranks, synchronise_batch_norm
from train.pretrain import pretrain
from train.settings import Settings

METHODS = ("simclr", "c_simclr", "byol", "c_byol")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def join(rank, size, port):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )


def spawn(function, size, *arguments):
    """Run ``function(rank, size, port, *arguments)`` in ``size`` processes; fork is quick."""
    mp.start_processes(function, (size, free_port(), *arguments), nprocs=size, start_method="fork")


def train_all(rank, size, port, recipes, out):
    """All recipes in one group of processes."""
    join(rank, size, port)
    with started_ranks(torch.device("cpu")):
        for name, recipe in recipes.items():
            pretrain(recipe, 0, out / name, Settings(evaluate_epochs=0), report=lambda line: None)


def final_weights(run):
    from safetensors.torch import load_file

    return load_file(run / "model.safetensors")


@pytest.fixture(scope="module")
def both(recipes, doubles, tmp_path_factory):
    """Every method by one process and by two; SGD, whose steps are as smooth as the loss (Adam's are not at 0)."""
    out = tmp_path_factory.mktemp("ranks")
    chosen = {
        name: replace(recipes[name], optimizer="sgd", learning_rate=0.005, epochs=1.5, warmup_epochs=0.5)
        for name in METHODS
    }
    chosen["lars"] = replace(chosen["c_byol"], optimizer="lars", learning_rate=0.1)
    with doubles():
        for name, recipe in chosen.items():
            pretrain(recipe, 0, out / "one" / name, Settings(evaluate_epochs=0), report=lambda line: None)
        spawn(train_all, 2, chosen, out / "two")
    return out


@pytest.mark.parametrize("method", [*METHODS, "lars"])
def test_two_processes_give_the_losses_and_weights_of_one(both, method):
    one, two = (
        [json.loads(line) for line in (both / side / method / "metrics.jsonl").read_text().splitlines()]
        for side in ("one", "two")
    )
    assert len(one) == len(two) == 36 * 3 // 2 // 8 + 1
    for a, b in zip(one, two, strict=True):
        for name in set(a) - {"effective_rank", "uniformity", "mean_resultant"}:  # of a rank's own rows
            assert a[name] == pytest.approx(b[name], rel=1e-6), (a["step"], name)  # written as float32
    weights = [final_weights(both / side / method) for side in ("one", "two")]
    start = weights[0].keys()
    assert start == weights[1].keys()
    for name in start:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-9, atol=1e-9)


def busy():
    raise BusyError("another run trains there")


def check_layers(rank, size, port, inputs, expected):
    join(rank, size, port)
    with started_ranks(torch.device("cpu")) as ranks:
        network = synchronise_batch_norm(expected["network"], torch.device("cpu"))
        rows = ranks.rows(len(inputs))
        own = inputs[rows].clone().requires_grad_()
        out = network(own)
        torch.testing.assert_close(out, expected["out"][rows], rtol=1e-5, atol=1e-5)
        (out * expected["weight"][rows]).sum().backward()
        torch.testing.assert_close(own.grad, expected["gradient"][rows], rtol=1e-4, atol=1e-5)
        for name, value in network.named_buffers():
            torch.testing.assert_close(value, expected["buffers"][name], rtol=1e-5, atol=1e-6)
        # gather: f(all rows) summed over ranks has the gradient size * f' at every row
        own = inputs[rows].clone().requires_grad_()
        gathered = ranks.gather(own)
        assert torch.equal(gathered, inputs)
        ((ranks.rank + 1) * gathered.square()).sum().backward()
        torch.testing.assert_close(own.grad, 2 * inputs[rows] * sum(range(1, size + 1)))
        assert ranks.everyones(ranks.rank) == list(range(size))
        assert ranks.mean(torch.tensor(float(ranks.rank))).item() == (size - 1) / 2
        assert ranks.of_first(lambda: ranks.rank) == 0
        with pytest.raises(BusyError, match="another run"):  # which the others would wait for
            ranks.of_first(busy)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5, 4)])
@pytest.mark.parametrize("size", [2, 3])
def test_batch_norm_and_gather_over_ranks(generator, shape, size):
    """What is asserted is asserted in every process; one that fails makes spawn raise."""
    inputs = 3 + 2 * torch.randn(shape, generator=generator)
    make = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    others = [make(3, affine=False, momentum=None), nn.Tanh(), make(3, track_running_stats=False)]
    if len(shape) == 4:
        others.append(pytest.importorskip("timm.layers").BatchNormAct2d(3))  # with a ReLU
    network = nn.Sequential(make(3), nn.Tanh(), *others)
    nn.init.uniform_(network[0].weight, generator=generator)
    single = deepcopy(network)
    whole = inputs.clone().requires_grad_()
    out = single(whole)
    weight = torch.randn(shape, generator=generator)
    (out * weight).sum().backward()
    expected = {
        "network": network,
        "out": out.detach(),
        "weight": weight,
        "gradient": whole.grad,
        "buffers": dict(single.named_buffers()),
    }
    spawn(check_layers, size, inputs, expected)


class ReluNorm(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).relu()


def test_batch_norm_that_does_more_is_refused_over_ranks():
    with pytest.raises(ValueError, match=r"0 is a batch norm of another kind \(ReluNorm\)"):
        synchronise_batch_norm(nn.Sequential(ReluNorm(3)), torch.device("cpu"))


def test_on_gpus_batch_norm_is_what_torch_makes_of_it():
    ours, theirs = (nn.Sequential(nn.BatchNorm2d(3, eps=0.1), nn.BatchNorm1d(2)) for _ in range(2))
    synchronise_batch_norm(ours, torch.device("cuda"))
    for a, b in zip(ours, nn.SyncBatchNorm.convert_sync_batchnorm(theirs), strict=True):
        assert type(a) is type(b)
        assert vars(a).keys() == vars(b).keys()
        assert a.extra_repr() == b.extra_repr()


@pytest.mark.parametrize(
    ("size", "rank", "beside"),
    [
        ("2", None, None),
        ("many", "0", None),
        ("0", "0", None),
        ("2", "2", None),
        ("2", "0", "0"),
        ("2", "0", "x"),
    ],
)
def test_ranks_that_could_not_start_say_how_they_do(monkeypatch, size, rank, beside):
    """A rank beyond the last waited for the others without a word."""
    port = str(free_port())
    told = {"WORLD_SIZE": size, "RANK": rank, "LOCAL_WORLD_SIZE": beside, "MASTER_PORT": port}
    for name, value in told.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with (
        pytest.raises(ConnectionError, match=f"WORLD_SIZE='{size}' could not start .* with torchrun"),
        started_ranks(torch.device("cpu")),
    ):
        pass


def test_one_rank_changes_nothing():
    ranks = Ranks()
    x = torch.ones(3, requires_grad=True)
    assert ranks.gather(x) is x
    assert ranks.rows(8) == slice(0, 8)
    with started_ranks(torch.device("cpu")) as found:
        assert found == ranks
