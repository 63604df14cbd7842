"""What the studies' tests share: measured studies of made-up worlds whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.planted_worlds import WORLDS, build

BY_NAME = {world.name: world for world in WORLDS}


@pytest.fixture(scope="session")
def planted():
    """The function that writes a draw of a world into a folder; fields of the world may be replaced."""

    def write(folder, name="strong", number=0, **changes):
        build(replace(BY_NAME[name], **changes), np.random.default_rng(number), folder)
        return folder

    return write
