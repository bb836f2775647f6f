"""PraNet's side of tests/contract."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared.phantoms.colonoscopy import colonoscopy_frame
from tests.contract.contract import BadInput, Contract, GoodInput, Published
from tests.parity.fixture import read_fixture
from tests.parity.recipe import draw_inputs, draw_state
from tests.shared.imaging.made import encoded, flat_clip, png_chunks, png_header

FIXTURE = Path(__file__).parents[2] / "parity" / "fixtures" / "pranet-model.json"


@cache
def frame(height: int, width: int) -> np.ndarray:
    """RGB uint8 [H, W, 3] with a polyp."""
    return colonoscopy_frame(11, height=height, width=width, polyps=1).image


def png(height: int, width: int) -> GoodInput:
    return GoodInput(content=lambda: encoded(frame(height, width), "PNG"), geometry=(height, width))


def turned_jpeg() -> bytes:
    """Stored lying on its side, with the EXIF note that says how to hold it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    return encoded(np.ascontiguousarray(np.rot90(frame(120, 90))), "JPEG", quality=90, exif=exif.tobytes())


def upright_png() -> bytes:
    """What a viewer shows of ``turned_jpeg``."""
    return encoded(np.ascontiguousarray(np.rot90(np.asarray(Image.open(io.BytesIO(turned_jpeg()))), -1)), "PNG")


def grey(bits: int) -> bytes:
    values = frame(64, 96)[..., 0]
    return encoded(values if bits == 8 else values.astype(np.uint16) << 8, "PNG")


def dicom() -> bytes:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, VLEndoscopicImageStorage, generate_uid

    pixels = frame(70, 81)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, VLEndoscopicImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientID = "ES", "phantom"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PlanarConfiguration = *pixels.shape[:2], 3, 0
    dataset.PhotometricInterpretation = "RGB"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    padding = b"\0" * (pixels.size % 2)
    dataset.PixelData = pixels.tobytes() + padding
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def video() -> bytes:
    return flat_clip([frame(64, 96), frame(64, 96)[::-1], frame(64, 96)[:, ::-1]], "mp4")


def jpeg_of_a_text() -> bytes:
    return b"\xff\xd8\xff\xe0" + b"no picture follows" * 20


def huge_png() -> bytes:
    return png_chunks(png_header(50_000, 50_000), (b"IDAT", b""), (b"IEND", b""))


def phantoms(folder: Path, *, seed: int, count: int) -> list[object]:
    """All with a polyp: in a minute's training, telling that there is none is a matter of luck."""
    words = ("data", "phantom", "--output", folder, "--height", 96, "--width", 112, "--empty_fraction", 0)
    return [*words, "--seed", seed, "--count", count]


def geometry(files: Mapping[str, Path]) -> tuple[int, int]:
    """Height and width, the same in every picture and in the contours."""
    sizes = {Image.open(path).size[::-1] for kind, path in files.items() if kind != "contours"}
    sizes.add(tuple(json.loads(files["contours"].read_text())["size"]))
    assert len(sizes) == 1, sizes
    return sizes.pop()


def scores(output: Path) -> tuple[float, float]:
    """Plain Dice of the model and of the best trivial answer."""
    (one,) = json.loads((output / "metrics.json").read_text()).values()
    return one["model"]["dice"]["estimate"], max(one["trivial_dice"].values())


def published_state() -> dict[str, Any]:
    import torch

    fixture = read_fixture(FIXTURE)
    return {name: torch.from_numpy(value) for name, value in draw_state(fixture.state, fixture.seed).items()}


def write_published(path: Path) -> None:
    import torch

    torch.save(published_state(), path)


def published_errors(bundle: Path) -> dict[str, tuple[float, float]]:
    """In spreads, as the fixture states its tolerance. The bundle's network has its norms folded; that rounds differently."""
    import torch

    from apps.pranet import PraNetPredictor

    fixture = read_fixture(FIXTURE)
    image = torch.from_numpy(draw_inputs(fixture.inputs, fixture.seed)["image"])
    with torch.inference_mode():
        outputs = PraNetPredictor.load(bundle, device="cpu", precision="fp32").network.side_outputs(image)
    found = {f"lateral_map_{level}": output.numpy() for level, output in zip((5, 4, 3, 2), outputs, strict=True)}
    errors = {}
    for expected in fixture.expected:
        if expected.name in found:
            answer = found[expected.name][tuple(slice(None, None, step) for step in expected.stride or ())]
            errors[expected.name] = (float(np.abs(answer - expected.values).max()) / expected.spread, expected.tolerance)
    assert len(errors) == 4
    return errors


def write_strangers(folder: Path) -> dict[str, str]:
    """The backbone's own file, which lies beside the authors' checkpoint on their page; and the checkpoint with a part cut off."""
    import torch

    state = published_state()
    backbone = {name.removeprefix("resnet."): value for name, value in state.items() if name.startswith("resnet.")}
    torch.save(backbone, folder / "backbone.pth")
    torch.save({name: value for name, value in state.items() if not name.startswith("agg1.")}, folder / "partial.pth")
    return {"backbone.pth": "backbone alone", "partial.pth": "do not fit"}


CONTRACT = Contract(
    predictor="PraNetPredictor",
    phantoms=lambda folder: phantoms(folder, seed=1, count=96),
    unseen=lambda folder: phantoms(folder, seed=999, count=24),
    train=lambda data, run: [
        *("train", "--data.root", data, "--output", run),
        *("--model.backbone", "test_resnet", "--model.channels", 8, "--data.size", 64, "--data.scales", "[1.0]", "--data.validation", 0.2),
        # Four seeds of this gave 0.30 to 0.34.
        *("--fit.epochs", 7, "--fit.batch_size", 8, "--fit.optimizer.name", "adamw", "--fit.optimizer.lr", 4e-3),
        *("--fit.schedule.name", "cosine", "--fit.schedule.warmup", 5),
    ],
    few_epochs=["--fit.epochs", 4],
    evaluate=lambda bundle, data, output: ["evaluate", "--model", bundle, "--data", data, "--output", output, "--bootstrap", 0],
    scores=scores,
    score=0.25,
    good={
        "small.png": png(33, 47),
        "portrait.png": png(131, 77),
        "landscape.png": png(90, 121),
        "turned.jpg": GoodInput(content=turned_jpeg, geometry=(120, 90)),
        "upright.png": GoodInput(content=upright_png, geometry=(120, 90), same_as="turned.jpg"),
        "grey.png": GoodInput(content=lambda: grey(8), geometry=(64, 96)),
        "grey16.png": GoodInput(content=lambda: grey(16), geometry=(64, 96), same_as="grey.png"),
        "plain.tif": GoodInput(content=lambda: encoded(frame(70, 81), "TIFF"), geometry=(70, 81)),
        "scope.dcm": GoodInput(content=dicom, geometry=(70, 81), same_as="plain.tif"),
        "clip.mp4": GoodInput(content=video, geometry=(64, 96), samples=("frame_000000", "frame_000001", "frame_000002")),
    },
    bad={
        "bad_huge.png": BadInput(content=huge_png, reason="50,000 x 50,000"),
        "bad_jpeg.jpg": BadInput(content=jpeg_of_a_text, reason="JPEG"),
        "bad_cut.mp4": BadInput(content=lambda: video()[:2000], reason=""),
    },
    main_result="mask",
    geometry=geometry,
    published=Published(write=write_published, errors=published_errors, strangers=write_strangers),
)
