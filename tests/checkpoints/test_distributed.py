"""Folders of torch.distributed.checkpoint: torch writes them, with one part per tensor or several."""

import pickle
import shutil
import subprocess

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._distributed import INDEX, read_distributed
from lipcomp.checkpoints._errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def saved(tmp_path, resnet18):
    """A run's checkpoint as torch writes it."""
    from torch.distributed.checkpoint import save

    momentum = {"momentum_buffer": torch.zeros(3)}
    state = {
        "app": {"model": resnet18.state_dict(), "optim": {"state": {"conv1.weight": momentum}}},
        "epoch": 3,
    }
    save(state, checkpoint_id=tmp_path / "parts", no_dist=True)
    return tmp_path / "parts"


def test_torchs_own(saved, resnet18, images, normalised, close):
    checkpoint = load_encoder(saved, image_size=64)
    close(checkpoint.encoder.features(images), resnet18(normalised(images)))
    assert checkpoint.place == "app.model"
    assert "app.optim.state.conv1.weight.momentum_buffer" in checkpoint.report.ignored
    for part in (".metadata", "__0_0.distcp"):
        with pytest.raises(CheckpointError, match=r"a part of a distributed one; give its folder"):
            load_encoder(saved / part)
    assert checkpoint.report.used.keys() >= {name for name, _ in resnet18.named_parameters()}


def test_deepspeeds_folders(tmp_path, resnet18):
    """One rank's whole weights are read; for parts, the command is one that works."""
    step = tmp_path / "global_step1"
    step.mkdir()
    (tmp_path / "latest").write_text("global_step1")
    torch.save({"module": resnet18.state_dict(), "optimizer": None}, step / "mp_rank_00_model_states.pt")
    for path in (tmp_path, step):
        checkpoint = load_encoder(path)
        assert torch.equal(checkpoint.encoder.backbone.conv1.weight, resnet18.conv1.weight)
        assert checkpoint.label == path.name
    part = step / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    part.write_bytes(b"")
    command = f"python {tmp_path / 'zero_to_fp32.py'} {tmp_path} WHOLE -t global_step1"
    for path in (tmp_path, step, part):
        with pytest.raises(CheckpointError) as refused:
            load_encoder(path)
        assert f"{command}, or give mp_rank_00_model_states.pt" in str(refused.value)


def of_ranks(folder, whole, rows):
    """A tensor's rows in the files of several ranks, by torch's own classes."""
    folder.mkdir()
    places, chunks, start = {}, [], 0
    for rank, count in enumerate(rows):
        part, name = whole[start : start + count], f"__{rank}_0.distcp"
        torch.save(part.clone(), folder / name)
        offset = torch.Size([start, *[0] * (whole.ndim - 1)])
        chunks.append(ChunkStorageMetadata(offset, part.shape))
        length = (folder / name).stat().st_size
        places[MetadataIndex("net.weight", offset, rank)] = _StorageInfo(name, 0, length)
        start += count
    size = TensorStorageMetadata(TensorProperties(), whole.shape, chunks)
    write(folder, Metadata({"net.weight": size}, {"net.weight": ("net", "weight")}, places))
    return folder


def write(folder, metadata):
    (folder / INDEX).write_bytes(pickle.dumps(metadata))


def test_the_parts_of_several_ranks_become_one(tmp_path):
    whole = torch.rand(7, 3, generator=torch.Generator().manual_seed(0))
    tree, digest = read_distributed(of_ranks(tmp_path / "ranks", whole, (3, 3, 1)))
    assert tree.keys() == {"net"}
    assert torch.equal(tree["net"]["weight"], whole)
    assert len(digest) == 64


def test_a_missing_rank_is_named(tmp_path):
    folder = of_ranks(tmp_path / "ranks", torch.rand(4, 2), (2, 2))
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(
        CheckpointError, match=r"lacks its file '__1_0\.distcp'; copy the files of every rank"
    ):
        read_distributed(folder)


def test_a_rank_that_is_a_copy_of_another_is_noticed(tmp_path):
    for whole in (torch.zeros(4, 3), torch.rand(4, 3)):  # zeros may well be alike
        folder = of_ranks(tmp_path / f"{whole[0, 0] > 0}", whole, (2, 2))
        shutil.copy(folder / "__0_0.distcp", folder / "__1_0.distcp")
        if not whole.any():
            read_distributed(folder)
    with pytest.raises(CheckpointError, match=r"same bytes in __0_0\.distcp and __1_0\.distcp"):
        read_distributed(folder)


def test_a_moving_average_that_begins_as_the_weights_is_no_copy(tmp_path):
    folder = of_ranks(tmp_path / "ranks", torch.rand(4, 3), (4,))
    shutil.copy(folder / "__0_0.distcp", folder / "__1_0.distcp")
    told = pickle.loads((folder / INDEX).read_bytes())
    told.state_dict_metadata["ema.weight"] = told.state_dict_metadata["net.weight"]
    length = (folder / "__1_0.distcp").stat().st_size
    told.storage_data[MetadataIndex("ema.weight", torch.Size([0, 0]))] = _StorageInfo(
        "__1_0.distcp", 0, length
    )
    write(folder, told)
    tree, _ = read_distributed(folder)
    assert torch.equal(tree["net"]["weight"], tree["ema.weight"])


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return subprocess.check_output, (["touch", "ran"],)


def harmed(folder, change):
    metadata = pickle.loads((folder / INDEX).read_bytes())
    change(metadata)
    write(folder, metadata)
    return folder


def first(metadata):
    return next(iter(metadata.storage_data.values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.storage_data.popitem(), "has not all parts of net.weight"),
        (lambda m: setattr(m, "planner_data", Evil()), "asks for subprocess.check_output, which is code"),
        (lambda m: setattr(first(m), "relative_path", "../secret"), "lacks its file '../secret'"),
        (lambda m: setattr(first(m), "length", 1 << 50), "names bytes beyond its file"),
        (lambda m: setattr(first(m), "offset", -1), "names bytes beyond its file"),
        (lambda m: setattr(first(m), "transform_descriptors", ["zstd"]), "is compressed"),
        (
            lambda m: setattr(m.state_dict_metadata["net.weight"], "size", torch.Size([1])),
            "a part outside of it",
        ),
        (
            lambda m: setattr(m.state_dict_metadata["net.weight"], "size", torch.Size([1 << 40, 2])),
            "claims more than",
        ),
        (lambda m: setattr(m, "state_dict_metadata", None), "describes no tensors"),
        (
            lambda m: m.storage_data.update(
                {MetadataIndex("net.weight", torch.Size([1, 0])): m.storage_data.popitem()[1]}
            ),
            "parts of net.weight that overlap",
        ),
        (
            lambda m: m.__dict__.update(
                state_dict_metadata={**m.state_dict_metadata, "b": m.state_dict_metadata["net.weight"]},
                storage_data={**m.storage_data, MetadataIndex("b", torch.Size([0, 0])): first(m)},
            ),
            "has one part for net.weight and b",
        ),
    ],
)
def test_a_damaged_or_hostile_index_is_refused(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(harmed(of_ranks(tmp_path / "ranks", torch.rand(4, 2), (2, 2)), change))
    assert not (tmp_path / "ran").exists()


def test_a_part_that_is_no_tensor_is_refused(tmp_path):
    folder = of_ranks(tmp_path / "ranks", torch.rand(4, 2), (4,))
    torch.save({"a": 1}, folder / "__0_0.distcp")
    length = (folder / "__0_0.distcp").stat().st_size
    with pytest.raises(CheckpointError, match="does not hold the tensor that its index names"):
        read_distributed(harmed(folder, lambda m: setattr(first(m), "length", length)))
