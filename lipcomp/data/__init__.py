"""Images: known sets, folders and datasets; their preprocessing; two augmented views of a batch."""

from lipcomp.data._datasets import from_dataset
from lipcomp.data._opening import load_set, load_splits
from lipcomp.data._preprocessing import Preprocessing
from lipcomp.data._sets import batches

__all__ = [
    "Preprocessing",
    "batches",
    "from_dataset",
    "load_set",
    "load_splits",
]
