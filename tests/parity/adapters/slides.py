"""Tissue, tiles and overlays of CLAM, and the grid of TIAToolbox."""

from __future__ import annotations

import numpy as np

from tests.parity.fixture import Fixture

__all__ = ["matches", "run"]

Arrays = dict[str, np.ndarray]


def matches(fixture: Fixture) -> bool:
    return fixture.system in ("wsi-tissue-clam", "wsi-grid-tiatoolbox", "wsi-heatmap-clam")


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    return {"wsi-tissue-clam": _tissue, "wsi-grid-tiatoolbox": _grid, "wsi-heatmap-clam": _heatmap}[fixture.system](fixture.config, inputs)


def _tissue(config: dict, inputs: Arrays) -> Arrays:
    import cv2

    from apps.acmil.tiling import clam_corners
    from apps.acmil.tissue import rasterised

    overview, answers = inputs["thumbnail"], {}
    for name in config["presets"]:
        pieces = _pieces(config, name, overview)
        areas = sorted((cv2.contourArea(piece.outline) for piece in pieces), reverse=True)
        answers[f"{name}.contours"] = np.array([len(pieces), sum(len(piece.holes) for piece in pieces)])
        answers[f"{name}.areas"] = np.array(areas)
        answers[f"{name}.mask"] = rasterised(pieces, shape=overview.shape[:2], downsample=config["downsample"])
        for rule in ("four_pt", "four_pt_hard", "center", "basic"):
            corners = clam_corners(pieces, side=config["patch_size"], step=config["step_size"], rule=rule)
            answers[f"{name}.coords.{rule}"] = corners
    return answers


def _pieces(config: dict, name: str, overview: np.ndarray) -> list:
    """With the values of our presets, which are CLAM's, where we have one; else with those of the fixture."""
    from apps.acmil.tissue import CLAM_PRESETS, Areas, Threshold, outline, segment

    ours = {"default": "clam"}.get(name, f"clam_{name}")
    if ours in CLAM_PRESETS:
        threshold, (piece, hole, holes) = CLAM_PRESETS[ours]
    else:
        asked, kept = config["presets"][name]["seg"], config["presets"][name]["filt"]
        threshold = Threshold(saturation=asked["sthresh"], median_px=asked["mthresh"], close_px=asked["close"], otsu=asked["use_otsu"])
        piece, hole, holes = kept["a_t"], kept["a_h"], kept["max_n_holes"]
    reference = int(config["ref_patch_size"] ** 2 / config["downsample"] ** 2)
    areas = Areas(piece=piece * reference, hole=hole * reference, holes=holes)
    return outline(segment(overview.astype(np.uint8), threshold), areas, scale=config["downsample"])


def _grid(config: dict, inputs: Arrays) -> Arrays:
    from apps.acmil.tiling import grid_corners, tissue_share

    row, column = np.mgrid[:37, :29]
    mask = (((row - 18) / 14) ** 2 + ((column - 13) / 10) ** 2 < 1) & (inputs["field"] < 0.8)
    answers = {}
    for number, case in enumerate(config["cases"]):
        size, tile, step = (np.array(case[key]) for key in ("image_shape", "patch_input_shape", "stride_shape"))
        across, down = (grid_corners((int(size[axis]),) * 2, float(step[axis])) for axis in (0, 1))
        x, y = np.unique(across[:, 0]), np.unique(down[:, 1])
        corners = np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1)
        boxes = np.concatenate([corners, corners + tile], axis=1)
        for kind, kept in (("all", boxes), ("inside", boxes[(boxes[:, 2:] <= size).all(1)])):
            answers[f"grid{number}.{kind}"] = kept
            # TIAToolbox counts whole pixels of the mask: boxes cut to them and to the mask.
            factor = np.tile(np.array(mask.shape[::-1]) / size, 2)
            limit = np.tile(np.array(mask.shape[::-1]), 2)
            whole = np.clip((kept * factor.astype(np.float32)), 0, limit).astype(int)
            area = (whole[:, 2] - whole[:, 0]) * (whole[:, 3] - whole[:, 1])
            share = tissue_share(mask, whole)
            for least in (0, 0.5):
                answers[f"keep{number}.{kind}.{least}"] = (area > 0) & ((share > least + 1e-9) | (share > 1 - 1e-9))
    return answers


def _heatmap(config: dict, inputs: Arrays) -> Arrays:
    import cv2

    from apps.acmil.bags import Bag
    from apps.acmil.heatmap import blended, percentiles, raster
    from apps.acmil.tissue import CLAM_PRESETS, Areas, outline, rasterised, segment

    overview, coordinates = inputs["thumbnail"].astype(np.uint8), inputs["coords"].astype(np.int64)
    shape, downsample = overview.shape[:2], config["downsample"]
    ranks = percentiles(inputs["scores"])
    nothing = np.zeros((len(coordinates), 0), np.float32)
    bag = Bag(features=nothing, coordinates=coordinates, slide="s", tile_px_level0=config["patch_size"])
    values, covered = raster(bag, ranks / 100, downsample=downsample, shape=shape)
    how = {"colormap": config["cmap"], "alpha": config["alpha"]}
    threshold, (piece, hole, holes) = CLAM_PRESETS["clam_bwh_biopsy"]
    reference = int(512**2 / downsample**2)
    pieces = outline(segment(overview, threshold), Areas(piece=piece * reference, hole=hole * reference, holes=holes), scale=downsample)
    tissue = rasterised(pieces, shape=shape, downsample=downsample)
    high = (ranks / 100 >= config["binarize_thresh"]).astype(float)
    share, _ = raster(bag, high, downsample=downsample, shape=shape)
    only_high = Bag(features=nothing[high > 0], coordinates=coordinates[high > 0], slide="s", tile_px_level0=config["patch_size"])
    _, coloured = raster(only_high, high[high > 0], downsample=downsample, shape=shape)
    plain = blended(overview, values, covered, **how)
    kernel = 2 * -(-config["patch_size"] // downsample) + 1
    blurred = cv2.GaussianBlur(values.astype(np.float64), (kernel, kernel), 0)
    painted = cv2.GaussianBlur(blended(overview, blurred, covered, colormap=config["cmap"], alpha=1.0), (kernel, kernel), 0)
    roi = config["roi"]
    answers = {
        "percentiles": ranks,
        "overlay_plain": plain,
        "overlay_tissue": blended(overview, values, covered & tissue, **how),
        "overlay_blur": cv2.addWeighted(painted, config["alpha"], overview, 1 - config["alpha"], 0),
        "overlay_binary": blended(overview, np.around(share), coloured, **how),
    }
    within = np.flatnonzero((ranks >= roi["score_start"]) & (ranks <= roi["score_end"]))
    chosen = np.random.RandomState(roi["seed"]).choice(len(within), roi["k"], replace=False)
    order = np.argsort(ranks, kind="stable")
    for name, picked in (("topk", order[::-1][: roi["k"]]), ("reverse_topk", order[: roi["k"]]), ("range_sample", within[chosen])):
        answers[f"rois_{name}"], answers[f"rois_{name}_scores"] = coordinates[picked], ranks[picked]
    return answers
