"""RobustBench's own evaluation against ours, and that it leaves nothing behind."""

import csv
import hashlib
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lipcomp import robustness
from lipcomp.robustness._compare import place_among, published_rows
from lipcomp.robustness._sets import open_corruption_set

N = 120


@pytest.fixture
def bench():
    module = pytest.importorskip("lipcomp.robustness._robustbench")
    try:
        module.robustbench()
    except ImportError as error:
        pytest.skip(str(error))
    return module


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), nn.ReLU(), nn.Linear(16, 10)).eval()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """CIFAR-10 and two corruptions of CIFAR-10-C in their published layouts and sizes (sparse files)."""
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    labels = np.zeros(10000, np.uint8)
    labels[:N] = rng.integers(0, 10, N)
    folder = tmp_path / "data" / "CIFAR-10-C"
    folder.mkdir(parents=True)
    np.save(folder / "labels.npy", np.tile(labels, 5))
    for name in ("fog", "snow"):
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, (50000, 32, 32, 3))
        for severity in range(5):
            array[severity * 10000 : severity * 10000 + N] = rng.integers(0, 256, (N, 32, 32, 3))
    clean = tmp_path / "data" / "cifar-10-batches-py"
    clean.mkdir()
    pixels = rng.integers(0, 256, (N, 3072), dtype=np.uint8)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in files:
        (clean / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels[:N].tolist()}))
    (clean / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    md5 = {name: hashlib.md5((clean / name).read_bytes()).hexdigest() for name in [*files, "batches.meta"]}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in files[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return tmp_path / "data"


def test_its_evaluation_of_a_classifier_gives_our_accuracy(
    bench, network, data, tmp_path, monkeypatch, capfd
):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    filters, state = list(warnings.filters), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    found = bench.run_benchmark(network, "cifar10", data_root=data, n_examples=N, corruptions=["fog", "snow"])
    ours = open_corruption_set(data / "CIFAR-10-C", classes=10)
    first = torch.arange(N)
    right = []
    for name in ours.corruptions:
        for severity in range(1, 6):
            images = ours.images(name, severity)
            right.append((network(images.batch(first)).argmax(1) == images.labels[:N]).double().mean())
    assert found.accuracy == pytest.approx(float(torch.stack(right).mean()), abs=1e-6)
    assert found.mce is None
    assert list((tmp_path / "cwd").iterdir()) == []
    assert list(warnings.filters) == filters
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert "autoattack" not in sys.modules
    assert capfd.readouterr().out == ""
    import robustbench.eval as evaluation

    assert evaluation.Path.__module__.startswith("pathlib")
    assert evaluation.corruptions_evaluation.__module__ == "robustbench.eval"


def test_what_is_missing_is_refused_before_anything_is_downloaded(bench, network, data):
    with pytest.raises(FileNotFoundError, match="cifar-100-python' is missing"):
        bench.run_benchmark(network, "cifar100", data_root=data)


@pytest.mark.slow
@pytest.mark.parametrize("board", [("cifar10", "Linf"), ("cifar10", "L2"), ("imagenet", "corruptions")])
def test_the_published_rows_are_those_of_one_leaderboard(board):
    file = Path(robustness.__file__).parent / "tables" / "robustbench_rows.csv"
    with file.open() as text:
        expected = {row["model"] for row in csv.DictReader(text) if (row["dataset"], row["threat"]) == board}
    found = published_rows(*board)
    assert set(found.model) == expected
    assert found.shifted.is_monotonic_decreasing


@pytest.mark.slow
def test_nothing_is_imported_unless_asked():
    """In a process of its own: the suite, without RobustBench, timm, pyautoattack or OpenCV."""
    code = (
        "import sys, lipcomp.robustness, lipcomp.robustness._robustbench, lipcomp.robustness._auto_attack\n"
        "import lipcomp.robustness._videos, lipcomp.robustness._shifts, lipcomp.measure._beyond\n"
        "wanted = {'robustbench', 'timm', 'pyautoattack', 'autoattack', 'cv2', 'imagecorruptions'}\n"
        "print(sorted(wanted & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_encoder_stands_among_the_published_rows():
    rows = published_rows("cifar10", "corruptions")
    assert len(rows) == 23
    assert rows.shifted.is_monotonic_decreasing
    middle = float(rows.shifted[4] + rows.shifted[5]) / 2
    placed = place_among(rows, "ours", clean=0.9, shifted=middle)
    assert placed.attrs["rank"] == 6
    assert placed.model[5] == "ours"
    assert len(placed) == 24
    standard = published_rows("imagenet", "corruptions").set_index("model").loc["Standard_R50"]
    assert standard.mce == pytest.approx(0.7638, abs=1e-3)
    with pytest.raises(ValueError, match="no published rows for mnist corruptions; there are cifar10 L2"):
        published_rows("mnist")
    with pytest.raises(ValueError, match="divide percent"):
        place_among(rows, "ours", clean=90.0, shifted=0.5)
