"""The reversible U-Net's side of tests/contract."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from shared.phantoms.head import head_case
from shared.phantoms.head_settings import SEQUENCES, HeadSettings
from tests.apps.reversible_unet.test_published import fixture
from tests.apps.reversible_unet.test_published import write as write_trainer
from tests.contract.contract import BadInput, Contract, GoodInput, Published
from tests.contract.volumes import grid, grid_of_results, mean_dice, same_labels
from tests.parity.recipe import draw_inputs
from tests.shared.imaging.volumes.made import nifti_bytes, zipped

FIXTURE = "partially"
SPACING_MM = 5

Box = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Start, stop and step along each axis."""
Scan = tuple[np.ndarray, np.ndarray]
"""int16 [4, X, Y, Z] and affine."""


@cache
def head() -> Scan:
    """A brain with a glioma, its axes to the back, the feet and the right, askew; cut out around the tumour."""
    settings = HeadSettings(lesions=1, volume_ml=(40, 60), spacing_mm=(SPACING_MM,) * 3, orientation="PIR", skull_stripped=True)
    case = head_case(11, settings)
    starts = np.clip(np.argwhere(case.labels).mean(axis=0).round().astype(int) - 12, 0, None)
    affine = case.affine.copy()
    affine[:3, 3] = (affine @ [*starts, 1])[:3]
    x, y, z = (slice(start, start + 24) for start in starts)
    return np.stack([case.volumes[name][x, y, z] for name in SEQUENCES]).astype(np.int16), affine


def part(box: Box) -> Scan:
    """Cut out of the head."""
    values, affine = head()
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*(one[0] for one in box), 1])[:3]
    moved[:3, :3] = affine[:3, :3] * [one[2] if len(one) == 3 else 1 for one in box]
    return np.ascontiguousarray(values[(slice(None), *(slice(*one) for one in box))]), moved


SMALL = ((6, 18), (5, 19), (6, 17))
PLAIN = ((2, 24), (1, 24), (3, 23))
THICK = ((0, 24), (0, 24), (0, 24, 3))
TINY = ((10, 13), (10, 14), (10, 15))


def channels(box: Box, *, packed: bool = False) -> bytes:
    """One NIfTI with the four sequences as its channels."""
    values, affine = part(box)
    content = nifti_bytes(np.moveaxis(values, 0, -1), affine)
    return gzip.compress(content, mtime=0) if packed else content


@cache
def examination(words: tuple[str, ...] = SEQUENCES, *, box: Box = PLAIN) -> Mapping[str, bytes]:
    """A file for each sequence, called by these words."""
    values, affine = part(box)
    return {f"p7_{word}.nii.gz": gzip.compress(nifti_bytes(one, affine), mtime=0) for word, one in zip(words, values, strict=True)}


def spoiled(sequence: str, content: bytes) -> Mapping[str, bytes]:
    """The small examination with another content of one file."""
    return {**examination(box=SMALL), f"p7_{sequence}.nii.gz": content}


def changed(value: float, *, everywhere: bool = False) -> bytes:
    values, affine = part(SMALL)
    flair = values[3].astype(np.float32)
    flair[(slice(None),) * 3 if everywhere else (2, 3, 4)] = value
    return gzip.compress(nifti_bytes(flair, affine))


def good(box: Box, content: object, *, same_as: str | None = None) -> GoodInput:
    values, affine = part(box)
    return GoodInput(content=content, geometry=grid(values.shape[1:], affine), same_as=same_as)  # type: ignore[arg-type]


def phantoms(folder: Path, *, seed: int, count: int) -> list[object]:
    """All with a glioma, and a large one: in half a minute's training, telling that there is none is a matter of luck."""
    words = ("data", "phantom", "--output", folder, "--empty_fraction", 0, "--volume_ml", "[30.0,60.0]")
    return [*words, "--spacing_mm", json.dumps([float(SPACING_MM)] * 3), "--seed", seed, "--count", count]


def write_published(path: Path) -> None:
    write_trainer(path, fixture(FIXTURE)[1])


def wrap_published(_: Path, wrapped: Path) -> None:
    """The weights alone, of a parallel training."""
    import torch

    torch.save({"state_dict": {f"module.{name}": value for name, value in fixture(FIXTURE)[1].items()}}, wrapped)


def published_errors(bundle: Path) -> dict[str, tuple[float, float]]:
    """Logits of the network that predicts."""
    import torch

    from apps.reversible_unet import ReversibleUNetPredictor

    found, _ = fixture(FIXTURE)
    network = ReversibleUNetPredictor.load(bundle, device="cpu", precision="fp32").network
    with torch.inference_mode():
        logits = network(torch.from_numpy(draw_inputs(found.inputs, found.seed)["image"])).numpy()
    (expected,) = [each for each in found.expected if each.name == "logits"]
    answer = logits[tuple(slice(None, None, step) for step in expected.stride or (1,) * 5)]
    return {"logits": (float(np.abs(answer - expected.values).max()) / expected.spread, expected.tolerance)}


def write_strangers(folder: Path) -> dict[str, str]:
    """A network with running statistics in its norms, and a checkpoint with a layer lost."""
    import torch

    state = fixture(FIXTURE)[1]
    torch.save(
        {"net_state_dict": {"encoder1.conv.weight": torch.zeros(1), "encoder1.norm.running_mean": torch.zeros(1)}}, folder / "unet.pt"
    )
    write_trainer(folder / "partial.pt", {name: value for name, value in state.items() if name != "lastConv.weight"})
    return {"unet.pt": "is of another network", "partial.pt": "lastConv.weight is missing"}


CONTRACT = Contract(
    predictor="ReversibleUNetPredictor",
    phantoms=lambda folder: phantoms(folder, seed=1, count=10),
    unseen=lambda folder: phantoms(folder, seed=999, count=4),
    train=lambda data, run: [
        *("train", "--data.root", data, "--output", run, "--data.validation", 0.2),
        *("--model.channels", "[8,16,32]", "--preprocessing.spacing_mm", json.dumps([float(SPACING_MM)] * 3)),
        *("--window.size", "[32,32,32]", "--sampling.patches", 1, "--sampling.foreground", 0.8, "--sampling.augment", "false"),
        # Three seeds of this gave 0.68 to 0.72.
        *("--fit.epochs", 8, "--fit.batch_size", 2, "--fit.optimizer.name", "adamw", "--fit.optimizer.lr", 5e-3),
        *("--fit.schedule.name", "cosine", "--fit.schedule.warmup", 5),
    ],
    few_epochs=["--fit.epochs", 4, "--window.size", "[16,16,16]"],
    evaluate=lambda bundle, data, output: ["evaluate", "--model", bundle, "--data", data, "--output", output, "--bootstrap", 0],
    scores=mean_dice,
    score=0.5,
    good={
        "small.nii.gz": good(SMALL, lambda: channels(SMALL, packed=True)),
        "examination": good(PLAIN, examination),
        "newer": good(PLAIN, lambda: examination(("t1n", "t1c", "t2w", "t2f")), same_as="examination"),
        "archive.zip": good(PLAIN, lambda: zipped(dict(examination())), same_as="examination"),
        "channels.nii": good(PLAIN, lambda: channels(PLAIN), same_as="examination"),
        "thick.nii.gz": good(THICK, lambda: channels(THICK, packed=True)),
        "tiny.nii.gz": good(TINY, lambda: channels(TINY, packed=True)),
    },
    bad={
        "bad_missing": BadInput(
            content=lambda: {name: content for name, content in examination(box=SMALL).items() if "flair" not in name},
            reason="flair is missing (found: t1, t1ce, t2",
        ),
        "bad_grids": BadInput(content=lambda: spoiled("flair", examination()["p7_flair.nii.gz"]), reason="is not on the grid of t1"),
        "bad_gzip": BadInput(content=lambda: spoiled("t2", examination(box=SMALL)["p7_t2.nii.gz"][:900]), reason="(t2): "),
        "bad_nan": BadInput(content=lambda: spoiled("flair", changed(np.nan)), reason="not finite"),
        "bad_constant": BadInput(content=lambda: spoiled("flair", changed(7, everywhere=True)), reason="every voxel is 7 in channel 3"),
        "bad_twice": BadInput(
            content=lambda: {**examination(box=SMALL), "p7_t1w.nii.gz": examination(box=SMALL)["p7_t1.nii.gz"]}, reason="two files for t1"
        ),
        "bad_channels.nii": BadInput(
            content=lambda: nifti_bytes(np.moveaxis(part(SMALL)[0][:3], 0, -1), part(SMALL)[1]),
            reason="has 3 channels, and 4 were expected",
        ),
    },
    main_result="segmentation",
    geometry=grid_of_results,
    published=Published(write=write_published, suffix=".pt", wrap=wrap_published, errors=published_errors, strangers=write_strangers),
    same=same_labels,
)
