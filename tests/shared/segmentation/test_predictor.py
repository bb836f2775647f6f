"""From a bundle to a segmentation on the volume's own voxels."""

import gzip
import io
from dataclasses import replace

import nibabel
import numpy as np
import pydicom
import pytest

from shared.errors import InputError, UserError
from shared.imaging.volumes import Volume, read_volume
from shared.segmentation.config import PreprocessingConfig, TaskConfig
from shared.segmentation.prediction import DICOM, NIFTI, Kept
from shared.segmentation.predictor import Options
from tests.shared.imaging.volumes.made import dicom_files, orientations
from tests.shared.segmentation.bright import AFFINE, BRATS_TASK, BrightPredictor, block, bright_predictor, scan, settings

LESION = block((3, 2, 4), (8, 6, 8))


def test_a_bundle_answers_as_the_predictor_that_was_saved(tmp_path):
    first = bright_predictor(threshold=0.4, minimum_ml=0.02, flip_axes=(0,), lesion=False)
    second = BrightPredictor.load(first.save_bundle(tmp_path / "model"), device="cpu", precision="fp32")
    assert second.settings == first.settings
    assert second.about["settings"] == first.about["settings"]
    assert second.card == first.card
    one, two = first.predict(scan(LESION)), second.predict(scan(LESION))
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(one.probability, two.probability)


@pytest.mark.parametrize("task", [TaskConfig(), BRATS_TASK], ids=["exclusive", "overlapping"])
def test_settings_survive_the_bundle_whatever_the_task(task, tmp_path):
    preprocessing = PreprocessingConfig(spacing_mm=(1.0, 2.0, 3.0), crop=True)
    first = bright_predictor(task=task, preprocessing=preprocessing)
    assert BrightPredictor.load(first.save_bundle(tmp_path / "model")).settings == settings(task=task, preprocessing=preprocessing)


def test_a_bundle_whose_settings_are_damaged_is_named(tmp_path):
    folder = bright_predictor().save_bundle(tmp_path / "model")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("level:", "levels:"))
    with pytest.raises(UserError, match=r"config\.yaml: does not describe a model of bright"):
        BrightPredictor.load(folder)
    (folder / "config.yaml").write_text(text.replace("flip_axes:", "flip:"))
    with pytest.raises(UserError, match=r"config\.yaml: does not describe"):
        BrightPredictor.load(folder)


@pytest.mark.parametrize("affine", [affine for _, affine in orientations()][::7])
def test_what_is_bright_is_found_on_the_volumes_own_voxels(affine):
    prediction = bright_predictor().predict(scan(LESION, affine))
    np.testing.assert_array_equal(prediction.labels, LESION)
    np.testing.assert_array_equal(prediction.affine, affine)
    assert prediction.probability.shape == (1, *LESION.shape)
    assert prediction.probability[0][LESION].min() > 0.99
    summary = prediction.summary()
    assert (summary["found"], summary["lesions"]) == (True, 1)
    assert summary["volume_ml"] == pytest.approx(LESION.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000, rel=1e-3)


def test_uncertainty_is_high_where_the_answer_was_a_near_thing():
    values = np.full((12, 12, 12), 0.0, np.float32)
    values[3:6], values[6:9] = 0.5, 1.0
    prediction = bright_predictor(level=0.5, slope=20).predict(Volume(values=values, affine=AFFINE))
    assert prediction.uncertainty[4].min() > 0.99
    assert prediction.uncertainty[[0, 7]].max() < 0.01
    assert 0 <= prediction.uncertainty.min() <= prediction.uncertainty.max() <= 1


def test_where_the_network_has_not_looked_is_surely_background():
    """A network that calls everything, on a volume of which only the middle is seen."""
    inner = block((4, 4, 4), (9, 8, 7))
    predictor = bright_predictor(level=-9, preprocessing=PreprocessingConfig(spacing_mm=None, crop=True, normalisation="range"))
    far = np.diag([20.0, 20.0, 20.0, 1.0])  # so that the margin of 3 mm is less than a voxel
    volume = scan(inner, far)
    prediction = predictor.predict(volume.with_values(volume.values * inner))
    assert prediction.labels[inner].all()
    assert not prediction.labels[0].any()
    assert prediction.uncertainty[0].max() < 1e-3


def test_mirror_images_are_averaged_and_the_answer_of_a_blind_network_stays():
    plain, mirrored = (bright_predictor(slope=4, options=Options(tta=tta)).predict(scan(LESION)) for tta in (False, True))
    np.testing.assert_allclose(mirrored.probability, plain.probability, atol=1e-5)  # sums of eight in 32 bits


def test_threshold_and_smallest_lesion_are_the_bundles_unless_asked_otherwise():
    two = LESION | block((11, 9, 1), (12, 10, 2))
    assert bright_predictor().predict(scan(two)).labels.sum() == LESION.sum() + 1
    assert bright_predictor(minimum_ml=0.02).predict(scan(two)).labels.sum() == LESION.sum()
    assert bright_predictor(minimum_ml=0.02, options=Options(minimum_ml=0.0)).predict(scan(two)).labels.sum() == LESION.sum() + 1
    unsure = {"level": 1.2, "slope": 2.0}  # 0.3 to 0.4 in the lesion
    assert not bright_predictor(**unsure).predict(scan(LESION)).labels.any()
    assert bright_predictor(**unsure, options=Options(threshold=0.2)).predict(scan(LESION)).labels[LESION].all()


def test_the_wrong_number_of_channels_is_refused_by_name():
    volume = replace(scan(LESION), name="b.nii")
    with pytest.raises(InputError, match=r"b\.nii: 2 channels were expected \(flair, t1ce\)"):
        bright_predictor(task=BRATS_TASK).predict(volume)


def test_nested_regions_are_measured_each_and_together_one_lesion(tmp_path):
    volume = Volume(values=np.stack([scan(LESION).values] * 2), affine=AFFINE)
    prediction = bright_predictor(task=BRATS_TASK).predict(volume)
    assert set(np.unique(prediction.labels)) == {0, 4}
    volumes = prediction.volumes_ml
    assert volumes["whole tumour"] == volumes["tumour core"] == volumes["enhancing tumour"] == pytest.approx(LESION.sum() * 0.01)
    assert prediction.summary()["lesions"] == 1


def test_what_is_saved_is_what_was_asked_for(tmp_path):
    for kept, more in ((Kept(uncertainty=False, report=False), set()), (Kept(probability=True), {"probability", "report", "uncertainty"})):
        prediction = bright_predictor(options=Options(kept=kept)).predict(scan(LESION))
        files = prediction.save(tmp_path, "a")
        assert set(files) == {"segmentation", "lesions", "overlay"} | more
        assert (tmp_path / files["segmentation"]).read_bytes() == prediction.encode(NIFTI)
    image = nibabel.load(tmp_path / files["segmentation"])
    np.testing.assert_array_equal(np.asarray(image.dataobj), LESION)
    np.testing.assert_allclose(image.affine, AFFINE)
    probability = nibabel.load(tmp_path / files["probability"])
    assert np.asarray(probability.dataobj).squeeze().shape == LESION.shape
    assert (tmp_path / files["lesions"]).read_text().splitlines()[0].startswith("lesion,volume_ml,")
    assert "<html" in (tmp_path / files["report"]).read_text()
    with pytest.raises(UserError, match=r"is none\. Ask for application/x-nifti"):
        prediction.encode(DICOM)


def test_nothing_found_is_an_answer_too(tmp_path):
    predictor = bright_predictor(level=2)
    prediction = predictor.predict(scan(LESION))
    assert prediction.summary()["found"] is False
    files = prediction.save(tmp_path, "a")
    assert not np.asarray(nibabel.load(tmp_path / files["segmentation"]).dataobj).any()
    assert len((tmp_path / files["lesions"]).read_text().splitlines()) == 1
    assert "No lesion was found" in (tmp_path / files["report"]).read_text()


def test_of_a_dicom_series_there_is_a_segmentation_that_refers_to_it(tmp_path):
    pytest.importorskip("highdicom")
    (tmp_path / "series").mkdir()
    for number, content in enumerate(dicom_files(scan(LESION).values.astype(np.int16), AFFINE)):
        (tmp_path / "series" / f"{number}.dcm").write_bytes(content)
    prediction = bright_predictor().predict(tmp_path / "series")
    files = prediction.save(tmp_path, "a")
    segmentation = pydicom.dcmread(tmp_path / files["dicom"])
    assert segmentation.Modality == "SEG"
    series = pydicom.dcmread(tmp_path / "series" / "0.dcm")
    assert segmentation.StudyInstanceUID == series.StudyInstanceUID
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == series.SeriesInstanceUID
    nifti = read_volume(gzip.decompress((tmp_path / files["segmentation"]).read_bytes()))
    assert nifti.values.sum() == LESION.sum()


def test_a_series_that_cannot_carry_a_dicom_segmentation_still_gets_its_nifti(tmp_path, capsys):
    """Anonymisers drop what DICOM SEG must repeat; a run over many volumes goes on."""
    pytest.importorskip("highdicom")
    (tmp_path / "series").mkdir()
    for number, content in enumerate(dicom_files(scan(LESION).values.astype(np.int16), AFFINE)):
        image = pydicom.dcmread(io.BytesIO(content))
        del image.FrameOfReferenceUID
        image.save_as(tmp_path / "series" / f"{number}.dcm")
    prediction = bright_predictor().predict(tmp_path / "series")
    files = prediction.save(tmp_path, "a")
    assert "dicom" not in files
    assert (tmp_path / files["segmentation"]).exists()
    assert "cannot carry a segmentation" in capsys.readouterr().out
