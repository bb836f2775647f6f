"""Every kind of picture that cameras, scanners and annotation tools write comes back as upright 8-bit RGB, or as a mask."""

import io
import threading

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from shared.errors import InputError
from shared.imaging import read_image, read_mask, samples
from tests.shared.imaging.made import encoded, gradient

PICTURE = gradient()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_exactly(kind):
    image = read_image(encoded(PICTURE, kind))
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, PICTURE)


@pytest.mark.parametrize("kind", ["JPEG", "WebP"])
def test_lossy_formats_come_back_closely(kind):
    assert np.abs(read_image(encoded(PICTURE, kind, quality=95)).astype(int) - PICTURE).mean() < 4  # a few grey levels at quality 95


def test_a_path_and_its_content_read_alike_whatever_the_suffix(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(PICTURE, "PNG"))
    np.testing.assert_array_equal(read_image(path), PICTURE)
    np.testing.assert_array_equal(read_image(str(path)), read_image(path.read_bytes()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WebP"])
def test_every_exif_orientation_comes_back_upright(kind, orientation):
    """What a camera in that position stores is derived from the definition of the tag: where row 0 and column 0 of the stored image are."""
    stored = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.transpose(1, 0, 2),
        6: PICTURE.transpose(1, 0, 2)[::-1],  # row 0 is the right side, column 0 the top
        7: PICTURE.transpose(1, 0, 2)[::-1, ::-1],
        8: PICTURE.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WebP": {"lossless": True}}.get(kind, {})
    image = read_image(encoded(np.ascontiguousarray(stored), kind, exif=exif, **options))
    assert image.shape == PICTURE.shape
    np.testing.assert_allclose(image.astype(int), PICTURE, atol=6)  # JPEG at quality 98


def test_a_damaged_exif_block_does_not_cost_the_picture():
    content = bytearray(encoded(PICTURE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08"))
    assert read_image(bytes(content)).shape == PICTURE.shape


def test_cmyk_jpeg_has_its_colours():
    image = read_image(encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=98, subsampling=0))
    assert np.abs(image.astype(int) - PICTURE).mean() < 5  # JPEG; inverted inks would be off by over 100


@pytest.mark.parametrize("options", [{"compression": c} for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate")], ids=str)
def test_compressed_tiff(options):
    np.testing.assert_array_equal(read_image(encoded(PICTURE, "TIFF", **options)), PICTURE)


@pytest.mark.parametrize("options", [{"tile": (16, 16), "compression": "zlib"}, {"bigtiff": True}, {"byteorder": ">"}], ids=str)
def test_tiled_big_and_big_endian_tiff(options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PICTURE, photometric="rgb", **options)
    np.testing.assert_array_equal(read_image(buffer.getvalue()), PICTURE)


GREY16 = (np.arange(24 * 40).reshape(24, 40) * 68).astype(np.uint16)  # 0 to 65212


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_upper_8_bits(kind):
    image = read_image(encoded(GREY16, kind))
    np.testing.assert_array_equal(image, np.repeat((GREY16 >> 8)[..., None], 3, axis=2))


def test_16_bit_colour_keeps_its_upper_8_bits():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.stack([GREY16, GREY16 // 2, GREY16 // 3], axis=-1), photometric="rgb")
    np.testing.assert_array_equal(read_image(buffer.getvalue())[..., 1], GREY16 // 2 >> 8)


def test_a_dark_picture_is_not_brightened_by_its_own_range():
    assert read_image(encoded(GREY16 // 4, "PNG")).max() == 65212 // 4 >> 8


def test_12_bit_data_in_16_bits_is_refused_rather_than_shown_black():
    with pytest.raises(InputError, match=r"xray.png: a 16-bit image whose highest value is 4075 of 65535.*Scale it"):
        read_image(encoded(GREY16 // 16, "PNG"), name="xray.png")


def test_a_16_bit_picture_that_is_black_is_black():
    assert not read_image(encoded(np.zeros((4, 4), np.uint16), "PNG")).any()


@pytest.mark.parametrize(("scale", "offset", "found"), [(2, 0, "from 0 to 2"), (1, -0.5, "from -0.5 to 0.5")])
def test_floating_point_is_read_in_its_one_agreed_range(scale, offset, found):
    values = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)
    np.testing.assert_array_equal(read_image(encoded(values, "TIFF"))[..., 0], np.rint(values * 255))
    with pytest.raises(InputError, match=found):
        read_image(encoded(values * scale + np.float32(offset), "TIFF"))


def test_signed_16_bits_below_zero_are_refused():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, GREY16.astype(np.int32).astype(np.int16))
    with pytest.raises(InputError, match="integer pixels from -"):
        read_image(buffer.getvalue())


def test_one_bit_becomes_black_and_white():
    bits = PICTURE[..., 0] > 127
    for kind in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(read_image(encoded(Image.fromarray(bits), kind))[..., 2], bits * 255)


def test_palette_is_looked_up():
    image = Image.fromarray(PICTURE).quantize(16)
    np.testing.assert_array_equal(read_image(encoded(image, "PNG")), np.array(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_grey_has_three_equal_channels(kind):
    image = read_image(encoded(PICTURE[..., 0], kind, **({"quality": 98} if kind == "JPEG" else {})))
    assert (image == image[..., :1]).all()
    np.testing.assert_allclose(image[..., 0].astype(int), PICTURE[..., 0], atol=4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WebP"])
def test_alpha_is_dropped_and_not_blended(kind):
    transparent = np.dstack([PICTURE, np.zeros(PICTURE.shape[:2], np.uint8)])
    options = {"lossless": True, "exact": True} if kind == "WebP" else {}
    np.testing.assert_array_equal(read_image(encoded(transparent, kind, **options)), PICTURE)


def test_grey_with_alpha_and_palette_with_transparency():
    grey = encoded(Image.merge("LA", [Image.fromarray(PICTURE[..., 0]), Image.new("L", (40, 24), 0)]), "PNG")
    np.testing.assert_array_equal(read_image(grey)[..., 0], PICTURE[..., 0])
    palette = Image.fromarray(PICTURE).quantize(16)
    np.testing.assert_array_equal(read_image(encoded(palette, "PNG", transparency=0)), np.array(palette.convert("RGB")))


def test_colour_profiles_are_left_alone():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(read_image(encoded(PICTURE, "PNG", icc_profile=profile)), PICTURE)


def test_a_mask_is_where_the_grey_is_above_the_middle():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(read_mask(encoded(grey, "PNG")), grey > 127)
    wide = (np.arange(256) * 257).astype(np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(read_mask(encoded(wide, "PNG")), grey > 127)


def test_a_jpeg_mask_has_no_halo():
    truth = np.zeros((64, 64), bool)
    truth[16:48, 16:48] = True
    mask = read_mask(encoded(truth * np.uint8(255), "JPEG", quality=75))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, truth)


@pytest.mark.parametrize("stored", ["1-bit", "0 and 1", "0 and 1 in 16 bits", "red", "palette", "grey palette", "alpha"])
def test_masks_as_annotation_tools_write_them(stored):
    truth = PICTURE[..., 0] > 99
    ones = truth.astype(np.uint8)
    palette = Image.fromarray(ones, mode="P") if stored.endswith("palette") else None
    if palette:
        palette.putpalette([0, 0, 0] + ([64, 0, 0] if stored == "palette" else [255, 255, 255]))
    image = {
        "1-bit": truth,
        "0 and 1": ones,
        "0 and 1 in 16 bits": ones.astype(np.uint16),
        "red": np.dstack([ones * 255, ones * 0, ones * 0]),
        "alpha": np.dstack([ones * 255] * 3 + [ones * 0]),
    }.get(stored, palette)
    np.testing.assert_array_equal(read_mask(encoded(image, "PNG")), truth)


def test_class_numbers_are_refused_rather_than_read_as_an_empty_mask():
    for labels in (np.array([[0, 3]], np.uint8), np.array([[0, 300]], np.uint16)):
        with pytest.raises(InputError, match=r"cells.png: the highest value of this mask is 3.*Save the wanted class alone"):
            read_mask(encoded(labels, "PNG"), name="cells.png")


def test_an_empty_mask_is_empty():
    assert not read_mask(encoded(np.zeros((5, 5), np.uint8), "PNG")).any()


def test_a_single_image_is_one_sample_without_an_id(tmp_path):
    path = tmp_path / "frame.png"
    path.write_bytes(encoded(PICTURE, "PNG"))
    for source in (path, path.read_bytes()):
        (frame,) = samples(source, name="frame.png")
        assert frame.id == ""
        np.testing.assert_array_equal(frame.read(), PICTURE)


def test_each_page_of_a_tiff_is_a_sample():
    pages = [np.full((8, 9, 3), 10 * index, np.uint8) for index in range(5)]
    images = [Image.fromarray(page) for page in pages]
    content = encoded(images[0], "TIFF", save_all=True, append_images=images[1:], compression="tiff_lzw")
    frames = list(samples(content, name="stack.tif"))
    assert [frame.id for frame in frames] == [f"frame_{index:06d}" for index in range(5)]
    for index in (0, 1, 2, 3, 4, 2, 0):  # in order is fastest; any order works
        np.testing.assert_array_equal(frames[index].read(), pages[index])
    with pytest.raises(InputError, match=r"stack.tif: holds 5 pictures, and one was expected"):
        read_image(content, name="stack.tif")


def test_thumbnails_in_a_tiff_are_not_pictures():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as tiff:
        tiff.write(PICTURE, photometric="rgb")
        tiff.write(PICTURE[::4, ::4], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(buffer.getvalue()), PICTURE)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WebP"])
def test_each_frame_of_an_animation_is_a_sample(kind):
    images = [Image.new("RGB", (12, 10), (60 * index, 0, 0)) for index in range(4)]
    options = {"lossless": True} if kind == "WebP" else {}
    frames = list(samples(encoded(images[0], kind, save_all=True, append_images=images[1:], **options), name="animation"))
    assert [int(frame.read()[5, 5, 0]) for frame in frames] == [0, 60, 120, 180]


def test_pages_may_be_read_from_many_threads():
    images = [Image.new("L", (64, 64), index) for index in range(40)]
    frames = list(samples(encoded(images[0], "TIFF", save_all=True, append_images=images[1:]), name="stack.tif"))
    wrong = []

    def read(offset: int) -> None:
        wrong.extend(index for index in range(offset, 40, 4) if (frames[index].read() != index).any())

    threads = [threading.Thread(target=read, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
