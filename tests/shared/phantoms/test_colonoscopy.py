"""Colonoscopy phantoms: exact truth, repeatable, neither trivial nor impossible, and written as a data set that others can read."""

import csv
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from shared.errors import UserError
from shared.phantoms.colonoscopy import colonoscopy_frame, colonoscopy_video, write_colonoscopy

SMALL = {"height": 96, "width": 112}


@pytest.fixture(scope="module")
def frames():
    return [colonoscopy_frame(seed, **SMALL) for seed in range(100, 160)]


def dice(prediction, mask):
    return 2 * (prediction & mask).sum() / (prediction.sum() + mask.sum())


def otsu(grey):
    """The grey level that parts 8-bit values into the two most different groups (Otsu, 1979)."""
    count = np.bincount(grey.ravel(), minlength=256).astype(float)
    below, moment = count.cumsum(), (count * np.arange(256)).cumsum()
    between = (moment[-1] * below / below[-1] - moment) ** 2 / np.maximum(below * (below[-1] - below), 1e-9)
    return between.argmax()


def test_the_same_seed_gives_the_same_frame_and_another_seed_another():
    first, again, other = (colonoscopy_frame(seed, **SMALL) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert first.polyps == again.polyps
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize(("height", "width"), [(352, 416), (352, 352), (97, 131), (64, 33), (32, 32)])
def test_a_frame_has_the_size_that_was_asked_for(height, width):
    frame = colonoscopy_frame(3, height=height, width=width, polyps=1)
    assert frame.image.shape == (height, width, 3)
    assert frame.image.dtype == np.uint8
    assert frame.mask.shape == (height, width)
    assert frame.mask.dtype == bool
    assert frame.mask.any()


def test_the_scene_does_not_depend_on_the_resolution():
    small, large = (colonoscopy_frame(11, height=side, width=side, polyps=1) for side in (96, 352))
    (a,), (b,) = small.polyps, large.polyps
    assert a.shape == b.shape
    assert a.area_fraction == pytest.approx(b.area_fraction, rel=0.3)  # a pixel's width along the outline, and the grid it was placed on
    assert np.allclose(np.array(a.centre_px) / 96, np.array(b.centre_px) / 352, atol=0.04)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_there_are_as_many_polyps_as_asked_for_and_the_truth_agrees_with_the_mask(count):
    for seed in range(8):
        frame = colonoscopy_frame(seed, **SMALL, polyps=count)
        assert len(frame.polyps) == count
        assert frame.mask.mean() == pytest.approx(sum(polyp.area_fraction for polyp in frame.polyps))
        for polyp in frame.polyps:
            assert 0.002 < polyp.area_fraction < 0.4
            assert 0 <= polyp.contrast <= 1
        if count == 1:
            assert frame.polyps[0].centre_px == pytest.approx(ndimage.center_of_mass(frame.mask))


def test_left_to_chance_some_frames_are_empty_and_every_shape_occurs(frames):
    counts = [len(frame.polyps) for frame in frames]
    assert 4 <= counts.count(0) <= 20  # 60 frames at 20 %: both ends are beyond two and a half standard deviations
    assert 1 <= counts.count(2) <= 14
    assert {polyp.shape for frame in frames for polyp in frame.polyps} == {"pedunculated", "sessile", "flat", "lobulated"}


def test_nothing_is_marked_where_the_picture_is_black(frames):
    for frame in frames:
        black = ndimage.binary_erosion(frame.image.max(axis=2) == 0, iterations=2)
        assert black[0, 0] or black[:12, :12].any()  # the corner that every scope cuts off
        assert not (frame.mask & black).any()


def test_a_frame_has_the_light_of_an_endoscope(frames):
    for frame in frames:
        seen = frame.image[frame.image.max(axis=2) > 0].astype(float)
        red, green, blue = seen.mean(axis=0)
        assert red > 1.15 * green > 1.15 * blue * 0.95
        assert 60 < red < 245
    glints = [(frame.image.min(axis=2) > 240).mean() for frame in frames]
    assert np.median(glints) > 0.0005
    assert np.median(glints) < 0.1


def test_colour_and_place_alone_do_not_find_the_polyps(frames):
    rows, columns = np.mgrid[-1:1:96j, -1:1:112j]
    centre = rows**2 + columns**2 < 0.25
    scores = {name: [] for name in ("everything", "centre", "bright", "red", "reddish")}
    for frame in frames:
        if not frame.polyps:
            continue
        red, total = frame.image[..., 0], frame.image.sum(axis=2)
        grey = (total / 3).astype(np.uint8)
        hue = (255 * red / (total + 1)).astype(np.uint8)
        guesses = (np.ones_like(frame.mask), centre, grey > otsu(grey), red > otsu(red), hue > otsu(hue))
        for name, guess in zip(scores, guesses, strict=True):
            scores[name].append(dice(guess, frame.mask))
    # On 60 frames of Kvasir-SEG these five reach 0.23 to 0.39.
    assert max(np.mean(values) for values in scores.values()) < 0.4


def test_contrast_is_seen_as_a_difference_in_colour():
    difference = {True: [], False: []}
    for seed in range(80):
        frame = colonoscopy_frame(seed, **SMALL, polyps=1)
        contrast = frame.polyps[0].contrast
        if 0.2 < contrast < 0.6:
            continue
        brightness = frame.image[..., 0].astype(float)
        around = ndimage.binary_dilation(frame.mask, iterations=8) & ~ndimage.binary_dilation(frame.mask, iterations=1)
        around &= np.abs(brightness - np.median(brightness[frame.mask])) < 30  # light alone changes the colour: compare like with like
        if around.sum() < 20:
            continue
        hue = frame.image[..., 1] / np.maximum(brightness, 1)
        difference[contrast > 0.5].append(abs(np.median(hue[frame.mask]) - np.median(hue[around])))
    assert min(len(values) for values in difference.values()) >= 12
    assert np.median(difference[True]) > 1.5 * np.median(difference[False])


def test_a_video_follows_the_same_polyp_while_the_scope_draws_back():
    frames = list(colonoscopy_video(7, frames=6, **SMALL))
    assert len(frames) == 6
    assert np.array_equal(frames[0].image, colonoscopy_frame(7, **SMALL, polyps=1).image)
    for before, after in itertools.pairwise(frames):
        assert dice(before.mask, after.mask) > 0.7  # a few pixels' drift between frames
        assert not np.array_equal(before.image, after.image)


def test_written_frames_can_be_read_back_as_a_data_set(tmp_path):
    write_colonoscopy(tmp_path / "phantoms", count=6, seed=3, height=64, width=80, empty_fraction=0.5)
    with open(tmp_path / "phantoms" / "truth.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"phantom_{number:04d}" for number in range(6)]
    assert [row["polyps"] for row in rows].count("0") == 3
    assert len(list((tmp_path / "phantoms").rglob("*.*"))) == 13  # nothing else, no temporary file
    for row in rows:
        image = Image.open(tmp_path / "phantoms" / "images" / f"{row['name']}.jpg")
        mask = np.asarray(Image.open(tmp_path / "phantoms" / "masks" / f"{row['name']}.png"))
        assert image.size == (80, 64)
        assert mask.shape == (64, 80)
        assert set(np.unique(mask)) <= {0, 255}
        areas = [float(area) for area in row["area_fraction"].split(";") if area]
        assert len(areas) == int(row["polyps"]) == len(row["shapes"].split(";")) * bool(row["shapes"])
        assert (mask > 0).mean() == pytest.approx(sum(areas), abs=2e-5)


def test_writing_again_with_the_same_seed_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write_colonoscopy(tmp_path / folder, count=2, seed=9, height=48, width=48)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"height": 8}, "8 x 416"), ({"width": 0}, "352 x 0"), ({"polyps": 3}, "found 3"), ({"polyps": -1}, "found -1")],
)
def test_impossible_frames_are_refused_with_a_reason(arguments, named):
    with pytest.raises(UserError, match=named):
        colonoscopy_frame(0, **arguments)


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 2, "empty_fraction": 1.5}])
def test_impossible_data_sets_are_refused_before_anything_is_written(tmp_path, arguments):
    with pytest.raises(UserError, match="found"):
        write_colonoscopy(tmp_path / "none", **arguments)
    assert not (tmp_path / "none").exists()


def test_a_negative_seed_is_refused():
    with pytest.raises(UserError, match="seed -1"):
        colonoscopy_frame(-1)
