"""Labelled frames: paired by name, divided by patient, augmented the same way for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps.pranet.config import DataConfig, PhantomConfig
from apps.pranet.data import TrainingFrames, ValidationFrames, divide, labelled_frames, make_phantoms, read_pair, rescale
from shared.errors import InputError, UserError
from shared.imaging import Pair


def write(path: Path, height: int = 20, width: int = 30, value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width), value, np.uint8)).save(path)
    return path


def pairs_named(*stems: str) -> list[Pair]:
    return [Pair(stem=stem, image=Path(f"{stem}.png"), mask=Path(f"{stem}.png")) for stem in stems]


def test_an_image_and_its_mask_share_the_stem_whatever_their_suffix(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "images/b.png", "masks/b.tif", "masks/a.png"):
        write(tmp_path / name)
    pairs = labelled_frames(tmp_path)
    assert [(pair.stem, pair.image.name, pair.mask.name) for pair in pairs] == [("a", "a.jpg", "a.png"), ("b", "b.png", "b.tif")]


def test_the_published_layout_is_found_one_folder_down(tmp_path: Path) -> None:
    write(tmp_path / "TrainDataset/images/a.png")
    write(tmp_path / "TrainDataset/masks/a.png")
    assert [pair.stem for pair in labelled_frames(tmp_path)] == ["a"]


def test_a_frame_without_a_partner_is_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("images/a.png", "masks/a.png", "images/lonely.png"):
        write(tmp_path / name)
    assert [pair.stem for pair in labelled_frames(tmp_path)] == ["a"]
    assert "lonely.png" in capsys.readouterr().out


def test_a_mask_of_another_size_than_its_image_is_named_with_both_sizes(tmp_path: Path) -> None:
    image, mask = write(tmp_path / "images/a.png", 20, 30), write(tmp_path / "masks/a.png", 20, 31)
    with pytest.raises(InputError) as caught:
        read_pair(Pair(stem="a", image=image, mask=mask))
    for part in (str(mask), str(image), "31 x 20", "30 x 20"):
        assert part in str(caught.value)


def test_the_frames_of_one_patient_stay_on_one_side() -> None:
    pairs = pairs_named(*(f"patient{patient}_{frame}" for patient in range(12) for frame in range(5)))
    parts = divide(pairs, DataConfig(validation=0.3, group_pattern=r"^(patient\d+)_"), seed=3)
    patients = [{pair.stem.split("_")[0] for pair in part} for part in parts]
    assert not patients[0] & patients[1]
    assert len(parts[0]) + len(parts[1]) == 60
    assert min(len(part) for part in parts) >= 5


def test_the_same_seed_divides_the_same_way_and_another_does_not() -> None:
    pairs = pairs_named(*(f"frame{number}" for number in range(40)))
    config = DataConfig(validation=0.3)
    assert divide(pairs, config, seed=0) == divide(pairs, config, seed=0)
    assert divide(pairs, config, seed=0) != divide(pairs, config, seed=1)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (DataConfig(group_pattern="(unclosed"), "not a regular expression"),
        (DataConfig(group_pattern=r"(\d+)_"), "finds no group .* in 'frame'"),
        (DataConfig(group_pattern="frame"), "finds no group"),
        (DataConfig(validation=0.0), "data.validation is 0.0"),
        (DataConfig(validation=1.0), "data.validation is 1.0"),
    ],
)
def test_a_division_that_cannot_be_made_says_why(config: DataConfig, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        divide(pairs_named("frame", "frame2"), config, seed=0)


def test_augmentation_depends_on_the_seed_alone(frames: Path) -> None:
    samples = TrainingFrames(labelled_frames(frames), size=64, augment=True)
    first, other, again = samples[0, 7], samples[0, 8], samples[0, 7]
    assert all(torch.equal(first[name], again[name]) for name in ("image", "mask"))
    assert not torch.equal(first["image"], other["image"])


def test_the_mask_moves_with_its_image(tmp_path: Path) -> None:
    """A white square on black, and itself as the mask: whatever augmentation does, they still cover each other."""
    square = np.zeros((64, 64), np.uint8)
    square[8:30, 20:60] = 255
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(square).save(tmp_path / folder / "a.png")
    samples = TrainingFrames(labelled_frames(tmp_path), size=64, augment=True)
    for seed in range(20):
        sample = samples[0, seed]
        image, mask = sample["image"][1] > 0, sample["mask"][0] > 0.5
        overlap = float((image & mask).sum() / (image | mask).sum())
        assert overlap > 0.85, f"seed {seed}: {overlap}"  # blur and interpolation move the edge by up to a pixel


def test_validation_frames_have_nothing_random_and_hard_masks(frames: Path) -> None:
    samples = ValidationFrames(labelled_frames(frames), size=64)
    assert torch.equal(samples[1]["image"], samples[1]["image"])
    assert set(torch.stack([samples[index]["mask"] for index in range(len(samples))]).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("scale", "side"), [(0.75, 256), (1.0, 352), (1.25, 448)])
def test_a_batch_is_rescaled_to_the_sizes_of_the_paper(scale: float, side: int) -> None:
    batch = rescale({"image": torch.zeros(1, 3, 352, 352), "mask": torch.zeros(1, 1, 352, 352)}, scale)
    assert batch["image"].shape == (1, 3, side, side)
    assert batch["mask"].shape == (1, 1, side, side)


def test_no_scale_goes_below_what_the_network_can_take() -> None:
    assert rescale({"image": torch.zeros(1, 3, 96, 96)}, 0.1)["image"].shape[-1] == 64


def test_phantoms_of_the_same_seed_are_the_same_and_nothing_is_overwritten(tmp_path: Path) -> None:
    config = PhantomConfig(output=tmp_path / "one", count=2, seed=4, height=48, width=56)
    make_phantoms(config)
    make_phantoms(PhantomConfig(output=tmp_path / "two", count=2, seed=4, height=48, width=56))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len([file for file in files if file.parts[0] in ("images", "masks")]) == 4
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    with pytest.raises(UserError, match="is not empty"):
        make_phantoms(config)
