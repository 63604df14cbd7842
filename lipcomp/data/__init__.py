"""Images: known sets, folders, datasets of others; their preprocessing; two augmented views of a batch."""

from lipcomp.data.datasets import from_dataset
from lipcomp.data.known import SETS
from lipcomp.data.loading import ViewBatch, view_batches
from lipcomp.data.opening import load_set, load_splits
from lipcomp.data.preprocessing import Preprocessing
from lipcomp.data.sets import ImageSet, TensorImages, batches, check_unchanged, file_of
from lipcomp.data.views import DigitViews, PhotoViews, Views
