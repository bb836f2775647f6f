"""What a file holds is what is read: values, scaling, channels and places, compared with nibabel and ITK."""

import gzip
import importlib.resources
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shared.errors import InputError
from shared.imaging.volumes import encode_labels, encode_volume, read_labels, read_volume, write_labels, write_volume
from tests.shared.imaging.volumes.made import LPS, OBLIQUE, dicom_files, itk_bytes, labelled_corners, nifti_bytes, orientations, zipped

AFFINE = dict(orientations(OBLIQUE["oblique"]))["PSR"]
KINDS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
SIDES = st.integers(2, 5)


def ramp(dtype: str = "int16", shape: tuple[int, ...] = (4, 5, 6)) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) - (20 if np.dtype(dtype).kind != "u" else 0)).astype(dtype)


@pytest.mark.parametrize(
    "name", ["anatomical.nii", "reoriented_anat_moved.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"]
)
def test_real_files_read_as_nibabel_reads_them(name):
    path = importlib.resources.files("nibabel") / "tests" / "data" / name
    if not path.is_file():
        pytest.skip(f"nibabel no longer bundles {name}")
    volume, image = read_volume(Path(str(path))), nibabel.load(str(path))
    expected = np.moveaxis(image.get_fdata(), -1, 0) if image.ndim == 4 else image.get_fdata()
    np.testing.assert_allclose(volume.values, expected, rtol=3e-7)  # scaled in 32 bits here, in 64 there
    np.testing.assert_array_equal(volume.affine, image.affine)
    assert volume.values.dtype == np.float32
    assert volume.values.flags.writeable
    assert volume.axes == "".join(nibabel.aff2axcodes(image.affine))


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_type_of_voxel_in_every_format(dtype, packed):
    values = ramp(dtype)
    nifti = nifti_bytes(values, AFFINE)
    files = [gzip.compress(nifti) if packed else nifti, nifti_bytes(values, AFFINE, version=2)]
    files += [itk_bytes(values, AFFINE, suffix, packed=packed) for suffix in (".mha", ".nrrd")]
    for content in files:
        volume = read_volume(content)
        np.testing.assert_array_equal(volume.values, values.astype(np.float32))
        labels = read_labels(content).values
        np.testing.assert_array_equal(labels, values)
        assert labels.dtype == (values.dtype if values.dtype.kind != "f" else np.int16)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), suffix=st.sampled_from([".nii", ".nii.gz", ".mha", ".nrrd"]), shape=st.tuples(SIDES, SIDES, SIDES))
def test_whatever_is_written_comes_back(data, suffix, shape):
    affine = data.draw(st.sampled_from([affine for _, affine in orientations(OBLIQUE["oblique"])]))
    like = read_volume(nifti_bytes(np.zeros(shape, np.int16), affine))
    labels = data.draw(arrays.arrays(np.uint16, shape))
    back = read_labels(encode_labels(labels, like=like, suffix=suffix))
    np.testing.assert_array_equal(back.values, labels)
    assert back.values.dtype == (np.uint8 if labels.max() < 256 else np.uint16)
    np.testing.assert_allclose(back.affine, like.affine, atol=1e-12 if ".nii" not in suffix else 0)
    values = data.draw(arrays.arrays(np.float32, (2, *shape), elements=st.floats(-1e6, 1e6, width=32)))
    np.testing.assert_array_equal(read_volume(encode_volume(values, like=like, suffix=suffix)).values, values)


def test_scaled_integers():
    values = read_volume(nifti_bytes(ramp(), AFFINE, scl_slope=0.5, scl_inter=-3.0)).values
    np.testing.assert_array_equal(values, ramp() * 0.5 - 3)
    with pytest.raises(InputError, match=r"60 voxels are not whole numbers, the first, -12.5, at voxel \(0, 0, 1\)"):
        read_labels(nifti_bytes(ramp(), AFFINE, scl_slope=0.5, scl_inter=-3.0))
    np.testing.assert_array_equal(read_labels(nifti_bytes(ramp(), AFFINE, scl_slope=2)).values, ramp() * 2)
    for slope in (0, np.nan):  # "no scaling"
        np.testing.assert_array_equal(read_volume(nifti_bytes(ramp(), AFFINE, scl_slope=slope)).values, ramp())


def test_big_endian_files():
    image = nibabel.Nifti1Image(ramp().astype(">i2"), AFFINE, nibabel.Nifti1Header(endianness=">"))
    assert image.header.endianness == ">"
    volume = read_volume(image.to_bytes())
    np.testing.assert_array_equal(volume.values, ramp())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)  # 32 bits in the header
    assert read_labels(image.to_bytes()).values.dtype.isnative
    back = nibabel.Nifti1Image.from_bytes(encode_labels(labelled_corners(), like=volume, suffix=".nii"))
    np.testing.assert_array_equal(np.asarray(back.dataobj), labelled_corners())
    mha = itk_bytes(ramp(), AFFINE, ".mha").replace(b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = True")
    np.testing.assert_array_equal(read_volume(mha).values, ramp().byteswap())
    nrrd = itk_bytes(ramp(), AFFINE, ".nrrd").replace(b"endian: little", b"endian: big")
    np.testing.assert_array_equal(read_volume(nrrd).values, ramp().byteswap())


def test_channels_come_first_and_a_single_one_vanishes():
    four = ramp(shape=(4, 5, 6, 3))
    for shape, content in {
        (3, 4, 5, 6): nifti_bytes(four, AFFINE),
        (3, 4, 5, 6, 1): nifti_bytes(four[..., None], AFFINE),
        (1, 3, 4, 5, 6): nifti_bytes(four[:, :, :, None], AFFINE),  # as ITK writes vectors
    }.items():
        values = read_volume(content).values
        np.testing.assert_array_equal(values, np.moveaxis(four, -1, 0), err_msg=str(shape))
    for trailing in (1, 2, 3):
        content = nifti_bytes(ramp().reshape(4, 5, 6, *[1] * trailing), AFFINE)
        np.testing.assert_array_equal(read_volume(content).values, ramp())
    vectors = np.moveaxis(four, -1, 0)
    for suffix in (".mha", ".nrrd"):
        np.testing.assert_array_equal(read_volume(itk_bytes(vectors, AFFINE, suffix, vector=True)).values, vectors)


def test_a_fourth_axis_of_mha_and_nrrd(tmp_path):
    four = ramp(shape=(3, 4, 5, 6))  # channels, x, y, z
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(four.transpose(0, 3, 2, 1)), isVector=False)
    assert image.GetDimension() == 4
    image.SetSpacing((0.5, 1.25, 3, 2))
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(image, str(path))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.values, four)
    assert volume.spacing_mm == (0.5, 1.25, 3)
    header = (
        b"NRRD0004\ntype: short\ndimension: 4\nspace: RAS\nsizes: 3 4 5 6\nspace directions: none (0.5,0,0) (0,1.25,0) (0,0,3)\n"
        b"kinds: list domain domain domain\nendian: little\nencoding: raw\nspace origin: (1,2,3)\n\n"
    )
    volume = read_volume(header + four.tobytes(order="F"))
    np.testing.assert_array_equal(volume.values, four)
    np.testing.assert_array_equal(volume.affine, [[0.5, 0, 0, 1], [0, 1.25, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])


@pytest.mark.parametrize(("space", "signs"), [("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1)), ("LPS", (-1, -1, 1))])
def test_the_spaces_of_nrrd(space, signs, tmp_path):
    content = itk_bytes(ramp(), np.eye(4), ".nrrd")
    content = content.replace(b"space: left-posterior-superior", f"space: {space}".encode())
    path = tmp_path / "a.nrrd"
    path.write_bytes(content)
    ours, theirs = read_volume(path), SimpleITK.ReadImage(str(path))
    np.testing.assert_allclose(ours.affine, np.diag([*signs, 1]) @ np.diag([-1, -1, 1, 1]))  # itk_bytes wrote LPS
    for corner in ((0, 0, 0), (3, 4, 5)):
        np.testing.assert_allclose(ours.grid.to_world(corner), LPS[:3, :3] @ theirs.TransformIndexToPhysicalPoint(corner))


def test_voxels_in_a_file_beside_the_header(tmp_path):
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(ramp().T))
    for suffix, packed in ((".mhd", False), (".mhd", True), (".nhdr", False), (".nhdr", True)):
        path = tmp_path / f"scan_{packed}{suffix}"
        SimpleITK.WriteImage(image, str(path), useCompression=packed)
        np.testing.assert_array_equal(read_volume(path).values, ramp())
        with pytest.raises(InputError, match=r"its voxels are in another file, 'scan_.*'. Save both as one file"):
            read_volume(path.read_bytes(), name="upload")


def test_a_header_opens_no_file_of_another_folder(tmp_path):
    (tmp_path / "secret.raw").write_bytes(bytes(240))
    folder = tmp_path / "uploads"
    folder.mkdir()
    for stated in ("../secret.raw", str(tmp_path / "secret.raw"), "..", "..\\secret.raw", "LIST", "slice%03d.raw 1 6 1"):
        path = folder / "a.mhd"
        path.write_bytes(itk_bytes(ramp(), AFFINE, ".mha").split(b"LOCAL")[0] + stated.encode() + b"\n")
        with pytest.raises(InputError, match=r"in the same folder only|spread over several files"):
            read_volume(path)
        path = folder / "a.nhdr"
        head = itk_bytes(ramp(), AFFINE, ".nrrd").split(b"\n\n")[0]
        path.write_bytes(head + b"\ndata file: " + stated.encode() + b"\n")
        with pytest.raises(InputError, match=r"in the same folder only|spread over several files"):
            read_volume(path)


def test_sform_and_qform_that_disagree_are_said_so():
    content = nifti_bytes(ramp(), AFFINE, sform=1, qform=1)
    assert not read_volume(content).notes
    moved = read_volume(nifti_bytes(ramp(), AFFINE, sform=1, qform=1, qoffset_x=10.0))
    np.testing.assert_allclose(moved.affine, AFFINE, atol=1e-5)
    assert moved.notes == ("sform and qform disagree by up to 22.5 mm; the sform is used.",)  # the x of AFFINE's origin is -12.5
    mirrored = read_volume(nifti_bytes(ramp(), np.diag([1.0, 1, 1, 1]), sform=1, qform=1, quatern_c=1.0, quatern_b=0.0))
    assert "axes RAS and LAI" in mirrored.notes[0]
    assert "The qform is damaged" in read_volume(nifti_bytes(ramp(), AFFINE, sform=1, qform=1, quatern_c=9.0)).notes[0]


def test_a_header_without_orientation_is_said_so():
    volume = read_volume(nifti_bytes(ramp(), np.diag([2.0, 2, 3, 1]), sform=0, qform=0))
    assert "does not say where the patient's left is" in volume.notes[0]
    assert volume.axes == "LAS"
    nrrd = itk_bytes(ramp(), AFFINE, ".nrrd")
    lines = [line for line in nrrd.split(b"\n\n")[0].split(b"\n") if not line.startswith((b"space", b"kinds"))]
    volume = read_volume(b"\n".join([*lines, b"spacings: 1 2 3", b"", b""]) + ramp().tobytes(order="F"))
    assert "does not say where the patient's left is" in volume.notes[0]
    assert volume.spacing_mm == (1, 2, 3)


def test_lengths_in_other_units_become_millimetres():
    micrometres = nifti_bytes(ramp(), np.diag([250.0, 250, 500, 1]), xyzt_units=3)
    volume = read_volume(micrometres)
    assert volume.spacing_mm == (0.25, 0.25, 0.5)
    assert "micrometres" in volume.notes[0]
    again = encode_labels(ramp() * 0, like=volume, suffix=".nii")
    assert read_volume(again).spacing_mm == (0.25, 0.25, 0.5)
    assert nibabel.Nifti1Image.from_bytes(again).header["pixdim"][1] == 250


def test_a_result_keeps_the_header_of_its_source(tmp_path):
    image = nibabel.Nifti1Image(ramp(), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(AFFINE, 4)
    image.set_qform(AFFINE, 1)
    image.header["descrip"] = b"5.0.11"
    image.header["cal_max"], image.header["scl_slope"], image.header["scl_inter"] = 900, 2, 1
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"values are in units of the source"))
    source = tmp_path / "t1.nii.gz"
    nibabel.save(image, source)
    volume = read_volume(source)
    write_labels(tmp_path / "out" / "labels.nii.gz", labelled_corners(), like=volume)
    written = nibabel.load(tmp_path / "out" / "labels.nii.gz")
    np.testing.assert_array_equal(written.affine, image.affine)
    for field in ("sform_code", "qform_code", "quatern_b", "qoffset_x", "srow_x", "pixdim", "xyzt_units", "descrip"):
        np.testing.assert_array_equal(written.header[field], nibabel.load(source).header[field], err_msg=field)
    assert written.header.get_intent()[0] == "label"
    assert written.header["cal_max"] == 0
    assert not written.header.extensions
    assert np.isnan(written.header["scl_slope"]) or written.header["scl_slope"] in (0, 1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["labels.nii.gz"]


def test_equal_results_are_equal_bytes():
    volume = read_volume(nifti_bytes(ramp(), AFFINE))
    for suffix in (".nii", ".nii.gz", ".mha", ".nrrd"):
        assert encode_labels(labelled_corners(), like=volume, suffix=suffix) == encode_labels(
            labelled_corners(), like=volume, suffix=suffix
        )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_a_volume_of_channels_gives_labels_without(suffix, tmp_path):
    volume = read_volume(nifti_bytes(ramp(shape=(4, 5, 6, 3)), AFFINE))
    write_labels(tmp_path / f"labels{suffix}", labelled_corners() > 0, like=volume)
    back = read_labels(tmp_path / f"labels{suffix}", classes=(0, 1), labelled=True)
    np.testing.assert_array_equal(back.values, labelled_corners() > 0)
    assert back.values.dtype == np.uint8
    write_volume(tmp_path / f"p{suffix}", volume.values, like=volume)
    np.testing.assert_array_equal(read_volume(tmp_path / f"p{suffix}").values, volume.values)


def test_what_cannot_be_written_is_refused(tmp_path):
    volume = read_volume(nifti_bytes(ramp(), AFFINE))
    for labels, message in {
        "real": (np.zeros((4, 5, 6)), "labels are integers"),
        "negative": (ramp(), "labels from 0 to 65535 are written, not -20 to 99"),
        "large": (ramp().astype(np.int64) + 10**6, "labels from 0 to 65535"),
        "elsewhere": (np.zeros((5, 5, 6), int), r"do not fit the grid \[4, 5, 6\]"),
    }.values():
        with pytest.raises(ValueError, match=message):
            write_labels(tmp_path / "a.nii", labels, like=volume)
    with pytest.raises(ValueError, match=r"written as .mha, .nii, .nii.gz, .nrrd, not as ''"):
        write_labels(tmp_path / "a.png", labelled_corners(), like=volume)
    assert not list(tmp_path.iterdir())


def test_labels_are_checked():
    real = nifti_bytes(labelled_corners().astype(np.float32), AFFINE)
    assert read_labels(real).values.dtype == np.uint8
    half = labelled_corners().astype(np.float64)
    half[1, 1, 1] = 0.5
    with pytest.raises(InputError, match=r"is no label map: 1 voxels are not whole numbers, the first, 0.5, at voxel \(1, 1, 1\)"):
        read_labels(nifti_bytes(half, AFFINE))
    with pytest.raises(InputError, match=r"has the labels 0, 1, 2, 3, 4, and 0, 1, 2 were expected; the first 3 is at voxel \(0, 4, 0\)"):
        read_labels(real, classes=(0, 1, 2))
    with pytest.raises(InputError, match="is empty: no voxel has a label"):
        read_labels(nifti_bytes(np.zeros((4, 5, 6), np.uint8), AFFINE), labelled=True)
    with pytest.raises(InputError, match="has 3 channels, and a label map has one number"):
        read_labels(nifti_bytes(ramp(shape=(4, 5, 6, 3)), AFFINE))
    with pytest.raises(InputError, match=r"not finite.*one whole number"):
        read_labels(nifti_bytes(np.full((4, 5, 6), np.nan), AFFINE))
    with pytest.raises(InputError, match="which are no class numbers"):
        read_labels(nifti_bytes(np.full((4, 5, 6), 1e12), AFFINE))


def test_a_volume_travels_to_another_process():
    volume = read_volume(nifti_bytes(ramp(), AFFINE), name="a")
    back = pickle.loads(pickle.dumps(volume))  # noqa: S301 (our own)
    np.testing.assert_array_equal(back.values, volume.values)
    assert encode_labels(labelled_corners(), like=back, suffix=".nii") == encode_labels(labelled_corners(), like=volume, suffix=".nii")


def test_many_threads_read_and_write_at_once(tmp_path):
    contents = {}
    for index, (code, affine) in enumerate(list(orientations(OBLIQUE["oblique"]))[::4]):
        values = ramp() + index
        kinds = [nifti_bytes(values, affine), itk_bytes(values, affine, ".mha"), itk_bytes(values, affine, ".nrrd", packed=True)]
        contents[code] = (kinds[index % 3], values, affine)
    contents["packed"] = (zipped({"a.nii.gz": gzip.compress(nifti_bytes(ramp(), AFFINE))}), ramp(), AFFINE)

    upright = dict(orientations())["LPS"]
    contents["dicom"] = (zipped({str(index): content for index, content in enumerate(dicom_files(ramp(), upright))}), ramp(), upright)

    def work(code: str) -> bool:
        content, values, affine = contents[code]
        volume = read_volume(content)
        back = read_labels(encode_labels(volume.values.astype(np.int32) + 20, like=volume, suffix=".nrrd"))
        return bool((back.values == values + 20).all()) and np.allclose(back.affine, affine, atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, list(contents) * 6))
