"""A bench around any classifier and images in memory, and a folder of small checkpoints."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from lipcomp._identity import hash_module
from lipcomp.checkpoints import save_checkpoint
from lipcomp.checkpoints._native import Metadata
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.measure import CleanAccuracy, CorruptionAccuracy, Images, Pairs, Plan, Sigma, Source
from lipcomp.measure._bench import Bench
from lipcomp.measure._cells import Cells
from lipcomp.measure._conditions import clean_condition
from lipcomp.measure._map import Map
from lipcomp.records import read_records
from lipcomp.robustness._probes import Probe


class Same(Probe):
    """The features are the class scores."""

    def forward(self, features):
        return features


class ClassifierBench(Bench):
    """A bench whose encoder gives class scores, on images that are in memory."""

    def __init__(self, network, images, cells=None):
        network.features = network.__call__
        network.architecture = "test"
        self.source = Source("test.safetensors", "test")
        self.checkpoint = SimpleNamespace(
            encoder=network, image_shape=images.image_shape, path="test.safetensors"
        )
        self.plan = Plan((self.source,), Images("memory"), (), batch_size=16)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.cells, self.made = Cells(cells), None
        self.images, self.indices = images, torch.arange(len(images))
        self.encoder_hash = hash_module(network)
        self._probes, self._probe_identities = {0: Same()}, {}
        self.__dict__["train"] = clean_condition(images)
        self.__dict__["preparation"] = {"preprocessing": None, "convert_channels": False}


@pytest.fixture(scope="session")
def classifier_bench():
    """The function that puts a classifier on the bench."""
    return ClassifierBench


@pytest.fixture(scope="session")
def save_small():
    """The function that writes a small untrained encoder."""

    def save(path, seed=0, **metadata):
        spec = EncoderSpec("small_cnn", (1, 28, 28), mean=(0.131,), std=(0.308,), projector=(16, 8))
        told = {"objective": {"name": "SimCLR"}, "seed": seed, "data": {"name": "mnist5k/train"}} | metadata
        save_checkpoint(path, build_encoder(spec, seed=seed).eval(), metadata=Metadata(**told))
        return str(path)

    return save


@pytest.fixture
def network():
    """A small classifier of colour images."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 5)).eval()


QUANTITIES = (
    CleanAccuracy(),
    CorruptionAccuracy(names=("shear", "stripe"), severities=(3,)),
    Pairs("views"),
    Sigma(),
    Sigma(Map("logits"), 3),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve test images and 24 training images in two classes."""
    folder, generator = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for split, n in (("train", 12), ("test", 6)):
        for label in ("cat", "dog"):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(n):
                pixels = torch.randint(0, 256, (28, 28), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / f"{i}.png")
    return folder


@pytest.fixture
def plan(save_small, tmp_path, folder):
    sources = tuple(
        Source(save_small(tmp_path / f"{name}.safetensors", seed), name) for seed, name in enumerate("ab")
    )
    return Plan(sources, Images(str(folder)), QUANTITIES, device="cpu")


@pytest.fixture
def values():
    """The function values(path): what the records of a file say, without when and how long."""

    def read(path):
        found = {(r.subject["run"], r.identity): (r.quantity, r.value, r.n) for r in read_records(path)}
        assert len(found) == len(read_records(path)), "something was written twice"
        return found

    return read
