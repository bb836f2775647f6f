"""DICOM frames come back as a viewer shows them: pydicom's own sample files, and variants of them with known values."""

import io
import math

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from shared.errors import InputError
from shared.imaging import Limits, find_inputs, read_image, read_mask, samples


def sample(name: str) -> str:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), f"pydicom no longer bundles {name}"
    return path


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset)
    return buffer.getvalue()


def grey(values: np.ndarray, **attributes: object) -> bytes:
    """A small CT with these stored values [frames, H, W] or [H, W] and these attributes."""
    dataset = pydicom.dcmread(sample("CT_small.dcm"))
    frames = values if values.ndim == 3 else values[None]
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return written(dataset)


RAMP = np.arange(256, dtype=np.int16).reshape(16, 16) * 8  # 0 to 2040


def test_a_ct_without_a_window_spans_its_own_range():
    stored = pydicom.dcmread(sample("CT_small.dcm")).pixel_array.astype(float)
    image = read_image(sample("CT_small.dcm"))
    assert image.shape == (128, 128, 3)
    np.testing.assert_array_equal(image[..., 0], np.rint((stored - stored.min()) / np.ptp(stored) * 255))


def test_the_window_is_applied_as_the_standard_says():
    """PS3.3, C.11.2.1.2.1: below c - 0.5 - (w - 1) / 2 black, above c - 0.5 + (w - 1) / 2 white, linear between; after the rescaling."""
    image = read_image(grey(RAMP, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400))
    units = RAMP.astype(float) - 1024
    expected = np.clip((units - 39.5) / 399 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(image[..., 0], expected, atol=0.51)  # rounding to 8 bits
    assert image.min() == 0
    assert image.max() == 255


def test_the_first_of_several_windows_is_used():
    both = read_image(grey(RAMP, WindowCenter=[1000, 100], WindowWidth=[500, 50]))
    np.testing.assert_array_equal(both, read_image(grey(RAMP, WindowCenter=1000, WindowWidth=500)))


def test_a_sigmoid_window():
    image = read_image(grey(RAMP, WindowCenter=1000, WindowWidth=400, VOILUTFunction="SIGMOID"))
    expected = [255 / (1 + math.exp(-4 * (value - 1000) / 400)) for value in RAMP.ravel()]
    np.testing.assert_allclose(image[..., 0].ravel(), expected, atol=0.51)


def test_monochrome1_is_inverted():
    normal = read_image(grey(RAMP, WindowCenter=1000, WindowWidth=2000))
    inverted = read_image(grey(RAMP, WindowCenter=1000, WindowWidth=2000, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(inverted.astype(int), 255 - normal.astype(int), atol=1)
    stored = pydicom.dcmread(sample("dicomdirtests/77654033/CR1/6154"))
    assert stored.PhotometricInterpretation == "MONOCHROME1"
    xray = read_image(sample("dicomdirtests/77654033/CR1/6154"))[..., 0]
    assert np.corrcoef(xray.ravel(), stored.pixel_array.ravel())[0, 1] < -0.9


def test_eight_bits_without_a_window_stay_as_they_are():
    values = np.arange(50, 114, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(read_image(grey(values))[..., 0], values)


def test_a_lookup_table_for_display():
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = [index * index for index in range(256)]
    table["LUTData"].VR = "US"
    table["LUTDescriptor"].VR = "US"
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = read_image(grey(values, VOILUTSequence=Sequence([table])))
    np.testing.assert_allclose(image[..., 0], values.astype(float) ** 2 / 65535 * 255, atol=0.51)


def test_each_frame_of_an_enhanced_object_has_its_own_window():
    shared, first, second = Dataset(), Dataset(), Dataset()
    rescale = Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1000, "HU"
    shared.PixelValueTransformationSequence = Sequence([rescale])
    for group, centre in ((first, 0), (second, 500)):
        window = Dataset()
        window.WindowCenter, window.WindowWidth = centre, 100
        group.FrameVOILUTSequence = Sequence([window])
    content = grey(
        np.full((2, 4, 4), 1499, np.int16),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([first, second]),
    )
    frames = [frame.read()[0, 0, 0] for frame in samples(content, name="enhanced.dcm")]
    assert frames[0] == 255  # 499 is far above 0 +- 50
    assert abs(int(frames[1]) - 127) <= 1  # and in the middle of 500 +- 50


@pytest.mark.parametrize("encoding", ["_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_padded"])
def test_the_same_slice_reads_alike_in_every_encoding(encoding):
    np.testing.assert_array_equal(read_image(sample(f"MR_small{encoding}.dcm")), read_image(sample("MR_small.dcm")))


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_rle_16bit.dcm",
    ],
)
def test_the_same_colour_bars_read_alike_in_every_colour_model(name):
    """All hold the same ten bars as SC_rgb_rle.dcm: red at the top."""
    image = read_image(sample(name)).astype(int)
    assert np.abs(image - read_image(sample("SC_rgb_rle.dcm"))).mean() < 5  # JPEG and 4:2:2 colour blur the edges of the bars
    assert image[5, 50, 0] > 240
    assert image[5, 50, 1:].max() < 15


def test_palette_jpeg2000_and_plain_colour_ultrasound():
    for name, shape in (("examples_palette", (350, 800, 3)), ("examples_jpeg2k", (480, 640, 3)), ("examples_rgb_color", (240, 320, 3))):
        image = read_image(sample(f"{name}.dcm"))
        assert image.shape == shape
        assert image.dtype == np.uint8
        assert np.ptp(image) > 200
    palette = pydicom.dcmread(sample("examples_palette.dcm"))
    index = int(palette.pixel_array[100, 400])
    first = palette.RedPaletteColorLookupTableDescriptor[1]
    red = np.frombuffer(palette.RedPaletteColorLookupTableData, "<u2")[index - first] >> 8
    assert read_image(sample("examples_palette.dcm"))[100, 400, 0] == red


def test_each_frame_of_a_cine_clip_is_a_sample_in_any_order():
    frames = list(samples(sample_bytes("examples_ybr_color.dcm"), name="cine.dcm"))
    assert len(frames) == 30
    assert frames[12].id == "frame_000012"
    expected = pydicom.pixels.pixel_array(sample("examples_ybr_color.dcm"))
    for index in (29, 0, 12):
        np.testing.assert_array_equal(frames[index].read(), expected[index])
    with pytest.raises(InputError, match=r"cine.dcm: holds 30 pictures"):
        read_image(sample_bytes("examples_ybr_color.dcm"), name="cine.dcm")


def sample_bytes(name: str) -> bytes:
    with open(sample(name), "rb") as file:
        return file.read()


@pytest.mark.parametrize("name", ["JPEGLSNearLossless_08.dcm", "SC_rgb_jpeg_gdcm.dcm", "JPGExtended.dcm"])
def test_a_compression_without_decoder_says_what_to_install(name):
    try:
        image = read_image(sample(name))
    except InputError as error:
        assert name in str(error)  # noqa: PT017 (with the decoder installed, as on some machines, there is no error)
        assert "pip install python-gdcm" in str(error)  # noqa: PT017
    else:
        assert np.ptp(image) > 0


def test_refused_with_a_reason():
    for name, reason in {
        "rtplan.dcm": r"without an image \(modality RTPLAN\)",
        "MR_truncated.dcm": "less than expected",
        "image_dfl.dcm": "deflated DICOM file.*dcmconv",
        "badVR.dcm": "cannot be decoded as a DICOM file",
    }.items():
        with pytest.raises(InputError, match=f"{name}: .*{reason}"):
            read_image(sample(name))
    with pytest.raises(InputError, match="claims 60,000 x 60,000 pixels"):
        read_image(grey(RAMP, Rows=60000, Columns=60000))
    with pytest.raises(InputError, match="claims 128 x 128 pixels"):
        read_image(sample("CT_small.dcm"), limits=Limits(pixels=1000))
    with pytest.raises(InputError, match="claims 999999999 frames"):
        read_image(grey(RAMP, NumberOfFrames=999999999))
    with pytest.raises(InputError, match="is a DICOM file, and a mask is expected to be a PNG"):
        read_mask(sample("CT_small.dcm"))


def test_dicom_files_without_a_suffix_are_found_in_a_folder(tmp_path):
    for name in ("IM000001", "1.2.840.113619.2", "DICOMDIR", "scan.dcm"):
        (tmp_path / name).write_bytes(sample_bytes("CT_small.dcm"))
    (tmp_path / "README").write_text("not DICOM")
    found = find_inputs([tmp_path], suffixes=frozenset({".dcm"}))
    assert [file.stem for file in found] == ["1.2.840.113619.2", "IM000001", "scan"]


def test_pydicom_does_not_talk_on_the_terminal(capfd, recwarn):
    for name in ("badVR.dcm", "examples_jpeg2k.dcm", "J2K_pixelrep_mismatch.dcm", "MR_truncated.dcm", "MR_small_padded.dcm"):
        try:
            read_image(sample(name))
        except InputError:
            continue
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
