"""Identity by content: every input that can change a number changes it, and nothing else does."""

import functools
import hashlib
import importlib.util
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from lipcomp import _identity_files
from lipcomp._identity import digest, hash_module
from lipcomp._identity_code import reached
from lipcomp._identity_files import hash_files
from lipcomp.encoders import EncoderSpec, build_encoder, wrap

SCALE = 2.0


class Net(nn.Module):
    """A network with plain attributes, buffers and a function."""

    def __init__(self, heads=2, eps=1e-5, act=F.relu):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.heads, self.eps, self.act = heads, eps, act
        self.register_buffer("hidden", torch.zeros(3), persistent=False)
        self.table = {"a": [1, 2]}

    def forward(self, x):
        return self.act(self.inner(x)).mean((2, 3)) * SCALE


def built(**more):
    torch.manual_seed(0)
    return Net(**more).eval()


def tapped(**more):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    torch.manual_seed(0)
    for part in network:
        if isinstance(part, nn.Conv2d):
            part.reset_parameters()
    return wrap(network, **({"layer": "3", "image_shape": (1, 9, 9), "pool": "mean"} | more))


def hooked(net):
    net.inner.register_forward_hook(lambda module, inputs, output: output + 1)


def edit(path):
    """A function that sets an attribute of a network, by its path."""

    def change(value):
        def act(net):
            *parts, last = path.split(".")
            place = functools.reduce(getattr, parts, net)
            setattr(place, last, value)

        return act

    return change


CHANGES = {
    "weight": lambda net: net.inner[0].weight.data.add_(1e-6),
    "one ulp of a bias": lambda net: net.inner[0].bias.data.copy_(
        torch.nextafter(net.inner[0].bias, torch.ones(4))
    ),
    "running mean": lambda net: net.inner[1].running_mean.add_(1e-3),
    "running variance": lambda net: net.inner[1].running_var.mul_(1.01),
    "buffer that is not saved": lambda net: net.hidden.add_(1),
    "heads": edit("heads")(3),
    "epsilon": edit("eps")(1e-6),
    "batch norm's epsilon": lambda net: setattr(net.inner[1], "eps", 1e-3),
    "activation": edit("act")(F.gelu),
    "activation with an argument": edit("act")(functools.partial(F.leaky_relu, negative_slope=0.3)),
    "argument of a partial": edit("act")(functools.partial(F.leaky_relu, negative_slope=0.2)),
    "nested attribute": lambda net: net.table["a"].append(3),
    "stride": lambda net: setattr(net.inner[0], "stride", (2, 2)),
    "padding mode": lambda net: setattr(net.inner[0], "padding_mode", "reflect"),
    "dtype": lambda net: net.double(),
    "order of modules": lambda net: setattr(
        net, "inner", nn.Sequential(net.inner[0], net.inner[2], net.inner[1])
    ),
    "class of a module": lambda net: net.inner.__setitem__(2, nn.GELU()),
    "hook": hooked,
    "parameter removed": lambda net: setattr(net.inner[0], "bias", None),
    "a module more": lambda net: net.inner.append(nn.Identity()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_a_network_changes_its_identity(name):
    net = built()
    before = hash_module(net)
    CHANGES[name](net)
    assert hash_module(net) != before


def test_all_changes_of_a_network_are_told_apart():
    found = {}
    for name, change in CHANGES.items():
        net = built()
        change(net)
        found.setdefault(hash_module(net), []).append(name)
    assert len(found) == len(CHANGES), [names for names in found.values() if len(names) > 1]


@pytest.mark.parametrize(
    "same",
    [
        lambda net: net.train(),
        lambda net: net.requires_grad_(False),
        lambda net: net.inner[1].num_batches_tracked.add_(5),
        lambda net: net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}),
        lambda net: net.inner[0].weight.register_hook(lambda gradient: gradient),
    ],
)
def test_what_does_not_change_the_function_leaves_it(same):
    net = built()
    before = hash_module(net)
    same(net)
    assert hash_module(net) == before == hash_module(built())


def test_an_encoder_is_told_by_layer_pool_head_and_normalisation():
    variants = [
        tapped(),
        tapped(layer="1"),
        tapped(pool="flatten"),
        tapped(mean=0.5),
        tapped(std=0.5),
        tapped(image_shape=(1, 10, 10)),
        tapped(projector=nn.Linear(4, 2)),
    ]
    assert len({hash_module(one) for one in variants}) == len(variants)
    assert hash_module(tapped()) == hash_module(tapped())
    assert hash_module(tapped(architecture="a name")) == hash_module(tapped())
    specs = [EncoderSpec("small_cnn", (1, 28, 28), mean=(m,)) for m in (0.1, 0.2)]
    assert len({hash_module(build_encoder(spec)) for spec in specs}) == 2


NETWORK = """
from torch import nn
import helpers
from helpers import act, Mix
from types import SimpleNamespace
SCALE = 1.0
CONFIG = SimpleNamespace(power=2)
def local(x):
    return x * SCALE ** CONFIG.power
class Net(Mix, nn.Module):
    gain = helpers.GAIN
    def forward(self, x):
        return self.mix(local(helpers.post(act(x)))) * self.gain
    @property
    def twice(self):
        return helpers.double(2)
"""
HELPERS = """
import functools, re, torch
GAIN = 1.0
LIMITS = {"low": 0}
EDGES, WORD = range(3), re.compile("a")
def plus(function):
    @functools.wraps(function)
    def inner(x):
        return function(x) + len(EDGES) * bool(WORD.match("a"))
    return inner
@torch.no_grad()
def act(x):
    return x.clamp(LIMITS["low"])
@functools.lru_cache
def post(x, power=2):
    return x ** power
@plus
def double(x):
    return 2 * x
class Mix:
    def mix(self, x):
        return deep(x)
def deep(x):
    return x + 1
"""


def class_of(folder, network=NETWORK, helpers=HELPERS):
    """The identity of a class in a process of its own that imports it."""
    folder.mkdir()
    (folder / "network.py").write_text(network)
    (folder / "helpers.py").write_text(helpers)
    known = {name: sys.modules.pop(name, None) for name in ("network", "helpers")}
    sys.path.insert(0, str(folder))
    try:
        module = __import__("network")
        return hash_module(module.Net()), digest(module.local)
    finally:
        sys.path.remove(str(folder))
        for name, module in known.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 1.0", "SCALE = 1.001"),
        ("power=2)", "power=3)"),
        ("return x * SCALE", "return 2 * x * SCALE"),
        ("GAIN = 1.0", "GAIN = 2.0"),
        ('"low": 0', '"low": 1'),
        ("x.clamp(", "x.relu().clamp("),
        ("return x + 1", "return x + 2"),
        ("return 2 * x", "return x + x"),
        ("x, power=2", "x, power=3"),
        ("x ** power", "x * power"),  # behind lru_cache
        ("* bool(", "+ bool("),  # of a decorator of one's own
        ("range(3)", "range(4)"),
        ('compile("a")', 'compile("b")'),
    ],
)
def test_all_code_that_a_network_reaches_counts(tmp_path, old, new):
    before = class_of(tmp_path / "a")
    after = class_of(tmp_path / "b", NETWORK.replace(old, new), HELPERS.replace(old, new))
    assert before[0] != after[0]
    assert (before[1] != after[1]) == (old in ("SCALE = 1.0", "power=2)", "return x * SCALE"))


def test_code_that_is_not_used_and_comments_do_not_count(tmp_path):
    more = "# a comment\ndef unused():\n    return 3\nOTHER = 4\n"
    worded = NETWORK.replace("def local(x):", 'def local(x):\n    """Doc."""')
    assert class_of(tmp_path / "a") == class_of(tmp_path / "b", worded + more, HELPERS + more)


def test_the_folder_that_code_lies_in_does_not_count(tmp_path):
    here = "from pathlib import Path\nHERE = Path(__file__).resolve().parent\n"
    moved = HELPERS.replace("return x + 1", "HERE; return x + 1")
    one, other = (class_of(tmp_path / name, NETWORK, here + moved) for name in "ab")
    assert one == other
    named = here.replace("Path(__file__).resolve().parent", 'Path("table.csv")')
    assert one != class_of(tmp_path / "c", NETWORK, named + moved)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def plain(value):
    """A form that is equal exactly if two values are."""
    if isinstance(value, dict):
        return ("map", frozenset((plain(k), plain(v)) for k, v in value.items()))
    if isinstance(value, list):
        return ("list", tuple(map(plain, value)))
    return (type(value).__name__, repr(value))


@settings(max_examples=60)
@given(values, values)
def test_digests_are_equal_exactly_for_equal_values(one, other):
    assert (digest(one) == digest(other)) == (plain(one) == plain(other))


@settings(max_examples=20)
@given(values)
def test_a_digest_is_stable_and_mixes_nothing_up(value):
    assert digest(value) == digest(value)
    assert digest([value]) != digest(value)
    assert digest(value, None) != digest(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(3), np.arange(3).astype(np.int32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor(1 + 2j), torch.tensor(1 - 2j)),
        ("1", 1),
        (1, 1.0),
        (True, 1),
        ([1, [2]], [[1], 2]),
        (b"a", "a"),
        ({"a": 1}, {"a": 2}),
    ],
)
def test_values_that_differ_differ(one, other):
    assert digest(one) != digest(other)


def test_views_and_places_in_memory_do_not_count():
    x = torch.arange(6.0).view(2, 3)
    assert digest(x.T.contiguous()) == digest(x.T)
    assert digest(x[:, 1]) == digest(x[:, 1].clone())
    assert digest(torch.conj(torch.tensor([1 + 1j]))) == digest(torch.tensor([1 - 1j]))
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})


def test_what_has_no_content_is_refused():
    with pytest.raises(TypeError, match="has no identity"):
        digest(object())
    with pytest.raises(ValueError, match="no values yet"):
        digest(torch.empty(2, device="meta"))


def test_files_are_told_by_their_bytes_and_read_once(tmp_path, monkeypatch):
    cache, files = tmp_path / "cache.sqlite", [tmp_path / f"{i}.bmp" for i in range(5)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]) * 100)
        os.utime(file, ns=(10**18, 10**18))
    monkeypatch.setattr("lipcomp._identity_files._RACY", 0)
    first = hash_files(files, cache=cache)
    assert len(set(first)) == 5
    reads = []
    original = _identity_files._hash_file
    monkeypatch.setattr(
        "lipcomp._identity_files._hash_file", lambda path: reads.append(path) or original(path)
    )
    assert hash_files(files, cache=cache) == first
    assert reads == []
    files[2].write_bytes(bytes([9]) * 100)  # equal size, and the old time put back
    os.utime(files[2], ns=(10**18, 10**18))
    assert hash_files(files, cache=cache)[2] != first[2]
    assert [Path(path).name for path in reads] == ["2.bmp"]
    cache.write_bytes(b"damaged")
    assert hash_files(files[:2], cache=cache) == first[:2]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        hash_files([tmp_path / "none.bmp"], cache=cache)


def test_a_file_that_was_just_written_is_not_remembered(tmp_path):
    file, cache = tmp_path / "a", tmp_path / "cache.sqlite"
    file.write_bytes(b"one")
    first = hash_files([file], cache=cache)
    stamp = file.stat().st_mtime_ns
    file.write_bytes(b"two")
    os.utime(file, ns=(stamp, stamp))
    assert hash_files([file], cache=cache) != first
    assert time.time_ns() - stamp < 60 * 10**9


def test_a_user_without_a_home_remembers_nothing(monkeypatch, tmp_path):
    for name in ("LIPCOMP_CACHE", "LOCALAPPDATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def expanduser(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    (tmp_path / "a").write_bytes(b"a")
    assert hash_files([tmp_path / "a"]) == [hashlib.sha256(b"a").hexdigest()]


OWN = """
from dataclasses import dataclass

import torch

GAIN = 2.0

@dataclass(frozen=True, order=True)
class Views:
    '''Of one's own.'''
    low: float = 0.5

    def apply(self, images):
        return images * GAIN + self.low

twice = lambda images: images * GAIN
"""


def test_code_is_told_alike_by_every_python_and_under_every_name_of_its_file(tmp_path, monkeypatch):
    """Workers of a script know it as __mp_main__; bytecode and what @dataclass makes belong to a version of Python."""
    (tmp_path / "own.py").write_text(OWN)
    told = []
    for name in ("own", "__main__", "__mp_main__"):
        spec = importlib.util.spec_from_file_location(name, tmp_path / "own.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        if name != "own":
            module.__spec__ = None  # as of a script
        told.append((digest(module.Views), digest(module.twice)))
        code, constants = reached(module.Views)
        assert all(part.startswith("Module(") for part in code)
        assert dict(constants) == {"own.GAIN": 2.0, "Views.low": 0.5}
        assert reached(module.twice)[0][0].startswith("Lambda(")
    assert told[0] == told[1] == told[2]
    # of Python 3.11
    assert told[0] == ("6641894047feb9494a5a716f4d7666e2", "73d0277ea593a960f9fbe1972d301821")
