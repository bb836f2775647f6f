"""Four labelled corners keep their places in the patient through every reader, writer and orientation: nothing is flipped in silence."""

import io
import random

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from shared.imaging.volumes import (
    Code,
    Segment,
    SegmentationMaker,
    Volume,
    encode_labels,
    encode_segmentation,
    encode_volume,
    grid_with_spacing,
    pad,
    read_labels,
    read_volume,
    reorient,
    resample,
    restore_labels,
)
from tests.shared.imaging.volumes.made import (
    LPS,
    OBLIQUE,
    dicom_files,
    enhanced_dicom,
    itk_bytes,
    labelled_corners,
    nifti_bytes,
    orientations,
    positions,
    zipped,
)

TURNED = pytest.mark.parametrize("turned", OBLIQUE)
WITHIN_MM = 2e-5
"""NIfTI keeps its affine in 32 bits: 31 mm to about 2e-6, times the three terms of a sum."""


def read_elsewhere(content: bytes, suffix: str, folder) -> tuple[np.ndarray, np.ndarray]:
    """Values [X, Y, Z] and RAS affine as another library understands the file."""
    path = folder / f"result{suffix}"
    path.write_bytes(content)
    if suffix.startswith(".nii"):
        image = nibabel.load(path)
        return np.asarray(image.dataobj), image.affine
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), LPS @ affine


def check_places(found: dict[int, np.ndarray], truth: dict[int, np.ndarray], what: str) -> None:
    assert found.keys() == truth.keys(), what
    for label, place in truth.items():
        np.testing.assert_allclose(found[label], place, atol=WITHIN_MM, err_msg=f"label {label}, {what}")


SOURCES = {
    "nifti, sform": lambda values, affine: nifti_bytes(values, affine, sform=1),
    "nifti, qform": lambda values, affine: nifti_bytes(values, affine, sform=0, qform=1),
    "nifti 2": lambda values, affine: nifti_bytes(values, affine, version=2, sform=2, qform=1),
    "mha": lambda values, affine: itk_bytes(values, affine, ".mha"),
    "packed nrrd": lambda values, affine: itk_bytes(values, affine, ".nrrd", packed=True),
    "dicom": lambda values, affine: zipped(dict(shuffled(dicom_files(values, affine)))),
    "enhanced dicom": lambda values, affine: enhanced_dicom(
        values - np.arange(values.shape[2], dtype=np.int16), affine, order=[4, 0, 5, 2, 1, 3]
    ),
}


def walk(turned: str, *, slow: bool = False) -> list[tuple[str, np.ndarray]]:
    """All 48 orientations; oblique and slow ones every seventh, which takes each permutation of the axes once."""
    found = list(orientations(OBLIQUE[turned]))
    return found[::7] if slow and turned == "oblique" else found


def right_handed(turned: str) -> list[tuple[str, np.ndarray]]:
    """The 24 that the orientation of an image can express; the order of slices is no orientation in DICOM."""
    return [(code, affine) for code, affine in walk(turned, slow=True) if np.linalg.det(affine) > 0]


def shuffled(files: list[bytes]) -> list[tuple[str, bytes]]:
    """In an order, and under names, that say nothing of where they lie."""
    mixed = list(enumerate(files))
    random.Random(7).shuffle(mixed)
    return [(f"IM{number:04d}", content) for number, (_, content) in enumerate(mixed)]


@TURNED
@pytest.mark.parametrize("kind", SOURCES)
def test_through_every_reader_and_from_there_through_every_writer(kind, turned, tmp_path):
    labels = labelled_corners()
    for code, affine in walk(turned, slow="dicom" in kind):
        truth = positions(labels, affine)
        content = SOURCES[kind](labels, affine)
        read = read_labels(content, name=code)
        check_places(positions(read.values, read.affine), truth, f"{kind} {code}")
        image = read_volume(content, name=code)
        check_places(positions(image.values, image.affine), truth, f"{kind} {code}")
        if "dicom" not in kind:  # whose slices are sorted along their normal
            assert read.axes == code
            np.testing.assert_array_equal(read.values, labels)
        for suffix in (".nii", ".mha", ".nrrd") if kind in {"nifti, sform", "mha"} else (".nii.gz",):
            written = read_elsewhere(encode_labels(read.values, like=image, suffix=suffix), suffix, tmp_path)
            check_places(positions(*written), truth, f"{kind} {code} to {suffix}")


@TURNED
def test_probabilities_too_one_channel_or_several(turned, tmp_path):
    labels = labelled_corners().astype(np.float32)
    for code, affine in orientations(OBLIQUE[turned]):
        like = Volume(values=labels, affine=affine)
        for suffix in (".nii.gz", ".mha", ".nrrd"):
            written = read_elsewhere(encode_volume(labels, like=like, suffix=suffix), suffix, tmp_path)
            check_places(positions(*written), positions(labels, affine), f"{code} to {suffix}")
            several = read_volume(encode_volume(np.stack([labels, 2 * labels]), like=like, suffix=suffix))
            np.testing.assert_array_equal(several.values, [labels, 2 * labels])
            np.testing.assert_allclose(several.affine, affine, atol=WITHIN_MM)


@TURNED
def test_a_dicom_segmentation_lies_on_its_series(turned):
    """Read back with highdicom alone."""
    labels = labelled_corners()
    for code, affine in right_handed(turned):
        source = read_volume(zipped(dict(shuffled(dicom_files(labels, affine)))))
        segmented = source.values.astype(np.uint8)
        content = encode_segmentation(segmented, like=source, segments=SEGMENTS, maker=MAKER)
        volume = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(io.BytesIO(content))).get_volume(combine_segments=True)
        found = positions(volume.array, LPS @ volume.affine)
        check_places(found, positions(labels, affine), f"DICOM SEG {code}")
        if code[0] in "RL":  # a third of them, for time's sake
            ours = read_labels(content)
            check_places(positions(ours.values, ours.affine), positions(labels, affine), f"DICOM SEG {code}, read here")


@TURNED
def test_a_segmentation_of_an_enhanced_object(turned):
    labels = labelled_corners()
    for code, affine in right_handed(turned)[::2]:
        stored = labels - np.arange(labels.shape[2], dtype=np.int16)
        source = read_volume(enhanced_dicom(stored, affine, order=[3, 5, 0, 1, 4, 2]))
        content = encode_segmentation(source.values.astype(np.uint8), like=source, segments=SEGMENTS, maker=MAKER)
        volume = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(io.BytesIO(content))).get_volume(combine_segments=True)
        check_places(positions(volume.array, LPS @ volume.affine), positions(labels, affine), code)


@TURNED
def test_a_series_lies_where_itk_puts_it(turned, tmp_path):
    """SimpleITK with GDCM is the other reader."""
    values = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    for code, affine in right_handed(turned):
        folder = tmp_path / code
        folder.mkdir()
        for name, content in shuffled(dicom_files(values, affine)):
            (folder / name).write_bytes(content)
        names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        theirs = SimpleITK.ReadImage(names)
        ours = read_volume(folder)
        for index in ((0, 0, 0), (3, 1, 5), (2, 4, 0)):
            world = (LPS[:3, :3] @ theirs.TransformIndexToPhysicalPoint(index)).tolist()
            here = tuple(np.rint(ours.grid.to_index(world)).astype(int))
            np.testing.assert_allclose(ours.grid.to_world(here), world, atol=1e-4)
            assert ours.values[here] == theirs[index]


@TURNED
def test_through_every_step_of_a_model_and_home_again(turned):
    labels = labelled_corners((7, 6, 5))
    for code, affine in walk(turned, slow=True):
        volume = read_labels(nifti_bytes(labels, affine))
        canonical = reorient(volume, "RAS")
        assert canonical.axes == "RAS"
        check_places(positions(canonical.values, canonical.affine), positions(labels, affine), code)
        padded = pad(canonical, [(2, 1), (0, 3), (4, 0)])
        check_places(positions(padded.values, padded.affine), positions(labels, affine), code)
        fine = resample(padded, grid_with_spacing(padded.grid, (0.25, 0.5, 0.5)), order=0)
        home = restore_labels(fine)
        np.testing.assert_array_equal(home.values, labels)
        np.testing.assert_array_equal(home.affine, volume.affine)


ANYTHING = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
SEGMENTS = [
    Segment(value=number, name=f"corner {number}", category=ANYTHING, kind=Code(value="108369006", scheme="SCT", meaning="Neoplasm"))
    for number in (1, 2, 3, 4)
]
MAKER = SegmentationMaker(name="Fovea tests", version="1", series_description="Corners")
