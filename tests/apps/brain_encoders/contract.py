"""The brain encoders' side of tests/contract."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.phantoms.brain_stimuli import stimulus
from tests.contract.contract import BadInput, Contract, GoodInput, Published
from tests.parity.fixture import read_fixture
from tests.parity.recipe import draw_inputs, draw_state
from tests.shared.imaging.made import encoded, flat_clip, png_chunks, png_header

FIXTURE = Path(__file__).parents[2] / "parity" / "fixtures" / "brain_encoders-dinov2q.json"
GABOR = ("--backbone.source", "gabor", "--backbone.size", 64, "--backbone.multiple", 8, "--backbone.part", "whole")
GEOMETRY = ("left and right", 1)
"""Every answer has the same units, whatever the picture's size; see ``geometry``."""


@cache
def picture(number: int, height: int, width: int) -> np.ndarray:
    """RGB uint8 [H, W, 3]."""
    shown = stimulus(np.random.default_rng(number), side=96).image
    return np.asarray(Image.fromarray(shown).resize((width, height), Image.Resampling.BILINEAR))


def png(number: int, height: int, width: int) -> GoodInput:
    return GoodInput(content=lambda: encoded(picture(number, height, width), "PNG"), geometry=GEOMETRY)


def turned_jpeg() -> bytes:
    """Stored lying on its side, with the EXIF note that says how to hold it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    return encoded(np.ascontiguousarray(np.rot90(picture(3, 120, 90))), "JPEG", quality=90, exif=exif.tobytes())


def upright_png() -> bytes:
    """What a viewer shows of ``turned_jpeg``."""
    return encoded(np.ascontiguousarray(np.rot90(np.asarray(Image.open(io.BytesIO(turned_jpeg()))), -1)), "PNG")


def grey(bits: int) -> bytes:
    values = picture(4, 64, 96)[..., 0]
    return encoded(values if bits == 8 else values.astype(np.uint16) << 8, "PNG")


def video() -> bytes:
    shown = picture(5, 64, 96)
    return flat_clip([shown, shown[::-1], shown[:, ::-1]], "mp4")


def huge_png() -> bytes:
    return png_chunks(png_header(50_000, 50_000), (b"IDAT", b""), (b"IEND", b""))


def phantoms(folder: Path, *, seed: int, count: int, test: int) -> list[object]:
    words = ("data", "phantom", "--output", folder, "--size", 64, "--signal_share", 0.6)
    return [*words, "--seed", seed, "--count", count, "--test", test]


def geometry(files: Mapping[str, Path]) -> tuple[str, int]:
    """Fails unless array, surfaces and table are of the same units; then the same for every picture."""
    import nibabel as nib

    responses = np.load(files["responses"], allow_pickle=False)
    left, right = (nib.load(files[side]).agg_data() for side in ("left", "right"))
    assert len(left) == len(right) == 10242
    shown = np.concatenate([left[np.isfinite(left)], right[np.isfinite(right)]])
    assert np.array_equal(shown, responses), "the surfaces show what the array holds, left hemisphere first"
    with open(files["regions"], newline="") as file:
        rows = list(csv.DictReader(file))
    whole = [int(row["units"]) for row in rows if row["region"] == "all"]
    assert sum(whole) == len(responses)
    return GEOMETRY[0], responses.ndim


def scores(output: Path) -> tuple[float, float]:
    """Mean correlation over units of the model, and of the best answer that needs none."""
    found = json.loads((output / "metrics.json").read_text())
    (model,) = found["models"].values()
    return model["correlation"], max(found["trivial_correlation"].values())


def published_state() -> dict[str, Any]:
    import torch

    fixture = read_fixture(FIXTURE)
    return {name: torch.from_numpy(value) for name, value in draw_state(fixture.state, fixture.seed).items()}


def write_published(path: Path) -> None:
    import torch

    torch.save(published_state(), path)


def published_options(folder: Path) -> list[object]:
    """What the authors' file does not say: the regions, the heads, and the small backbone that the fixture has in place of theirs."""
    fixture = read_fixture(FIXTURE)
    inputs = draw_inputs(fixture.inputs, fixture.seed)
    np.savez(folder / "regions.npz", lh=inputs["lh_roi_masks"], rh=inputs["rh_roi_masks"])
    backbone = ("--backbone.size", 84, "--backbone.layer", "blocks.2.attn.qkv")
    small = '["embed_dim=48", "depth=3", "num_heads=4", "init_values=1.0"]'
    return ["--subject", folder / "regions.npz", "--heads", fixture.config["nheads"], *backbone, f"--backbone.options={small}"]


def published_errors(bundle: Path) -> dict[str, tuple[float, float]]:
    """In spreads, as the fixture states its tolerance. Bundles take squares, and its image is none: the readout is given its features."""
    import torch

    from apps.brain_encoders import BrainEncoderPredictor
    from tests.parity.adapters import brain_encoders

    fixture = read_fixture(FIXTURE)
    state, inputs = draw_state(fixture.state, fixture.seed), draw_inputs(fixture.inputs, fixture.seed)
    network = BrainEncoderPredictor.load(bundle, device="cpu", precision="fp32").network
    features = torch.from_numpy(brain_encoders.run(fixture, state, inputs)["backbone_features"])
    with torch.inference_mode():
        left, right = network.readout(features).split((fixture.config["lh_vs"], fixture.config["rh_vs"]), dim=1)
    found = {"lh_combined": left.numpy(), "rh_combined": right.numpy()}
    errors = {
        one.name: (float(np.abs(found[one.name] - one.values).max()) / one.spread, one.tolerance)
        for one in fixture.expected
        if one.name in found
    }
    own = brain_encoders.build_whole(fixture, state, inputs, side=84)
    image = torch.randn(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        errors["backbone"] = (float((own(image) - network(image)).abs().max()), 1e-5)
    assert len(errors) == 3
    return errors


def write_strangers(folder: Path) -> dict[str, str]:
    """The frozen backbone's own file, which lies beside the authors' checkpoint; and the checkpoint with a part cut off."""
    import torch

    state = published_state()
    prefix = "backbone_model.0.backbone."
    torch.save({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}, folder / "backbone.pth")
    torch.save({name: value for name, value in state.items() if not name.startswith("rh_embed.")}, folder / "partial.pth")
    return {"backbone.pth": "no checkpoint of a transformer brain encoder", "partial.pth": "rh_embed"}


CONTRACT = Contract(
    predictor="BrainEncoderPredictor",
    phantoms=lambda folder: phantoms(folder, seed=1, count=128, test=8),
    unseen=lambda folder: phantoms(folder, seed=999, count=24, test=24),
    train=lambda data, run: [
        *("train", "--data.root", data, "--data.cache", run.parent / "features", "--output", run, "--data.validation", 0.2, *GABOR),
        *("--model.channels", 32, "--model.heads", 4, "--model.inner_channels", 64),
        *("--fit.epochs", 14, "--fit.batch_size", 8, "--fit.optimizer.lr", 3e-3, "--fit.clip_norm", 1.0),
        *("--fit.schedule.name", "cosine", "--fit.schedule.warmup", 10),
    ],
    few_epochs=["--fit.epochs", 4],
    evaluate=lambda bundle, data, output: [
        *("evaluate", "--model", bundle, "--data", data, "--output", output, "--permutations", 0),
    ],
    scores=scores,
    score=0.3,
    good={
        "small.png": png(0, 33, 47),
        "portrait.png": png(1, 131, 77),
        "landscape.png": png(2, 90, 121),
        "turned.jpg": GoodInput(content=turned_jpeg, geometry=GEOMETRY),
        "upright.png": GoodInput(content=upright_png, geometry=GEOMETRY, same_as="turned.jpg"),
        "grey.png": GoodInput(content=lambda: grey(8), geometry=GEOMETRY),
        "grey16.png": GoodInput(content=lambda: grey(16), geometry=GEOMETRY, same_as="grey.png"),
        "plain.tif": GoodInput(content=lambda: encoded(picture(6, 70, 81), "TIFF"), geometry=GEOMETRY),
        "clip.mp4": GoodInput(content=video, geometry=GEOMETRY, samples=("frame_000000", "frame_000001", "frame_000002")),
    },
    bad={
        "bad_huge.png": BadInput(content=huge_png, reason="50,000 x 50,000"),
        "bad_cut.mp4": BadInput(content=lambda: video()[:2000], reason=""),
    },
    main_result="responses",
    geometry=geometry,
    published=Published(write=write_published, errors=published_errors, strangers=write_strangers, options=published_options),
)
