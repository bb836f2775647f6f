"""AGUNet's side of tests/contract."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shared.phantoms.head import head_case
from shared.phantoms.head_settings import HeadSettings
from tests.apps.agunet.test_published import fixture, without
from tests.apps.agunet.test_published import write as write_keras
from tests.contract.contract import BadInput, Content, Contract, GoodInput, Published
from tests.contract.volumes import grid, grid_of_results, mean_dice, same_labels
from tests.parity.recipe import draw_inputs
from tests.shared.imaging.volumes.made import dicom_files, itk_bytes, nifti_bytes

FIXTURE = "agunet-full"
SPACING_MM = 5

Scan = tuple[np.ndarray, np.ndarray]
"""int16 [X, Y, Z] and affine."""


@cache
def head() -> Scan:
    """A head with a meningioma, its axes to the back, the feet and the right, askew."""
    settings = HeadSettings(
        kind="meningioma", sequences=("t1ce",), lesions=1, volume_ml=(40, 60), spacing_mm=(SPACING_MM,) * 3, orientation="PIR"
    )
    case = head_case(11, settings)
    middle = np.argwhere(case.labels).mean(axis=0).round().astype(int)
    starts = np.clip(middle - 14, 0, None)
    affine = case.affine.copy()
    affine[:3, 3] = (affine @ [*starts, 1])[:3]
    x, y, z = (slice(start, start + 28) for start in starts)
    return case.volumes["t1ce"][x, y, z].astype(np.int16), affine


def part(*box: slice) -> Scan:
    """Cut out of the head."""
    values, affine = head()
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*(one.start or 0 for one in box), 1])[:3]
    steps = [one.step or 1 for one in box]
    moved[:3, :3] = affine[:3, :3] * steps
    return np.ascontiguousarray(values[box]), moved


SMALL = (slice(8, 20), slice(7, 21), slice(8, 19))
PLAIN = (slice(2, 26), slice(1, 28), slice(3, 25))
THICK = (slice(0, 28), slice(0, 28), slice(0, 28, 3))
TINY = (slice(12, 15), slice(12, 16), slice(12, 17))


def nifti(box: tuple[slice, ...], *, packed: bool = True) -> bytes:
    content = nifti_bytes(*part(*box))
    return gzip.compress(content, mtime=0) if packed else content


@cache
def series() -> Mapping[str, bytes]:
    return {f"slice_{number:03d}.dcm": content for number, content in enumerate(dicom_files(*part(*PLAIN)))}


def good(box: tuple[slice, ...], content: Any = None, *, same_as: str | None = None) -> GoodInput:
    values, affine = part(*box)
    return GoodInput(content=content or (lambda: nifti(box)), geometry=grid(values.shape, affine), same_as=same_as)


def one_cut_off(files: Mapping[str, bytes]) -> Content:
    """A series without its tenth slice."""
    return {name: content for name, content in files.items() if name != "slice_009.dcm"}


def with_value(value: float) -> bytes:
    values, affine = part(*SMALL)
    changed = values.astype(np.float32)
    changed[2, 3, 4] = value
    return nifti_bytes(changed, affine)


def phantoms(folder: Path, *, seed: int, count: int) -> list[object]:
    """All with a meningioma, and a large one: in half a minute's training, telling that there is none is a matter of luck."""
    words = ("data", "phantom", "--output", folder, "--empty_fraction", 0, "--volume_ml", "[18.0,40.0]")
    return [*words, "--spacing_mm", json.dumps([float(SPACING_MM)] * 3), "--seed", seed, "--count", count]


def write_published(path: Path) -> None:
    write_keras(path, fixture(FIXTURE)[1])


def wrap_published(_: Path, wrapped: Path) -> None:
    """The weights alone, as ``save_weights`` leaves them."""
    write_keras(wrapped, fixture(FIXTURE)[1], whole_model=False)


def published_errors(bundle: Path) -> dict[str, tuple[float, float]]:
    """Probabilities of all resolutions from the bundle's weights, and that of the network that predicts, whose norms are folded."""
    import torch

    from apps.agunet import AGUNetPredictor

    found, _ = fixture(FIXTURE)
    predictor = AGUNetPredictor.load(bundle, device="cpu", precision="fp32")
    network = AGUNetPredictor.build(predictor.model, predictor.classes)
    network.load_state_dict(predictor.weights)
    image = torch.from_numpy(draw_inputs(found.inputs, found.seed)["image"])
    with torch.inference_mode():
        outputs = {f"probability_{level}": logits for level, logits in enumerate(network.eval().side_outputs(image))}
        folded = predictor.network(image)
    errors = {}
    for expected in found.expected:
        answers = {expected.name: outputs[expected.name]} if expected.name in outputs else {}
        if expected.name == "probability_0":
            answers["folded"] = folded
        for name, logits in answers.items():
            answer = logits.softmax(dim=1)[:, 1:2].numpy()[tuple(slice(None, None, step) for step in expected.stride or (1,) * 5)]
            errors[name] = (float(np.abs(answer - expected.values).max()) / expected.spread, expected.tolerance)
    assert len(errors) == 1 + len(outputs)
    return errors


def write_strangers(folder: Path) -> dict[str, str]:
    """PLS-Net, which lies beside them in the archive; and a file with a layer lost."""
    import torch

    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, folder / "model.ckpt")
    write_keras(folder / "partial.h5", without(fixture(FIXTURE)[1], "conv3d_3"))
    return {"model.ckpt": "HDF5", "partial.h5": "is neither an AGUNet nor a DAGUNet"}


CONTRACT = Contract(
    predictor="AGUNetPredictor",
    phantoms=lambda folder: phantoms(folder, seed=1, count=10),
    unseen=lambda folder: phantoms(folder, seed=999, count=4),
    train=lambda data, run: [
        *("train", "--data.root", data, "--output", run, "--data.validation", 0.2),
        *("--model.channels", "[8,16,32]", "--model.momentum", 0.1, "--preprocessing.spacing_mm", "[6.0,6.0,6.0]"),
        *("--window.size", "[32,32,32]", "--sampling.patches", 1, "--sampling.foreground", 0.8, "--sampling.augment", "false"),
        *("--fit.epochs", 20, "--fit.batch_size", 2, "--fit.optimizer.name", "adamw", "--fit.optimizer.lr", 4e-3),
        *("--fit.schedule.name", "cosine", "--fit.schedule.warmup", 5),
    ],
    few_epochs=["--fit.epochs", 4, "--window.size", "[16,16,16]"],
    evaluate=lambda bundle, data, output: ["evaluate", "--model", bundle, "--data", data, "--output", output, "--bootstrap", 0],
    scores=mean_dice,
    score=0.69,
    good={
        "small.nii.gz": good(SMALL),
        "plain.nii": good(PLAIN, lambda: nifti(PLAIN, packed=False)),
        "scan.mha": good(PLAIN, lambda: itk_bytes(*part(*PLAIN), ".mha"), same_as="plain.nii"),
        "scan.nrrd": good(PLAIN, lambda: itk_bytes(*part(*PLAIN), ".nrrd"), same_as="plain.nii"),
        "series": good(PLAIN, series, same_as="plain.nii"),
        "examination": good(PLAIN, lambda: {"examination_t1ce.nii.gz": nifti(PLAIN)}, same_as="plain.nii"),
        "thick.nii.gz": good(THICK),
        "tiny.nii.gz": good(TINY),
    },
    bad={
        "bad_nan.nii": BadInput(content=lambda: with_value(np.nan), reason="not finite"),
        "bad_spacing.nii": BadInput(content=lambda: nifti_bytes(*part(*SMALL), pixdim={2: 0}), reason="spacing"),
        "bad_flat.nii": BadInput(content=lambda: nifti_bytes(part(*SMALL)[0][:, :, :1], part(*SMALL)[1]), reason="2-D image"),
        "bad_channels.nii": BadInput(
            content=lambda: nifti_bytes(np.stack([part(*SMALL)[0]] * 2, axis=-1), part(*SMALL)[1]), reason="channel"
        ),
        "bad_constant.nii": BadInput(
            content=lambda: nifti_bytes(np.full_like(part(*SMALL)[0], 7), part(*SMALL)[1]), reason="every voxel is 7"
        ),
        "bad_series": BadInput(content=lambda: one_cut_off(series()), reason="missing"),
    },
    main_result="segmentation",
    geometry=grid_of_results,
    same=same_labels,
    published=Published(write=write_published, suffix=".h5", wrap=wrap_published, errors=published_errors, strangers=write_strangers),
)
