"""A DICOM series is one volume, whatever its files are called; or it is refused, and the reason is said."""

import io
import random

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import RLELossless, generate_uid

from shared.errors import InputError
from shared.imaging.volumes import VolumeLimits, encode_labels, read_labels, read_volume, series_in
from tests.shared.imaging.volumes.made import LPS, OBLIQUE, SHAPE, dicom_files, enhanced_dicom, orientations, zipped

AFFINE = dict(orientations(OBLIQUE["oblique"]))["LPS"]
VALUES = np.arange(120, dtype=np.int16).reshape(SHAPE)


def named(files: list[bytes], prefix: str = "IM") -> dict[str, bytes]:
    return {f"{prefix}{index:04d}": content for index, content in enumerate(files)}


def changed(content: bytes, **attributes: object) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def refused(files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_volume(zipped(files), name="scan.zip")
    assert str(caught.value).startswith("scan.zip")
    assert "\n" not in str(caught.value)


def test_a_folder_a_list_and_a_zip_in_any_order(tmp_path):
    files = dicom_files(VALUES, AFFINE)
    random.Random(0).shuffle(files)
    folder = tmp_path / "T1"
    folder.mkdir()
    for name, content in named(files).items():
        (folder / name).write_bytes(content)
    (folder / "README.txt").write_text("exported")
    (folder / "DICOMDIR").write_bytes(files[0])
    (folder / ".hidden.dcm").write_bytes(b"")
    paths = [path for path in folder.iterdir() if path.name.startswith("IM")]
    for source in (folder, str(folder), paths, zipped({f"study/T1/{name}.dcm": content for name, content in named(files).items()})):
        volume = read_volume(source)
        np.testing.assert_array_equal(volume.values, VALUES)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-8)  # positions are written with ten digits
        assert volume.axes == "LPS"
        assert not volume.notes
    assert read_volume(tmp_path).shape == SHAPE  # nothing beside the folder, so the files in it
    assert read_volume(folder).source.suffix == ".dcm"
    assert [image.InstanceNumber for image in read_volume(folder).source.dicom.images] == [1, 2, 3, 4, 5, 6]
    assert not any("PixelData" in image for image in read_volume(folder).source.dicom.images)


def test_a_series_becomes_nifti_where_other_programs_expect_it(tmp_path):
    volume = read_volume(zipped(named(dicom_files(VALUES, AFFINE))))
    image = nibabel.Nifti1Image.from_bytes(encode_labels(VALUES, like=volume, suffix=".nii"))
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)  # 32 bits
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_each_slice_has_its_own_scale():
    slopes = np.array([1, 2, 0.5, 4, 1, 2])
    volume = read_volume(zipped(named(dicom_files(VALUES, AFFINE, slopes=slopes))))
    np.testing.assert_array_equal(volume.values, VALUES * slopes + np.arange(6))


def test_a_compressed_series():
    files = []
    for content in dicom_files(VALUES, AFFINE):
        dataset = pydicom.dcmread(io.BytesIO(content))
        dataset.compress(RLELossless)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        files.append(buffer.getvalue())
    np.testing.assert_array_equal(read_volume(zipped(named(files))).values, VALUES)


def test_the_distance_of_slices_is_that_of_their_positions_not_their_thickness():
    volume = read_volume(zipped(named(dicom_files(VALUES, AFFINE, SliceThickness=5.0, SpacingBetweenSlices=7.0))))
    np.testing.assert_allclose(volume.spacing_mm, (0.5, 1.25, 3.0), rtol=1e-7)


def test_a_tilted_gantry_is_an_affine_with_shear():
    affine = np.array([[-1, 0, 0, 0], [0, -1, 0.5, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    volume = read_volume(zipped(named(dicom_files(VALUES, affine))))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-8)
    assert "gantry tilt of 14.0 degrees" in volume.notes[0]
    back = read_labels(encode_labels(VALUES, like=volume, suffix=".nii.gz"))
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)


def test_an_enhanced_object_with_its_frames_in_any_order(tmp_path):
    path = tmp_path / "enhanced.dcm"
    path.write_bytes(enhanced_dicom(VALUES, AFFINE, order=[5, 0, 3, 1, 4, 2], slope=0.5))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.values, VALUES * 0.5 + np.arange(6))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-8)
    assert volume.source.dicom.frames == (1, 3, 5, 2, 4, 0)


def test_missing_slices():
    files = named(dicom_files(np.zeros((4, 5, 12), np.int16), AFFINE))
    refused(
        {name: files[name] for name in files if name != "IM0004"},
        r"slices are 1 missing between IM0003 and IM0005: 6 mm apart, elsewhere 3 mm",
    )
    refused({name: files[name] for name in files if name[-1] not in "456"}, "slices are 3 missing between IM0003 and IM0007")
    uneven = dict(files)
    position = pydicom.dcmread(io.BytesIO(files["IM0011"])).ImagePositionPatient
    step = (np.array(AFFINE[:3, 2]) * [-1, -1, 1] * 0.4).tolist()
    uneven["IM0011"] = changed(files["IM0011"], ImagePositionPatient=[a + b for a, b in zip(position, step, strict=True)])
    refused(uneven, "slices are unevenly spaced between IM0010 and IM0011: 4.2 mm apart, elsewhere 3 mm")


def test_slices_that_are_there_twice():
    files = named(dicom_files(VALUES, AFFINE))
    refused(files | {"copy": files["IM0002"]}, "IM0002 and copy are copies of the same image|copy and IM0002 are copies of the same image")
    echoes = [changed(content, SOPInstanceUID=generate_uid(), EchoTime=90.0) for content in files.values()]
    first = {name: changed(content, EchoTime=10.0) for name, content in files.items()}
    refused(first | named(echoes, "E"), r"lie at the same place, as 6 pairs of 12 slices do: the series holds several volumes \(EchoTime")


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    one = dicom_files(VALUES, AFFINE, series="1.2.3")
    two = dicom_files(VALUES[:, :, :4] + 1, AFFINE, series="1.2.4", SeriesDescription="FLAIR")
    content = zipped(named(one, "A") | named(two, "B"))
    with pytest.raises(InputError, match=r"holds 2 series: T1 gd \(MR, 6 images\), starting with A0000; FLAIR \(MR, 4 images\)"):
        read_volume(content)
    listed = series_in(content)
    assert [(series.uid, series.description) for series in listed] == [("1.2.3", "T1 gd (MR, 6 images)"), ("1.2.4", "FLAIR (MR, 4 images)")]
    assert read_volume(content, series="1.2.4").shape == (4, 5, 4)
    with pytest.raises(InputError, match=r"holds no series 9.9. It holds: T1 gd"):
        read_volume(content, series="9.9")


def test_pages_without_a_place_are_left_out_and_said_so():
    page = changed(
        dicom_files(VALUES, AFFINE)[0], ImagePositionPatient=None, SeriesInstanceUID="1.9", SeriesDescription="Dose report", Modality="OT"
    )
    volume = read_volume(zipped(named(dicom_files(VALUES, AFFINE)) | {"page": page}))
    assert volume.shape == SHAPE
    assert volume.notes == ("Not read: Dose report (OT, 1 image).",)


def test_images_that_make_no_volume():
    files = named(dicom_files(VALUES, AFFINE))
    other = dicom_files(np.zeros((6, 5, 6), np.int16), AFFINE, series=None)
    series = pydicom.dcmread(io.BytesIO(files["IM0000"])).SeriesInstanceUID
    frame = pydicom.dcmread(io.BytesIO(files["IM0000"])).FrameOfReferenceUID
    same = {"SeriesInstanceUID": series, "FrameOfReferenceUID": frame}
    refused(files | {"IM0003": changed(other[3], **same)}, "IM0003 has the size 6 x 5 columns x rows, and most have 4 x 5")
    refused(
        files | {"IM0003": changed(files["IM0003"], PixelSpacing=[1, 1])}, "IM0003 has the pixel spacing 1 x 1 mm, and most have 0.5 x 1.25"
    )
    turned = changed(files["IM0003"], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    refused(files | {"IM0003": turned}, r"IM0003 has the orientation \[1.0, 0.0, 0.0, 0.0, 1.0, 0.0\].*1 of 6 differ.*localisers")
    refused(files | {"IM0003": changed(files["IM0003"], FrameOfReferenceUID="1.9")}, "its images are in 2 frames of reference")
    beside = [float(number) for number in pydicom.dcmread(io.BytesIO(files["IM0003"])).ImagePositionPatient]
    sideways = (LPS[:3, :3] @ AFFINE[:3, 0] * 4).tolist()
    moved = changed(files["IM0003"], ImagePositionPatient=[a + b for a, b in zip(beside, sideways, strict=True)])
    refused(files | {"IM0003": moved}, "IM0003 lies 2 mm beside the line through the other slices")
    refused({"IM0000": files["IM0000"]}, r"is a 2-D image \(4 x 5 x 1 voxels\)")
    refused(files | {"IM0003": changed(files["IM0003"], ImagePositionPatient=None)}, "IM0003 does not say where it lies in the patient")
    refused(files | {"IM0003": changed(files["IM0003"], PixelSpacing=[0, 1])}, "pixel spacing .*, and two positive numbers were expected")
    skewed = changed(files["IM0003"], ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    refused(files | {"IM0003": skewed}, "IM0003 has rows and columns that are not at right angles")
    refused(files | {"IM0003": changed(files["IM0003"], PhotometricInterpretation="PALETTE COLOR")}, "IM0003 is in colour")
    refused(files | {"IM0003": changed(files["IM0003"], ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])}, "Siemens mosaic.*dcm2niix")
    refused(files | {"IM0003.dcm": b"not DICOM at all"}, "IM0003.dcm is no DICOM file, despite its name: it holds text")
    refused(files | {"IM0003.dcm": b""}, "IM0003.dcm is no DICOM file, despite its name: it holds nothing")
    refused(files | {"IM0003": files["IM0003"][:-20]}, r"scan.zip \(IM0003\): cannot be decoded")
    refused({"plan": changed(files["IM0000"], Rows=None, Modality="RTPLAN")}, r"no images of a scan \(1 of modality RTPLAN\)")
    both = {"a": enhanced_dicom(VALUES, AFFINE), "b": changed(enhanced_dicom(VALUES, AFFINE), SeriesInstanceUID="1.5")}
    refused({"a": changed(both["a"], SeriesInstanceUID="1.5"), "b": both["b"]}, r"holds 2 multi-frame images \(a, b\), each a volume")


def test_huge_claims():
    files = {name: changed(content, Rows=60000, Columns=60000) for name, content in named(dicom_files(VALUES, AFFINE)).items()}
    refused(files, "claims 60,000 x 60,000 x 6 voxels")
    refused(
        {"a": changed(enhanced_dicom(VALUES, AFFINE), NumberOfFrames=999_999_999)}, "claims 999999999 frames and describes another number"
    )
    with pytest.raises(InputError, match="holds 6 files, but at most 5"):
        read_volume(zipped(named(dicom_files(VALUES, AFFINE))), limits=VolumeLimits(files=5))


def test_real_dicom_files():
    def sample(name: str) -> bytes:
        path = get_testdata_file(name, download=False)
        if path is None:
            pytest.skip(f"pydicom no longer bundles {name}")
        with open(path, "rb") as file:
            return file.read()

    with pytest.raises(InputError, match=r"is a 2-D image \(128 x 128 x 1 voxels\)"):
        read_volume(sample("CT_small.dcm"), name="CT_small.dcm")
    slices = {}
    for index in range(3):  # one CT slice, stacked
        dataset = pydicom.dcmread(io.BytesIO(sample("CT_small.dcm")))
        dataset.ImagePositionPatient[2] -= 5 * index
        dataset.SOPInstanceUID = generate_uid()
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        slices[str(index)] = buffer.getvalue()
    volume = read_volume(zipped(slices))
    np.testing.assert_array_equal(volume.values[..., 1].T, pydicom.dcmread(io.BytesIO(slices["1"])).pixel_array.astype(float) - 1024)
    np.testing.assert_allclose(volume.spacing_mm, (0.661468, 0.661468, 5), rtol=1e-6)
    for name, reason in {
        "image_dfl.dcm": "deflated DICOM file",
        "rtplan.dcm": "no images of a scan",
        "examples_ybr_color.dcm": "is in colour",
        "rtdose.dcm": "15 frames that do not say where they lie",
    }.items():
        with pytest.raises(InputError, match=reason):
            read_volume(sample(name), name=name)
