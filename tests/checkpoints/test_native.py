"""Our checkpoint: loses nothing, runs no code, appears whole or not at all."""

import json
import pickle
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

import lipcomp
from lipcomp.checkpoints import _native as native, save_checkpoint
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._native import Metadata, load_checkpoint
from lipcomp.encoders import EncoderSpec, build_encoder

SPEC = EncoderSpec("small_cnn", (1, 28, 28), projector=(32, 16))
METADATA = Metadata(
    objective={"name": "c_simclr", "kappa_e": 512.0, "beta": 0.5},
    recipe={"name": "toy", "epochs": 3},
    data={"name": "mnist5k/train"},
    seed=7,
    epochs=3,
    code_version={"lipcomp": "0"},
    metrics={"loss": 1.25},
)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build_encoder(SPEC, seed=3), metadata=METADATA)
    return path


def test_round_trip(saved, generator):
    checkpoint = load_checkpoint(saved)
    images = torch.rand(2, 1, 28, 28, generator=generator)
    assert torch.equal(checkpoint.encoder(images), build_encoder(SPEC, seed=3).eval()(images))
    assert checkpoint.metadata == METADATA
    assert checkpoint.concentration == 512.0
    assert not checkpoint.encoder.training
    assert len(checkpoint.sha256) == 64


def test_the_same_weights_make_the_same_file(saved, tmp_path):
    save_checkpoint(tmp_path / "again.safetensors", build_encoder(SPEC, seed=3), metadata=METADATA)
    assert saved.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 5000, -1])
def test_a_truncated_file_is_one_clear_error(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_checkpoint(saved)


def test_a_pickle_is_never_run(tmp_path):
    mark = tmp_path / "mark"

    class Payload:
        def __reduce__(self):
            return (mark.write_text, ("ran",))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError, match="damaged or of another format"):
        load_checkpoint(path)
    assert not mark.exists()


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


def rewrite(path, change):
    """Save the file again with its header changed."""
    header = {
        "format": 1,
        "encoder": SPEC.to_dict(),
        "objective": {},
        "recipe": {},
        "data": {},
        "seed": 1,
        "epochs": 1,
        "code_version": {},
        "metrics": {},
    }
    change(header)
    save_file(build_encoder(SPEC).state_dict(), path, metadata={native.HEADER_KEY: json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=2), "format 2.*upgrade lipcomp"),
        (lambda h: h.pop("format"), "damaged metadata"),
        (lambda h: h.update(surprise=1), "does not fit"),
        (lambda h: h.pop("encoder"), "does not fit"),
        (lambda h: h["encoder"].update(backbone="unknown"), "backbone 'unknown' is unknown"),
        (
            lambda h: h["encoder"].update(projector=[32, 8]),
            r"projector\.3\.weight has \(16, 32\), not \(8, 32\)",
        ),
        (lambda h: h["encoder"].update(predictor=8), "predictor.0.weight has nothing"),
    ],
)
def test_metadata_that_do_not_fit_are_named(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_foreign_safetensors_are_named(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="without lipcomp's metadata"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), RuntimeError("unable to mmap: Cannot allocate memory (12)")]
)
def test_a_file_is_not_damaged_because_memory_or_open_files_ran_out(saved, monkeypatch, error):
    for module in ("_sources", "_native"):
        monkeypatch.setattr(f"lipcomp.checkpoints.{module}.safe_open", Mock(side_effect=error))
    for load in (load_checkpoint, lipcomp.load_encoder):
        with pytest.raises(type(error), match=str(error.args[-1])[:9]):
            load(saved)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lipcomp._atomic.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, build_encoder(SPEC, seed=4), metadata=METADATA)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_metadata_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        save_checkpoint(
            tmp_path / "m.safetensors", build_encoder(SPEC), metadata=Metadata(metrics={"loss": float("nan")})
        )
    assert not list(tmp_path.iterdir())
