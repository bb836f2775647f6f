"""Windows for training: decided by index and seed, inside the volume, around what is labelled; volumes are prepared once."""

import json

import numpy as np
import pytest
import torch

from shared.errors import UserError
from shared.segmentation.cases import labelled_volumes
from shared.segmentation.config import PreprocessingConfig, SamplingConfig, TaskConfig
from shared.segmentation.labels import Labels
from shared.segmentation.preparation import NativePreparation
from shared.segmentation.samples import PreparedVolume, TrainingWindows, WholeVolumes, prepare_volumes
from tests.shared.segmentation.bright import block, write_case, write_volume

LABELS = Labels(TaskConfig())
PREPARE = NativePreparation(PreprocessingConfig(spacing_mm=None, crop=False, normalisation="all"))
PLAIN = SamplingConfig(patches=3, foreground=0.5, augment=False, flip_axes=())


def prepared(folder, labels, *, image=None):
    """As ``prepare_volumes`` leaves one; the image tells where each voxel was."""
    folder.mkdir(parents=True)
    image = np.arange(1, labels.size + 1, dtype=np.float32).reshape(1, *labels.shape) if image is None else image
    np.save(folder / "image.npy", image)
    np.save(folder / "labels.npy", labels.astype(np.uint8))
    voxels = np.argwhere(labels).astype(np.int32)
    np.save(folder / "places.npy", np.pad(voxels, [(0, 0), (1, 0)]))
    (folder / "about.json").write_text(json.dumps({"name": folder.name, "spacing_mm": [1, 1, 1]}))
    return PreparedVolume(name=folder.name, folder=folder)


@pytest.mark.parametrize("config", [PLAIN, SamplingConfig(patches=3)], ids=["plain", "augmented"])
def test_index_and_seed_decide_everything(config, tmp_path):
    volumes = [prepared(tmp_path / name, block((2, 2, 2), (6, 5, 5))) for name in "ab"]
    windows, again = (TrainingWindows(volumes, size=(8, 8, 6), config=config) for _ in range(2))
    assert len(windows) == 6
    one, two, other = windows[4, 17], again[4, 17], windows[4, 18]
    assert one["image"].shape == (1, 8, 8, 6)
    assert (one["labels"].dtype, one["labels"].shape) == (torch.uint8, (1, 8, 8, 6))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["image"], other["image"])


def test_a_window_lies_inside_the_volume_and_its_labels_with_it(tmp_path):
    truth = block((9, 0, 3), (14, 4, 10))  # in a corner: windows around it would stick out
    volume = prepared(tmp_path / "a", truth)
    windows = TrainingWindows([volume], size=(6, 5, 4), config=SamplingConfig(patches=1, foreground=1, augment=False, flip_axes=()))
    for seed in range(60):
        window = windows[0, seed]
        image, labels = window["image"][0].numpy(), window["labels"][0].numpy()
        assert image.min() >= 1, "a window that sticks out is padded with 0"
        corner = np.unravel_index(int(image.flat[0]) - 1, truth.shape)
        box = tuple(slice(start, start + size) for start, size in zip(corner, (6, 5, 4), strict=True))
        np.testing.assert_array_equal(image, volume.image[0][box])
        np.testing.assert_array_equal(labels, truth[box])
        assert labels.any(), "every window was to be laid around a labelled voxel"


def test_a_volume_smaller_than_a_window_is_padded_on_both_sides(tmp_path):
    truth = block((1, 1, 1), (3, 3, 3), (4, 4, 4))
    window = TrainingWindows([prepared(tmp_path / "a", truth)], size=(8, 6, 4), config=PLAIN)[0, 0]
    np.testing.assert_array_equal(window["labels"][0, 2:6, 1:5], truth)
    assert window["labels"].sum() == truth.sum()
    assert (window["image"] > 0).sum() == truth.size


def test_a_volume_without_anything_labelled_gives_windows_too(tmp_path):
    volume = prepared(tmp_path / "a", np.zeros((9, 9, 9)))
    window = TrainingWindows([volume], size=(8, 8, 8), config=SamplingConfig(foreground=1))[0, 3]
    assert not window["labels"].any()


def test_image_and_labels_are_changed_alike(tmp_path):
    """A volume that is its own label map: what is bright stays what is labelled, up to the interpolation at the border."""
    truth = block((4, 3, 5), (11, 9, 12), (16, 16, 16))
    volume = prepared(tmp_path / "a", truth, image=10 * truth[None].astype(np.float32))
    config = SamplingConfig(patches=1, foreground=1)
    for seed in range(12):
        window = TrainingWindows([volume], size=(16, 16, 16), config=config)[0, seed]
        bright = window["image"][0] > window["image"].max() / 2
        labelled = window["labels"][0] > 0
        assert set(window["labels"].unique().tolist()) <= {0, 1}
        assert 2 * (bright & labelled).sum() / (bright.sum() + labelled.sum()) > 0.85


def test_volumes_are_prepared_once_and_unusable_ones_are_said(tmp_path, capsys):
    truth = block((2, 2, 2), (6, 6, 6))
    for name in "ab":
        write_case(tmp_path / "data", name, truth)
    write_volume(tmp_path / "data" / "b" / "b_t1ce.nii.gz", np.full(truth.shape, 5, np.float32))
    volumes = labelled_volumes(tmp_path / "data", LABELS.task)
    (ready,) = prepare_volumes(volumes, PREPARE, LABELS, folder=tmp_path / "kept", workers=1)
    assert ready.name == "a"
    assert "left out: " in (said := capsys.readouterr().out)
    assert "every voxel is 5" in said
    sample = WholeVolumes([ready])[0]
    np.testing.assert_array_equal(sample["labels"][0].numpy(), truth)
    assert sample["image"].mean().item() == pytest.approx(0, abs=1e-4)
    assert ready.spacing_mm == (2.0, 2.0, 2.5)
    assert len(ready.places[0]) == truth.sum()

    made = (ready.folder / "image.npy").stat().st_mtime_ns
    prepare_volumes(volumes, PREPARE, LABELS, folder=tmp_path / "kept")
    assert (ready.folder / "image.npy").stat().st_mtime_ns == made
    with pytest.raises(UserError, match=r"none of 1 labelled volumes could be used; the first: .*every voxel is 5"):
        prepare_volumes(volumes[1:], PREPARE, LABELS, folder=tmp_path / "none")
