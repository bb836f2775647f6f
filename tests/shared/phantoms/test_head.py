"""Head phantoms: known tumours in a head that looks like an MR scan, repeatable, right in any orientation, and written as BraTS is."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from shared.errors import UserError
from shared.phantoms.head import head_case, head_follow_up, write_head_follow_ups, write_heads
from shared.phantoms.head_settings import HeadSettings

CODES = {"necrosis": 1, "enhancing": 4, "oedema": 2, "meningioma": 1}
SMALL = HeadSettings(spacing_mm=(3.0, 3.0, 3.0), lesions=1)
STRIPPED = replace(SMALL, skull_stripped=True)


@pytest.fixture(scope="module")
def gliomas():
    return [head_case(seed, replace(STRIPPED, bias=0, volume_ml=(8, 30))) for seed in range(4)]


@pytest.fixture(scope="module")
def meningiomas():
    return [head_case(seed, replace(STRIPPED, kind="meningioma", bias=0, volume_ml=(8, 30))) for seed in range(4)]


def labelled_ml(case, part):
    return (case.labels == CODES[part]).sum() * abs(np.linalg.det(case.affine[:3, :3])) / 1000


def median(case, sequence, where):
    return np.median(case.volumes[sequence][where])


def healthy(case):
    """White matter and fluid far from any lesion, told apart by T1 alone."""
    t1 = case.volumes["t1"]
    away = ndimage.binary_erosion(t1 > 0, iterations=2) & ~ndimage.binary_dilation(case.labels > 0, iterations=8)
    low, high = np.percentile(t1[away], [2, 80])
    return away & (t1 > high), away & (t1 < low)


def at_world(case, points, order):
    """T1 and labels of a case at places in mm [N, 3]."""
    voxels = np.linalg.solve(case.affine, np.c_[points, np.ones(len(points))].T)[:3]
    t1 = ndimage.map_coordinates(case.volumes["t1"], voxels, order=order, cval=-1)
    return t1, ndimage.map_coordinates(case.labels, voxels, order=0, cval=255)


def test_the_same_seed_gives_the_same_case_and_another_seed_another():
    first, again, other = (head_case(seed, replace(SMALL, spacing_mm=(4.0, 4.0, 4.0))) for seed in (5, 5, 6))
    for sequence, volume in first.volumes.items():
        assert np.array_equal(volume, again.volumes[sequence])
    assert np.array_equal(first.labels, again.labels)
    assert np.array_equal(first.affine, again.affine)
    assert first.lesions == again.lesions
    assert first.lesions != other.lesions


def test_asking_for_fewer_sequences_changes_none_of_them(meningiomas):
    only = head_case(2, replace(meningiomas[2].settings, sequences=("t2",)))
    assert list(only.volumes) == ["t2"]
    assert np.array_equal(only.volumes["t2"], meningiomas[2].volumes["t2"])


def test_a_case_has_the_grid_that_was_asked_for():
    settings = HeadSettings(shape=(64, 60, 56), spacing_mm=(3.0, 3.0, 4.0), orientation="LPI")
    case = head_case(3, settings)
    assert list(case.volumes) == ["t1", "t1ce", "t2", "flair"]
    for volume in case.volumes.values():
        assert volume.shape == (64, 60, 56)
        assert volume.dtype == np.float32
        assert np.array_equal(volume, np.rint(volume))
        assert volume.min() >= 0
    assert case.labels.shape == (64, 60, 56)
    assert case.labels.dtype == np.uint8
    assert np.allclose(np.linalg.norm(case.affine[:3, :3], axis=0), (3, 3, 4))
    assert nibabel.aff2axcodes(case.affine) == ("L", "P", "I")


@pytest.mark.parametrize("kind", ["glioma", "meningioma"])
def test_the_label_map_has_the_volumes_of_the_truth(kind):
    for seed in (1, 2):
        case = head_case(seed, replace(STRIPPED, kind=kind, spacing_mm=(2.0, 2.0, 2.0)))
        (lesion,) = case.lesions
        for part, volume in lesion.volumes_ml.items():
            if kind == "meningioma" and part == "oedema":
                continue
            # Counting voxels errs by about the root of how many the border passes: under 4 % at 0.7 ml, less for more.
            assert labelled_ml(case, part) == pytest.approx(volume, rel=0.02, abs=0.06)


def test_volumes_centroid_and_diameter_hold_at_a_coarse_voxel(gliomas, meningiomas):
    for case in gliomas + meningiomas:
        (lesion,) = case.lesions
        places = np.argwhere(case.labels) @ case.affine[:3, :3].T + case.affine[:3, 3]
        assert np.allclose(places.mean(axis=0), lesion.centroid_mm, atol=1.0)  # a third of a voxel
        tumour = [part for part in lesion.volumes_ml if part != "oedema"]
        assert sum(labelled_ml(case, part) for part in tumour) == pytest.approx(sum(lesion.volumes_ml[part] for part in tumour), rel=0.05)
        seen = pdist(places[ConvexHull(places).vertices]).max()
        # Voxel centres lie up to half a voxel within the border at either end, and a tail or a finger of oedema may end between them.
        assert seen - 3 < lesion.largest_diameter_mm < seen + 12
        assert lesion.tumour_diameter_mm <= lesion.largest_diameter_mm + 1e-6
        wanted = case.settings.volume_ml
        assert 0.97 * wanted[0] < sum(lesion.volumes_ml[part] for part in tumour) < 1.03 * wanted[1]  # planned on the lattice's nodes


def test_a_glioma_has_necrosis_in_a_rim_in_oedema(gliomas):
    for case in gliomas:
        assert set(np.unique(case.labels)) == {0, 1, 2, 4}
        core = np.isin(case.labels, (1, 4))
        for whole in (core, case.labels > 0):
            assert ndimage.label(whole, np.ones((3, 3, 3)))[1] == 1
        beside = ndimage.binary_dilation(case.labels == 1) & (case.labels != 1)
        assert (case.labels[beside] == 4).mean() > 0.6  # a rim of 1.4 mm at its thinnest falls between voxels of 3 mm here and there
        inward = ndimage.distance_transform_edt(core)
        assert inward[case.labels == 1].mean() > inward[case.labels == 4].mean()


def test_oedema_prefers_white_matter(gliomas):
    shares = []
    for case in gliomas:
        # Seen in the same head without its lesion and without mass effect around it.
        plain = head_case(case.seed, replace(case.settings, lesions=0, mass_effect=0, shape=(40, 40, 40)))
        places = np.argwhere(case.labels == 2) @ case.affine[:3, :3].T + case.affine[:3, 3]
        t1, _ = at_world(plain, places, 1)
        shell = ndimage.binary_dilation(case.labels > 0, iterations=2) & (case.labels == 0) & (case.volumes["t1"] > 0)
        around, _ = at_world(plain, np.argwhere(shell) @ case.affine[:3, :3].T + case.affine[:3, 3], 1)
        shares.append(np.median(t1[t1 >= 0]) / np.median(around[around >= 0]))
    assert np.median(shares) > 1.08  # white matter is 1.35 times as bright as grey, and the shell has both


def test_a_meningioma_sits_on_the_dura_and_a_glioma_does_not(gliomas, meningiomas):
    for case in meningiomas:
        assert set(np.unique(case.labels)) == {0, 1}
        head = ndimage.binary_closing(case.volumes["t2"] > 0, iterations=2)
        assert ndimage.distance_transform_edt(head)[case.labels > 0].min() <= 1.5  # voxels from the edge of what is within the skull
    for case in gliomas:
        head = ndimage.binary_closing(case.volumes["t2"] > 0, iterations=2)
        assert np.median(ndimage.distance_transform_edt(head)[np.isin(case.labels, (1, 4))]) > 3


def test_every_lesion_is_inside_the_head():
    for kind, seed in itertools.product(("glioma", "meningioma"), range(2)):
        case = head_case(seed, replace(SMALL, kind=kind, spacing_mm=(4.0, 4.0, 4.0), sequences=("t1",), lesions=2, noise=0))
        head = ndimage.binary_fill_holes(ndimage.binary_closing(case.volumes["t1"] > 0, iterations=2))
        assert not case.labels[~head].any()
        assert not any(case.labels.take(face, axis=axis).any() for axis in range(3) for face in (0, -1))


def test_healthy_tissues_have_the_contrast_of_their_sequence(gliomas):
    for case in gliomas:
        white, fluid = healthy(case)
        ratio = {sequence: median(case, sequence, fluid) / median(case, sequence, white) for sequence in case.volumes}
        # At 3 mm much of the fluid shares its voxel with the cortex, hence not further apart.
        assert ratio["t1"] < 0.75
        assert ratio["flair"] < 0.9
        assert ratio["t2"] > 1.3


def test_each_part_of_a_glioma_is_bright_or_dark_where_it_should_be(gliomas):
    for case in gliomas:
        white = healthy(case)[0]
        bright = {
            part: {sequence: median(case, sequence, case.labels == code) / median(case, sequence, white) for sequence in case.volumes}
            for part, code in (("necrosis", 1), ("oedema", 2), ("enhancing", 4))
        }
        assert bright["enhancing"]["t1ce"] > 1.05  # a thin rim shares its voxels with what lies on either side
        assert bright["enhancing"]["t1"] < 0.9
        assert bright["enhancing"]["t1ce"] > bright["necrosis"]["t1ce"] + 0.3
        assert bright["enhancing"]["t1ce"] > bright["oedema"]["t1ce"] + 0.3
        for part in bright:
            assert bright[part]["t1"] < 0.9
            assert bright[part]["t2"] > 1.3
        assert bright["oedema"]["flair"] > 1.3
        assert bright["oedema"]["flair"] > bright["necrosis"]["flair"]
        assert bright["necrosis"]["t1"] < bright["oedema"]["t1"]
        for part in ("necrosis", "oedema"):  # no gadolinium: at most what spills over from the rim
            assert bright[part]["t1ce"] < bright[part]["t1"] + 0.25


def test_a_meningioma_takes_up_gadolinium_evenly_and_is_like_grey_matter_without(meningiomas):
    for case in meningiomas:
        white = healthy(case)[0]
        inner = ndimage.binary_erosion(case.labels == 1)
        bright = {sequence: median(case, sequence, inner) / median(case, sequence, white) for sequence in case.volumes}
        assert bright["t1ce"] > 1.2
        assert 0.6 < bright["t1"] < 0.9
        assert 1.1 < bright["t2"] < 1.9
        assert bright["flair"] > 1.1
        values = case.volumes["t1ce"][inner]
        assert values.std() / values.mean() < 0.15


def test_a_threshold_alone_does_not_find_the_tumour():
    scores = []
    for seed in range(3):
        case = head_case(seed, replace(SMALL, kind="meningioma", sequences=("t1ce",), spacing_mm=(4.0, 4.0, 4.0)))
        volume = case.volumes["t1ce"]
        tries = [volume > np.percentile(volume, level) for level in (90, 95, 97, 98, 99, 99.5)]
        scores.append(max(2 * (guess & (case.labels > 0)).sum() / (guess.sum() + (case.labels > 0).sum()) for guess in tries))
    assert np.mean(scores) < 0.6


@pytest.mark.parametrize("kind", ["glioma", "meningioma"])
def test_a_place_holds_the_same_whatever_the_grid(kind):
    settings = replace(SMALL, kind=kind, bias=0, noise=0, sequences=("t1",), volume_ml=(10, 15))
    first = head_case(8, replace(settings, orientation="RAS", oblique_deg=0))
    rng = np.random.default_rng(0)
    for other in (
        replace(settings, orientation="PSL", oblique_deg=15),
        replace(settings, orientation="IRP", spacing_mm=(3.0, 3.0, 6.0)),
        replace(settings, shape=(36, 36, 36)),
    ):
        second = head_case(8, other)
        assert second.lesions == first.lesions
        voxels = rng.uniform(2, np.array(second.labels.shape) - 3, (20000, 3))
        places = np.concatenate([voxels, np.argwhere(second.labels)]) @ second.affine[:3, :3].T + second.affine[:3, 3]
        (a, a_label), (b, b_label) = at_world(first, places, 1), at_world(second, places, 1)
        seen = a >= 0
        scale = np.percentile(a, 99) / np.percentile(b, 99)
        assert np.corrcoef(a[seen], b[seen])[0, 1] > 0.93  # each grid blurs edges in its own way
        assert np.percentile(np.abs(a - scale * b)[seen], 50) < 0.06 * np.percentile(a, 99)
        overlap = 2 * ((a_label > 0) & (b_label == a_label))[seen].sum() / ((a_label > 0)[seen].sum() + (b_label > 0)[seen].sum())
        assert overlap > 0.7  # at voxels of 3 and 6 mm; a mirrored or shifted grid has less than 0.1


def test_a_small_field_of_view_is_laid_over_the_lesions():
    whole, part = (head_case(4, replace(SMALL, shape=shape)) for shape in (None, (28, 28, 28)))
    assert part.labels.shape == (28, 28, 28)
    assert part.lesions == whole.lesions
    for name, volume in part.lesions[0].volumes_ml.items():
        assert labelled_ml(part, name) == pytest.approx(volume, rel=0.15)
    with pytest.raises(UserError, match="24 x 24 x 24 mm"):
        head_case(4, replace(SMALL, shape=(8, 8, 8), volume_ml=(30, 40)))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_there_are_as_many_lesions_as_asked_for_and_they_keep_apart(count):
    case = head_case(2, replace(SMALL, lesions=count, volume_ml=(2, 6), sequences=("flair",)))
    assert len(case.lesions) == count
    for part in ("necrosis", "enhancing", "oedema"):
        assert labelled_ml(case, part) == pytest.approx(sum(lesion.volumes_ml[part] for lesion in case.lesions), rel=0.1)
    assert ndimage.label(np.isin(case.labels, (1, 4)), np.ones((3, 3, 3)))[1] == count


def test_noise_is_rician_and_shading_smooth():
    quiet = head_case(7, replace(SMALL, noise=0, bias=0, sequences=("t1",)))
    noisy = head_case(7, replace(SMALL, noise=0.1, bias=0, sequences=("t1",)))
    shaded = head_case(7, replace(SMALL, noise=0, bias=0.3, sequences=("t1",)))
    air = ndimage.binary_erosion(quiet.volumes["t1"] == 0, iterations=2)
    values = noisy.volumes["t1"][air]
    # A Rayleigh distribution: mean over standard deviation 1.913; 2000 voxels and more give it to a few percent.
    assert values.mean() / values.std() == pytest.approx(1.913, rel=0.05)
    bright = quiet.volumes["t1"] > 200
    field = shaded.volumes["t1"][bright] / quiet.volumes["t1"][bright]
    field /= np.median(field)
    assert field.std() > 0.01
    assert 0.4 < field.min() < field.max() < 1.9  # within 30 % of the middle, whose own level is not known


def test_the_scan_has_zeros_outside_the_brain_when_the_skull_is_taken_off():
    whole, stripped = (head_case(9, replace(SMALL, skull_stripped=stripped, sequences=("t1",))) for stripped in (False, True))
    assert (stripped.volumes["t1"] == 0).mean() > 0.4
    assert (whole.volumes["t1"] == 0).mean() < 0.1
    litres = (stripped.volumes["t1"] > 0).sum() * 27 / 1e6
    assert 1.4 < litres < 2.8  # the template's own intracranial volume is 2.0


@pytest.mark.parametrize(("kind", "growth"), [("glioma", 2.0), ("meningioma", 0.5)])
def test_a_follow_up_shows_the_same_patient_with_a_known_growth(kind, growth):
    settings = replace(STRIPPED, kind=kind, orientation="RAS", oblique_deg=0, volume_ml=(5, 12), sequences=("t1",), bias=0)
    before, after = head_follow_up(3, settings, growth=growth)
    alone = head_case(3, settings)
    assert np.array_equal(before.labels, alone.labels)
    assert np.array_equal(before.volumes["t1"], alone.volumes["t1"])
    for part, volume in before.lesions[0].volumes_ml.items():
        # Volumes are planned on nodes of up to 2 mm and then measured more finely.
        assert after.lesions[0].volumes_ml[part] == pytest.approx(growth * volume, rel=0.05, abs=0.05)
    smaller, larger = (before, after) if growth > 1 else (after, before)
    tumour = np.isin(smaller.labels, (1, 4))
    places = np.argwhere(tumour) @ smaller.affine[:3, :3].T + smaller.affine[:3, 3]
    # It grows about the place where it was; the two grids differ by up to half a voxel.
    grown = replace(larger, labels=ndimage.binary_dilation(np.isin(larger.labels, (1, 4))).astype(np.uint8))
    assert at_world(grown, places, 0)[1].mean() > 0.97
    assert not np.array_equal(before.affine, after.affine)


def test_written_cases_can_be_read_back_as_a_data_set(tmp_path):
    settings = replace(SMALL, shape=(40, 44, 40), spacing_mm=(4.0, 4.0, 4.0), lesions=None)
    write_heads(tmp_path / "heads", count=4, seed=3, settings=settings, empty_fraction=0.5)
    truth = json.loads((tmp_path / "heads" / "truth.json").read_text())
    assert truth["settings"]["kind"] == "glioma"
    assert [row["name"] for row in truth["cases"]] == [f"case_{number:04d}" for number in range(4)]
    assert sum(not row["lesions"] for row in truth["cases"]) == 2
    assert len(list((tmp_path / "heads").rglob("*.*"))) == 4 * 5 + 1  # nothing else, no temporary file
    for row in truth["cases"][:2]:
        images = {
            key: nibabel.load(tmp_path / "heads" / row["name"] / f"{row['name']}_{key}.nii.gz")
            for key in ("t1", "t1ce", "t2", "flair", "seg")
        }
        case = head_case(row["seed"], replace(settings, lesions=len(row["lesions"])))
        for sequence, volume in case.volumes.items():
            assert images[sequence].get_data_dtype() == np.int16
            assert np.array_equal(np.asarray(images[sequence].dataobj), volume)
        seg = np.asarray(images["seg"].dataobj)
        assert seg.dtype == np.uint8
        assert np.array_equal(seg, case.labels)
        for image in images.values():
            assert np.allclose(image.affine, case.affine, atol=1e-4)  # a NIfTI affine has single precision
            assert image.header.get_xyzt_units()[0] == "mm"
        for lesion in row["lesions"]:
            assert set(lesion["volumes_ml"]) == {"necrosis", "enhancing", "oedema"}
            assert lesion["kind"] == "glioma"


def test_writing_again_with_the_same_seed_gives_the_same_bytes(tmp_path):
    settings = replace(SMALL, spacing_mm=(4.0, 4.0, 4.0), sequences=("t1ce",), kind="meningioma")
    for folder in ("a", "b"):
        write_heads(tmp_path / folder, count=2, seed=9, settings=settings)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_written_follow_ups_name_the_patient_and_the_growth(tmp_path):
    settings = replace(SMALL, spacing_mm=(4.0, 4.0, 4.0), sequences=("t1ce",))
    write_head_follow_ups(tmp_path / "pairs", count=2, seed=1, settings=settings, growth=(1.5, 2.5))
    rows = json.loads((tmp_path / "pairs" / "truth.json").read_text())["cases"]
    assert [row["name"] for row in rows] == ["case_0000_0", "case_0000_1", "case_0001_0", "case_0001_1"]
    assert [row["patient"] for row in rows] == ["case_0000", "case_0000", "case_0001", "case_0001"]
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        assert 1.5 <= after["growth"] <= 2.5
        ratio = sum(after["lesions"][0]["volumes_ml"].values()) / sum(before["lesions"][0]["volumes_ml"].values())
        assert ratio == pytest.approx(after["growth"], rel=0.05)
        assert (tmp_path / "pairs" / after["name"] / f"{after['name']}_seg.nii.gz").is_file()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lesions": 5}, "lesions must be 0 to 4; found 5"),
        ({"volume_ml": (10, 5)}, "found .10, 5."),
        ({"sequences": ("t1", "pd")}, "some of t1, t1ce, t2, flair"),
        ({"sequences": ()}, "sequences"),
        ({"sequences": ("t1", "t1")}, "sequences"),
        ({"shape": (64, 64)}, "three sizes"),
        ({"shape": (64, 64, 4)}, "at least 8"),
        ({"spacing_mm": (1, 1, 0.1)}, "0.5 to 10 mm"),
        ({"orientation": "RAL"}, "such as RAS; found RAL"),
        ({"orientation": "ras"}, "such as RAS"),
        ({"oblique_deg": 60}, "30 degrees"),
        ({"bias": 1.0}, "below 1"),
        ({"noise": -0.1}, "noise"),
        ({"deformation_mm": 9}, "6 mm"),
        ({"mass_effect": 2}, "mass_effect"),
        ({"kind": "stroke"}, "glioma or meningioma"),
    ],
)
def test_impossible_settings_are_refused_with_a_reason(changes, named):
    with pytest.raises(UserError, match=named):
        head_case(0, replace(HeadSettings(), **changes))


def test_a_negative_seed_and_an_impossible_growth_are_refused():
    with pytest.raises(UserError, match="seed -1"):
        head_case(-1)
    with pytest.raises(UserError, match="found 9"):
        head_follow_up(0, growth=9)


def test_small_meningiomas_have_the_volume_that_was_asked_for():
    for seed in range(4):
        case = head_case(seed, replace(SMALL, kind="meningioma", volume_ml=(0.4, 0.5), sequences=("t1",), shape=(16, 16, 16)))
        assert 0.35 < case.lesions[0].volumes_ml["meningioma"] < 0.6  # a few hundred nodes


def test_more_than_the_head_can_hold_is_refused():
    with pytest.raises(UserError, match="no room for 4 lesions of up to 90 ml"):
        head_case(0, replace(SMALL, lesions=4, volume_ml=(88, 90)))


def test_impossible_data_sets_are_refused_before_anything_is_written(tmp_path):
    for arguments in ({"count": 0}, {"count": 2, "empty_fraction": 1.5}):
        with pytest.raises(UserError, match="found"):
            write_heads(tmp_path / "none", **arguments)
    with pytest.raises(UserError, match="found"):
        write_head_follow_ups(tmp_path / "none", count=1, growth=(2.0, 1.0))
    assert not (tmp_path / "none").exists()


def test_without_nilearn_the_message_says_what_to_install():
    program = "import sys; sys.modules['nilearn'] = None\nfrom shared.phantoms.head import head_case\nhead_case(0)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "UserError: Head phantoms need nilearn" in run.stderr
    assert "pip install nilearn" in run.stderr


def test_the_settings_can_be_read_without_numpy():
    program = "import sys, shared.phantoms.head_settings; print('numpy' in sys.modules, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
