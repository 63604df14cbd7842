"""Images: known sets, folders, two augmented views of a batch."""

from lipcomp.data.loading import ViewBatch, view_batches
from lipcomp.data.preprocessing import Preprocessing
from lipcomp.data.sets import SETS, ImageSet, TensorImages, batches, load_set
from lipcomp.data.views import DigitViews, PhotoViews, Views
