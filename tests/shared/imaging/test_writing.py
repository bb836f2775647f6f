"""PNG files are lossless, and whole or absent."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from shared.errors import UserError
from shared.imaging import encode_png, read_image, read_mask, write_png

SIDES = st.integers(1, 20)
KINDS = st.sampled_from(["bool", "uint8", "uint16", "rgb"])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=KINDS, height=SIDES, width=SIDES)
def test_what_is_written_is_what_another_program_reads(data, kind, height, width):
    shape = (height, width, 3) if kind == "rgb" else (height, width)
    array = data.draw(arrays.arrays(np.uint8 if kind == "rgb" else kind, shape))
    with Image.open(io.BytesIO(encode_png(array))) as image:
        read = np.array(image)
    np.testing.assert_array_equal(read, array * np.uint8(255) if kind == "bool" else array)


def test_masks_and_images_come_back_through_files(tmp_path):
    mask = np.zeros((7, 5), bool)
    mask[2:4] = True
    write_png(tmp_path / "new" / "mask.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "new" / "mask.png"), mask)
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    write_png(tmp_path / "image.png", image[:, ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), image[:, ::-1])


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 3)), np.zeros((3, 3, 4), np.uint8), np.zeros((3, 3, 3), np.uint16), np.zeros((0, 3), np.uint8), np.zeros(3, np.uint8)],
)
def test_what_png_cannot_hold_is_refused(tmp_path, array):
    with pytest.raises(ValueError, match=r"PNG is written from \[H, W\]"):
        write_png(tmp_path / "a.png", array)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"a.png: cannot be written"):
        write_png(tmp_path / "a.png", np.zeros((2, 2), bool))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
