"""RobustBench's own evaluation of corruptions, when asked for. The extra ``robustbench``.

RobustBench 1.1.1 does not run as installed. The obstacles, and how they are removed here, for as long as a
call lasts:

==========================================================  ===============================================
its import wants a module ``autoattack``                    ``pyautoattack`` under that name, taken back after
``corruptions_evaluation()`` gives CIFAR's loader a         the argument is dropped
``prepr`` that it does not take
it looks up AlexNet in a file of results that is not there  AlexNet's published errors in a temporary file
it writes ``model_info/`` into the working directory        into a temporary folder
it downloads what it does not find                          refused beforehand, with what to get
==========================================================  ===============================================

Nothing is imported until a function here is called, and nothing stays patched after it.

>>> from lipcomp.robustness._robustbench import run_benchmark
>>> run_benchmark(classifier, "cifar10", data_root="data").accuracy  # doctest: +SKIP
"""

import contextlib
import importlib
import importlib.util
import io
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import nn

from lipcomp.robustness._metrics import ALEXNET

SHAPES = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "imagenet": (3, 224, 224)}
THREAT = "corruptions"
CLEAN_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "imagenet": "val"}


@dataclass(frozen=True)
class BenchmarkResult:
    """What RobustBench's evaluation says: accuracies in [0, 1]; mCE as a ratio, where AlexNet's errors exist."""

    clean: float
    accuracy: float
    mce: float | None


def robustbench() -> ModuleType:
    """The package, imported; ``sys.modules`` and the warning filters are left as they were, but for itself.

    Raises
    ------
    ImportError
        If it, or what it needs, is not installed.
    """
    if "robustbench.eval" in sys.modules:
        return sys.modules["robustbench"]
    filters, aliases = warnings.filters[:], ("autoattack", "autoattack.state")
    own = [name for name in aliases if name not in sys.modules]
    try:
        if importlib.util.find_spec("autoattack") is None:
            sys.modules["autoattack"] = importlib.import_module("pyautoattack")
            sys.modules["autoattack.state"] = importlib.import_module("pyautoattack.state")
        else:
            own = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("pkg_resources")
            package = importlib.import_module("robustbench")
            importlib.import_module("robustbench.eval")
    except ImportError as error:
        raise ImportError(
            f"RobustBench cannot be imported ({error}). It needs setuptools below 82 and pyautoattack; install all "
            f'with: pip install "lipcomp[robustbench]"'
        ) from error
    finally:
        for name in own:
            sys.modules.pop(name, None)
        warnings.filters[:] = filters  # type: ignore[index]
    return package


def run_benchmark(
    classifier: nn.Module,
    dataset: str,
    *,
    data_root: Path | str,
    n_examples: int = 10000,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    corruptions: Sequence[str] | None = None,
) -> BenchmarkResult:
    """RobustBench's own ``benchmark()`` on any classifier (a probe on our encoder, say).

    Parameters
    ----------
    classifier
        Pixels in [0, 1] -> logits.
    dataset
        "cifar10", "cifar100" or "imagenet".
    data_root
        Holds the clean set and ``CIFAR-10-C`` (``ImageNet-C``, ...) in their published layouts.
    n_examples
        Use only this many images, from the first.
    corruptions
        Only these, of the fifteen.

    Raises
    ------
    FileNotFoundError
        If the data are not on disk.
    """
    robustbench()
    evaluation = importlib.import_module("robustbench.eval")
    data = importlib.import_module("robustbench.data")
    root = Path(data_root)
    key = (evaluation.BenchmarkDataset(dataset), evaluation.ThreatModel(THREAT))
    for place in (root / CLEAN_FOLDERS[dataset], root / data.CORRUPTIONS_DIR_NAMES[key[0]][key[1]]):
        if not place.is_dir():
            raise FileNotFoundError(
                f"{str(place)!r} is missing; RobustBench's evaluation reads it from there"
            )
    names = tuple(corruptions or data.CORRUPTIONS_DICT[key[0]].get(key[1], ()))
    with _repaired(evaluation, key, names) as captured:
        clean, accuracy = evaluation.benchmark(
            classifier,
            n_examples=n_examples,
            dataset=dataset,
            threat_model=THREAT,
            data_dir=str(root),
            device=torch.device(device),
            batch_size=batch_size,
            preprocessing="Res256Crop224" if dataset == "imagenet" else None,
        )
    known = dataset == "imagenet" and all(name in ALEXNET for name in names)
    return BenchmarkResult(float(clean), float(accuracy), captured.get("mce") if known else None)


@contextlib.contextmanager
def _repaired(
    evaluation: ModuleType, key: tuple[Any, Any], names: Sequence[str]
) -> Iterator[dict[str, float]]:
    """``robustbench.eval`` with what it calls replaced, for as long as this lasts; takes down the mCE."""
    captured: dict[str, float] = {}
    measure, loaders = evaluation.corruptions_evaluation, evaluation.CORRUPTION_DATASET_LOADERS
    state = np.random.get_state()  # noqa: NPY002

    def take_down(*arguments: Any, **options: Any) -> Any:
        accuracy, captured["mce"] = measure(*arguments, **options)
        return accuracy, captured["mce"]

    def load(*arguments: Any, prepr: Any = None, **options: Any) -> Any:
        extra = {"prepr": prepr} if key[0].value == "imagenet" else {}
        return loaders[key[0]][key[1]](*arguments, **options, **extra)

    with tempfile.TemporaryDirectory() as temporary:
        results = Path(temporary) / key[0].value / "corruptions"
        results.mkdir(parents=True)
        cells = {(name, s): [1 - ALEXNET.get(name, 0.5)] for name in names for s in range(1, 6)}
        pd.DataFrame(cells, ["AlexNet"]).to_csv(results / "unaggregated_results.csv")
        replaced = patch.multiple(
            evaluation,
            CORRUPTION_DATASET_LOADERS={key[0]: {key[1]: load}},
            CORRUPTIONS_DICT={key[0]: {key[1]: tuple(names)}},
            Path=lambda place: Path(temporary) if place == "model_info" else Path(place),
            tqdm=iter,
            corruptions_evaluation=take_down,
        )
        try:
            with replaced, torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
                yield captured
        finally:
            np.random.set_state(state)  # noqa: NPY002
