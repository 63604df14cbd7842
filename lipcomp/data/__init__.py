"""Images: known sets, folders and datasets; their preprocessing; two augmented views of a batch."""

from lipcomp.data._datasets import from_dataset
from lipcomp.data._known import SETS
from lipcomp.data._loading import ViewBatch, view_batches
from lipcomp.data._opening import load_set, load_splits
from lipcomp.data._preprocessing import Preprocessing
from lipcomp.data._sets import ImageSet, TensorImages, batches, check_unchanged, file_of
from lipcomp.data._views import DigitViews, PhotoViews, Views
