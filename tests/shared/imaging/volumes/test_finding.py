"""Volumes are found wherever they lie; the sequences of one examination are found together, and what is missing is said."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from shared.errors import InputError, UserError
from shared.imaging.volumes import BRATS, MSD_BRAIN_TUMOUR, find_cases, find_volumes, read_case
from tests.shared.imaging.volumes.made import OBLIQUE, dicom_files, enhanced_dicom, nifti_bytes, orientations, zipped

AFFINE = dict(orientations(OBLIQUE["oblique"]))["LPS"]
VALUES = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


def write(folder: Path, *names: str, value: int = 0) -> None:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(nifti_bytes(VALUES + value + index, AFFINE))


def write_series(folder: Path, pattern: str = "IM{:04d}", value: int = 0) -> None:
    folder.mkdir(parents=True)
    for index, content in enumerate(dicom_files(VALUES + value, AFFINE)):
        (folder / pattern.format(index)).write_bytes(content)


def found(*paths: Path | str) -> dict[str, str]:
    return {file.stem: file.path.name for file in find_volumes(paths)}


def test_files_and_folders_of_every_kind(tmp_path):
    write(tmp_path, "a.nii", "sub/b.nii.gz", "c.mha", "d.mhd", "e.nrrd", "f.zip", "notes.txt", ".hidden.nii")
    write_series(tmp_path / "p1" / "T1")
    write_series(tmp_path / "p1" / "T2", "slice{}.dcm")
    write_series(tmp_path / "p2" / "siemens", "A{}.IMA")
    assert found(tmp_path) == {
        "a": "a.nii",
        "sub/b": "b.nii.gz",
        "c": "c.mha",
        "d": "d.mhd",
        "e": "e.nrrd",
        "f": "f.zip",
        "p1/T1": "T1",
        "p1/T2": "T2",
        "p2/siemens": "siemens",
    }
    assert found(tmp_path / "p1" / "T1") == {"T1": "T1"}
    assert found(f"{tmp_path}/p1/*") == {"T1": "T1", "T2": "T2"}
    assert found(*sorted((tmp_path / "p1" / "T1").iterdir())) == {"T1": "T1"}


def test_no_result_overwrites_another(tmp_path):
    write_series(tmp_path / "a" / "T1")
    write_series(tmp_path / "b" / "T1")
    write(tmp_path, "T1.nii", "c/T1.nii.gz")
    for given in ([tmp_path], [tmp_path / "a" / "T1", tmp_path / "b" / "T1", tmp_path / "T1.nii", tmp_path / "c" / "T1.nii.gz"]):
        files = find_volumes(given)
        assert len(files) == 4
        assert len({file.stem.casefold() for file in files}) == 4
    assert set(found(tmp_path / "a" / "T1", tmp_path / "T1.nii")) == {"T1", "a/T1"}


def test_multiframe_files_are_inputs_of_their_own(tmp_path):
    for name in ("one.dcm", "two.dcm"):
        (tmp_path / name).write_bytes(enhanced_dicom(VALUES, AFFINE))
    assert found(tmp_path) == {"one": "one.dcm", "two": "two.dcm"}


def test_nothing_there(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"1 files, but none of the right kind .*\.nii\.gz"):
        find_volumes([tmp_path])


@pytest.mark.parametrize(
    "names",
    [
        (
            "BraTS20_Training_001_t1.nii.gz",
            "BraTS20_Training_001_t1ce.nii.gz",
            "BraTS20_Training_001_t2.nii.gz",
            "BraTS20_Training_001_flair.nii.gz",
        ),
        ("BraTS-GLI-00005-100-t1n.nii", "BraTS-GLI-00005-100-t1c.nii", "BraTS-GLI-00005-100-t2w.nii", "BraTS-GLI-00005-100-t2f.nii"),
        ("T1_normalised.nii.gz", "T1c_normalised.nii.gz", "T2_normalised.nii.gz", "Flair_normalised.nii.gz"),
    ],
)
def test_the_four_sequences_of_a_folder(tmp_path, names):
    write(tmp_path, *(f"p7/{name}" for name in names))
    write(tmp_path, "p7/BraTS20_Training_001_seg.nii.gz", "p7/brainmask.nii.gz", value=50)
    (case,) = find_cases([tmp_path])
    assert (case.path, case.stem, case.missing) == (tmp_path / "p7", "p7", ())
    assert [path.name for path in case.files.values()] == list(names)
    volume = read_case(case.path)
    np.testing.assert_array_equal(volume.values, np.stack([VALUES + index for index in range(4)]))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.source.nifti is not None


def test_many_cases_in_one_folder_are_named_by_their_files(tmp_path):
    for patient in ("p1", "p2"):
        write(tmp_path, *(f"{patient}_{modality}.nii.gz" for modality in BRATS), value=len(patient))
    cases = find_cases([tmp_path])
    assert [case.stem for case in cases] == ["p1", "p2"]
    assert [case.path.name for case in cases] == ["p1_t1.nii.gz", "p2_t1.nii.gz"]
    assert read_case(cases[1].path).values.shape == (4, 4, 5, 6)
    with pytest.raises(InputError, match=r"several cases: the names p1_flair.nii.gz and p2_flair.nii.gz differ in more than the modality"):
        read_case(tmp_path)


def test_two_patients_are_never_taken_for_one(tmp_path):
    """Not even where each lacks what the other has."""
    write(tmp_path, "p1_t1.nii.gz", "p1_t2.nii.gz", "p2_t1ce.nii.gz", "p2_flair.nii.gz")
    assert [(case.stem, case.missing) for case in find_cases([tmp_path])] == [("p1", ("t1ce", "flair")), ("p2", ("t1", "t2"))]
    for source in (tmp_path, zipped({path.name: path.read_bytes() for path in tmp_path.iterdir()})):
        with pytest.raises(InputError, match="holds files of several cases"):
            read_case(source)


def test_a_sequence_that_is_there_twice(tmp_path):
    write(tmp_path, *(f"p_{modality}.nii.gz" for modality in BRATS), "p_t1.nii")
    with pytest.raises(InputError, match=r"has two files for t1: p_t1.nii and p_t1.nii.gz. Remove one"):
        read_case(tmp_path)


def test_one_file_of_a_case_stands_for_all(tmp_path):
    for patient in ("p1", "p2"):
        write(tmp_path, *(f"{patient}_{modality}.nii.gz" for modality in BRATS), value=len(patient))
    (case,) = find_cases([tmp_path / "p2_flair.nii.gz"])
    assert (case.stem, case.missing, case.path.name) == ("p2", (), "p2_t1.nii.gz")
    assert len(read_case(case.path).values) == 4


def test_dicom_folders_of_one_patient(tmp_path):
    for index, modality in enumerate(("T1", "T1ce", "T2", "FLAIR")):
        write_series(tmp_path / "p3" / modality, value=index)
    (case,) = find_cases([tmp_path])
    assert case.stem == "p3"
    np.testing.assert_array_equal(read_case(case.path).values[:, 0, 0, 0], [0, 1, 2, 3])


def test_a_missing_modality_is_named(tmp_path):
    write(tmp_path, "p1/p1_t1.nii.gz", "p1/p1_flair.nii.gz", *(f"p2/p2_{modality}.nii.gz" for modality in BRATS))
    incomplete, complete = find_cases([tmp_path])
    assert incomplete.missing == ("t1ce", "t2")
    assert complete.missing == ()
    with pytest.raises(
        InputError, match=r"p1: t1ce, t2 are missing \(found: t1, flair; looked for t1ce: a file name with the word t1ce or"
    ):
        read_case(incomplete.path)
    (tmp_path / "p2" / "p2_t2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"p2: t2 is missing"):
        read_case(tmp_path / "p2")


def test_modalities_of_different_grids_are_refused(tmp_path):
    write(tmp_path, *(f"p_{modality}.nii.gz" for modality in BRATS))
    moved = AFFINE.copy()
    moved[2, 3] += 4
    (tmp_path / "p_t2.nii.gz").write_bytes(nifti_bytes(VALUES, moved))
    with pytest.raises(InputError, match=r"\(t2\): is not on the grid of t1 \(the same size, but corners up to 4 mm apart"):
        read_case(tmp_path)
    (tmp_path / "p_t2.nii.gz").write_bytes(nifti_bytes(np.stack([VALUES] * 2, axis=-1), AFFINE))
    with pytest.raises(InputError, match=r"\(t2\): has 2 channels, and a file for one modality has one"):
        read_case(tmp_path)
    (tmp_path / "p_t2.nii.gz").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"\(t2\): is not a volume"):
        read_case(tmp_path)


def test_one_volume_with_a_channel_for_each(tmp_path):
    four = np.stack([VALUES + index for index in range(4)], axis=-1)
    path = tmp_path / "BRATS_001.nii.gz"
    path.write_bytes(nifti_bytes(four, AFFINE))
    assert [(case.path, case.stem, dict(case.files)) for case in find_cases([tmp_path])] == [(path, "BRATS_001", {})]
    np.testing.assert_array_equal(read_case(path).values[:, 0, 0, 0], [0, 1, 2, 3])
    in_order = read_case(path.read_bytes(), channels=MSD_BRAIN_TUMOUR, name="upload")
    np.testing.assert_array_equal(in_order.values[:, 0, 0, 0], [1, 2, 3, 0])  # t1, t1ce, t2, flair
    write(tmp_path, "alone.nii.gz")
    with pytest.raises(InputError, match=r"alone.nii.gz: has 1 channel, and 4 were expected \(t1, t1ce, t2, flair\)"):
        read_case(tmp_path / "alone.nii.gz")


def test_an_archive_of_the_files(tmp_path):
    content = zipped({f"p/p_{modality}.nii": nifti_bytes(VALUES + index, AFFINE) for index, modality in enumerate(BRATS)})
    np.testing.assert_array_equal(read_case(content).values[:, 0, 0, 0], [0, 1, 2, 3])
    with pytest.raises(InputError, match=r"upload.zip: t2, flair are missing"):
        read_case(zipped({"t1.nii": nifti_bytes(VALUES, AFFINE), "t1ce.nii": nifti_bytes(VALUES, AFFINE)}), name="upload.zip")
    with pytest.raises(InputError, match="there is no such file"):
        read_case(tmp_path / "missing_t1.zip")


def test_a_model_of_one_sequence_takes_its_files(tmp_path):
    write(tmp_path, "p1/t1.nii.gz", "p1/t2.nii.gz", "p2/t1.nii.gz")
    cases = find_cases([tmp_path], modalities={"t1": ("t1",)})
    assert [(case.stem, case.missing) for case in cases] == [("p1", ()), ("p2", ())]
    assert read_case(cases[0].path, modalities={"t1": ("t1",)}).values.shape == (1, 4, 5, 6)


def test_equal_names_of_different_cases_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        write(tmp_path, *(f"{parent}/p_{modality}.nii.gz" for modality in BRATS))
    cases = find_cases([tmp_path / "a" / "p_t1.nii.gz", *(tmp_path / "b").iterdir()])
    assert len(cases) == 2
    assert len({case.stem for case in cases}) == 2
    shutil.rmtree(tmp_path / "a")
    assert len(find_cases([tmp_path])) == 1
