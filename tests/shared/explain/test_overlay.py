"""Overlays: the person sees the right region in the right colour, on any frame and with any eyes."""

from itertools import combinations

import numpy as np
import pytest

from shared.explain.overlay import AGREEMENT_COLORS, PREDICTION_COLOR, heat, overlay, side_by_side

MUCOSA = {"orange": (206, 110, 70), "red": (150, 50, 40), "pink": (205, 150, 145), "black corner": (10, 8, 8)}

# Machado, Oliveira & Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, severity 1, on linear RGB.
EYES = {
    "typical": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}


@pytest.fixture
def frame():
    return np.full((180, 240, 3), MUCOSA["orange"], np.uint8)


def box(top, bottom, left, right, shape=(180, 240)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_mask_gets_a_contour_and_a_fill_and_the_rest_of_the_frame_stays_as_it_was(frame):
    before = frame.copy()
    drawn = overlay(frame, box(60, 120, 80, 160))
    assert drawn.dtype == np.uint8
    assert drawn.shape == frame.shape
    assert (frame == before).all()
    np.testing.assert_allclose(drawn[90, 120], 0.75 * np.array(MUCOSA["orange"]) + 0.25 * np.array(PREDICTION_COLOR), atol=1)
    assert tuple(drawn[90, 80]) == tuple(drawn[90, 79]) == PREDICTION_COLOR
    far = ~box(54, 126, 74, 166)
    assert (drawn[far] == before[far]).all()


def test_with_the_truth_each_kind_of_pixel_has_its_colour(frame):
    drawn = overlay(frame, box(40, 140, 40, 140), truth=box(40, 140, 90, 200), alpha=1.0)
    for place, kind in [((90, 115), "found"), ((90, 170), "missed"), ((90, 65), "false alarm")]:
        assert tuple(drawn[place]) == AGREEMENT_COLORS[kind]


def test_the_contour_is_as_wide_in_proportion_on_a_large_frame(frame):
    def share(scale):
        image = np.full((180 * scale, 240 * scale, 3), MUCOSA["orange"], np.uint8)
        mask = np.kron(box(60, 120, 80, 160), np.ones((scale, scale), bool))
        return (overlay(image, mask, alpha=0) != image).any(axis=-1).mean()

    # Antialiasing adds about a pixel at either size, which is more of the narrower line.
    assert 0.75 < share(4) / share(2) <= 1.0


def test_a_polyp_that_leaves_the_frame_has_no_line_along_the_frame(frame):
    drawn = overlay(frame, box(60, 120, 0, 160), alpha=0)
    assert (drawn[90, 0] == frame[90, 0]).all()
    assert (drawn[90, 160] != frame[90, 160]).any()


@pytest.mark.parametrize("fill", [False, True], ids=["no polyp", "whole frame"])
def test_empty_and_full_masks_draw_without_a_contour(frame, fill):
    mask = np.full(frame.shape[:2], fill)
    assert (overlay(frame, mask, alpha=0) == frame).all()
    assert (overlay(frame, mask, truth=mask, alpha=0) == frame).all()


@pytest.mark.parametrize("eyes", EYES)
def test_the_colours_stay_apart_with_colour_blindness(eyes):
    """About 2.3 is the least difference that is seen (CIE 1976); 25 is plain at a glance."""
    for first, second in combinations(AGREEMENT_COLORS.values(), 2):
        assert difference(first, second, eyes) > 50
    for color in AGREEMENT_COLORS.values():
        for background in MUCOSA.values():
            assert difference(color, background, eyes) > 25


def test_heat_leaves_zero_bare_and_rises_to_the_colour_map(frame):
    probability = np.zeros((180, 240))
    probability[:, 120:] = 1
    drawn = heat(frame, probability)
    grey = np.array(MUCOSA["orange"]) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(drawn[0, 0], grey, atol=1)
    np.testing.assert_allclose(drawn[0, 200], 0.3 * grey + 0.7 * np.array([253, 231, 37]), atol=1)  # viridis ends there


def test_pictures_of_several_sizes_stand_side_by_side(frame):
    mask = box(0, 45, 0, 60, shape=(90, 120))
    row = side_by_side([frame, mask], gap=10, background=(1, 2, 3))
    assert row.shape == (180, 240 + 10 + 240, 3)
    assert (row[:, 240:250] == (1, 2, 3)).all()
    assert tuple(row[20, 280]) == (255, 255, 255)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: overlay(image.astype(float), box(0, 1, 0, 1)), "image is float64"),
        (lambda image: overlay(image, np.zeros((180, 240))), "mask is float64: expected bool"),
        (lambda image: overlay(image, np.zeros((90, 120), bool)), r"mask is \[90, 120\]: expected the image's \[180, 240\]"),
        (lambda image: overlay(image, box(0, 1, 0, 1), truth=np.zeros((9, 9), bool)), r"truth is \[9, 9\]"),
        (lambda image: overlay(image, box(0, 1, 0, 1), alpha=2), "alpha is 2"),
        (lambda image: heat(image, np.full((180, 240), 1.5)), "1.5 to 1.5: expected finite values from 0 to 1"),
        (lambda image: heat(image, np.full((180, 240), np.nan)), "expected finite"),
        (lambda image: heat(image, np.zeros((180, 240)), colormap="no such"), "unknown colour map 'no such'"),
        (lambda image: side_by_side([]), "no images"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_was_found(frame, call, message):
    with pytest.raises(ValueError, match=message):
        call(frame)


def difference(first, second, eyes):
    return float(np.linalg.norm(lab(first, eyes) - lab(second, eyes)))


def lab(color, eyes):
    """CIE L*a*b* (D65) of an sRGB colour as these eyes see it."""
    srgb = np.array(color) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(EYES[eyes] @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = to_xyz @ seen / np.array([0.9505, 1.0, 1.089])
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
