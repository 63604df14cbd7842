"""What the tests of sets on disk share."""

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photo():
    """The function photo(path, value, size), which writes a picture."""

    def write(path, value=0, size=(40, 36)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (value, 100, 50)).save(path)

    return write
