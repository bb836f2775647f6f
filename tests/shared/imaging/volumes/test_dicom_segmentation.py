"""A DICOM segmentation names its patient, its study, its series and each image that it was drawn on."""

import io

import highdicom
import numpy as np
import pydicom
import pytest

from shared.errors import InputError, UserError
from shared.imaging.volumes import (
    Code,
    Segment,
    SegmentationMaker,
    Volume,
    crop,
    encode_segmentation,
    read_labels,
    read_volume,
    restore_labels,
    same_grid,
    write_segmentation,
)
from tests.shared.imaging.volumes.made import OBLIQUE, dicom_files, enhanced_dicom, nifti_bytes, orientations, zipped

AFFINE = dict(orientations(OBLIQUE["oblique"]))["LPI"]
SHAPE = (7, 6, 9)
VALUES = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
MORPHOLOGY = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
NECROSIS = Segment(value=1, name="Necrotic core", category=MORPHOLOGY, kind=Code(value="6574001", scheme="SCT", meaning="Necrosis"))
OEDEMA = Segment(value=2, name="Oedema", category=MORPHOLOGY, kind=Code(value="79654002", scheme="SCT", meaning="Edema"))
ENHANCING = Segment(
    value=4,
    name="Enhancing tumour",
    category=MORPHOLOGY,
    kind=Code(value="108369006", scheme="SCT", meaning="Neoplasm"),
    anatomy=Code(value="12738006", scheme="SCT", meaning="Brain"),
    color=(220, 30, 30),
)
SEGMENTS = [NECROSIS, OEDEMA, ENHANCING]
MAKER = SegmentationMaker(name="Fovea tests", version="1.2", series_description="Tumour regions")


def labels() -> np.ndarray:
    """BraTS's values 1, 2, 4, between the second and the seventh slice."""
    values = np.zeros(SHAPE, np.uint8)
    values[1:5, 1:4, 2:7] = 2
    values[2:4, 1:3, 3:6] = 4
    values[3, 2, 4] = 1
    return values


def series() -> Volume:
    return read_volume(zipped({str(index): content for index, content in enumerate(dicom_files(VALUES, AFFINE))}))


def parsed(content: bytes) -> highdicom.seg.Segmentation:
    return highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(io.BytesIO(content)))


def test_it_belongs_to_its_source():
    source = series()
    segmentation = parsed(encode_segmentation(labels(), like=source, segments=SEGMENTS, maker=MAKER))
    image = source.source.dicom.images[0]
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "AccessionNumber"):
        assert segmentation[keyword].value == image[keyword].value, keyword
    assert segmentation.FrameOfReferenceUID == image.FrameOfReferenceUID
    assert segmentation.SeriesInstanceUID != image.SeriesInstanceUID
    assert segmentation.Modality == "SEG"
    assert segmentation.SegmentationType == "BINARY"
    assert segmentation.SeriesDescription == "Tumour regions"
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID
    referenced = {item.ReferencedSOPInstanceUID for item in segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {image.SOPInstanceUID for image in source.source.dicom.images}


def test_each_frame_refers_to_the_image_at_its_place():
    source = series()
    segmentation = parsed(encode_segmentation(labels(), like=source, segments=SEGMENTS, maker=MAKER))
    slices = [image.SOPInstanceUID for image in source.source.dicom.images]
    for index, frame in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        position = slices.index(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        image = source.source.dicom.images[position]
        np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, image.ImagePositionPatient, atol=1e-6)
        value = SEGMENTS[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1].value
        np.testing.assert_array_equal(segmentation.pixel_array[index].T, labels()[:, :, position] == value)


def test_the_segments_are_named_and_coded():
    segmentation = parsed(encode_segmentation(labels(), like=series(), segments=SEGMENTS, maker=MAKER))
    described = [segmentation.get_segment_description(number) for number in (1, 2, 3)]
    assert [item.segment_label for item in described] == ["Necrotic core", "Oedema", "Enhancing tumour"]
    assert [item.segmented_property_type.value for item in described] == ["6574001", "79654002", "108369006"]
    assert described[2].anatomic_regions[0].meaning == "Brain"
    assert described[0].algorithm_identification[0].AlgorithmName == "Fovea tests"
    assert described[0].algorithm_type.value == "AUTOMATIC"
    assert highdicom.color.CIELabColor.from_dicom_value(described[2].RecommendedDisplayCIELabValue).to_rgb() == pytest.approx(
        (220, 30, 30), abs=1
    )


def test_it_reads_back_as_labels_on_the_grid_of_its_image(tmp_path):
    source = series()
    write_segmentation(tmp_path / "seg.dcm", labels(), like=source, segments=SEGMENTS, maker=MAKER)
    back = read_labels(tmp_path / "seg.dcm")
    assert back.shape == (7, 6, 5)  # slices without a label are left out
    home = restore_labels(back, source.grid)
    assert same_grid(home, source)
    np.testing.assert_array_equal(home.values, np.select([labels() == 1, labels() == 2, labels() == 4], [1, 2, 3]))


def test_nothing_found_is_a_segmentation_too():
    source = series()
    content = encode_segmentation(np.zeros(SHAPE, np.uint8), like=source, segments=SEGMENTS, maker=MAKER)
    volume = parsed(content).get_volume(combine_segments=True)
    assert volume.array.shape == (9, 6, 7)
    assert not volume.array.any()
    back = read_labels(content)
    assert same_grid(back, source)
    assert not back.values.any()


def test_a_single_segment_and_boolean_labels():
    content = encode_segmentation(labels() > 0, like=series(), segments=[NECROSIS], maker=MAKER)
    assert int(parsed(content).pixel_array.sum()) == np.count_nonzero(labels())


def test_a_series_without_optional_attributes():
    bare = []
    for content in dicom_files(VALUES, AFFINE):
        dataset = pydicom.dcmread(io.BytesIO(content))
        for keyword in (
            "AccessionNumber",
            "PatientBirthDate",
            "PatientID",
            "PatientName",
            "PatientSex",
            "StudyDate",
            "StudyID",
            "StudyTime",
        ):
            delattr(dataset, keyword)
        del dataset.SliceThickness, dataset.ReferringPhysicianName
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        bare.append(buffer.getvalue())
    source = read_volume(zipped({str(index): content for index, content in enumerate(bare)}))
    volume = parsed(encode_segmentation(labels(), like=source, segments=SEGMENTS, maker=MAKER)).get_volume(combine_segments=True)
    assert volume.array.max() == 3
    assert "PatientID" not in source.source.dicom.images[0]  # what was read is left alone


def test_an_enhanced_source_is_referred_to_by_frame():
    source = read_volume(enhanced_dicom(VALUES, AFFINE, order=[8, 0, 3, 1, 4, 2, 6, 5, 7]))
    segmentation = parsed(encode_segmentation(labels(), like=source, segments=SEGMENTS, maker=MAKER))
    image = source.source.dicom.images[0]
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID
        place = image.PerFrameFunctionalGroupsSequence[int(reference.ReferencedFrameNumber) - 1].PlanePositionSequence[0]
        np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, place.ImagePositionPatient, atol=1e-6)


def test_what_cannot_be_one_is_refused(tmp_path):
    source = series()
    nifti = read_volume(nifti_bytes(VALUES, AFFINE), name="t1.nii")
    with pytest.raises(UserError, match=r"t1.nii: was not read from a DICOM series"):
        encode_segmentation(labels(), like=nifti, segments=SEGMENTS, maker=MAKER)
    with pytest.raises(ValueError, match=r"labels \[4\] have no segment; there are segments for \[1, 2\]"):
        encode_segmentation(labels(), like=source, segments=SEGMENTS[:2], maker=MAKER)
    with pytest.raises(ValueError, match="different values from 1 up"):
        encode_segmentation(labels(), like=source, segments=[NECROSIS, NECROSIS], maker=MAKER)
    with pytest.raises(ValueError, match=r"are not on the grid of the source series"):
        encode_segmentation(labels()[1:], like=source, segments=SEGMENTS, maker=MAKER)
    part = crop(source, (slice(0, 7), slice(0, 6), slice(2, 9)))
    with pytest.raises(ValueError, match=r"are not on the grid of the source series"):
        write_segmentation(tmp_path / "seg.dcm", labels(), like=part, segments=SEGMENTS, maker=MAKER)
    without = [pydicom.dcmread(io.BytesIO(content)) for content in dicom_files(VALUES, AFFINE)]
    files = {}
    for index, dataset in enumerate(without):
        del dataset.FrameOfReferenceUID
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        files[str(index)] = buffer.getvalue()
    with pytest.raises(UserError, match=r"its DICOM series cannot carry a segmentation .*Save the labels as NIfTI instead"):
        encode_segmentation(labels(), like=read_volume(zipped(files)), segments=SEGMENTS, maker=MAKER)
    assert not list(tmp_path.iterdir())


def test_a_damaged_segmentation():
    content = encode_segmentation(labels(), like=series(), segments=SEGMENTS, maker=MAKER)
    with pytest.raises(InputError, match=r"seg.dcm: .*cannot be decoded"):
        read_labels(content[:-100], name="seg.dcm")
