"""Linear evaluation with augmentations: where its crops come from."""

import numpy as np
import torch
from PIL import Image

from lipcomp.data._folders import load_folder
from lipcomp.robustness._linear_evaluation import LinearEvaluation, _augmented


def test_crops_of_files_come_from_their_own_pixels_not_from_the_centre_crop(tmp_path):
    """Wide pictures, black in the middle third, white beside it: the centre crop is black, most random ones are not."""
    pixels = np.full((32, 96, 3), 255, np.uint8)
    pixels[:, 32:64] = 0
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        Image.fromarray(pixels).save(tmp_path / str(number) / "a.png")
    images = load_folder(tmp_path, "pretrain", image_shape=(3, 32, 32))
    part = torch.tensor([0, 1] * 16)
    assert images.batch(part).max() == 0
    crops = _augmented(
        images, part, LinearEvaluation(), torch.Generator().manual_seed(0), torch.device("cpu")
    )
    assert crops.shape == (32, 3, 32, 32)
    assert (crops.flatten(1).amax(1) > 0.9).float().mean() > 0.5
