"""What an encoder answers about one picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from apps.brain_encoders.space import SurfaceSpace, TableSpace, VolumeSpace
from shared.errors import UserError
from shared.explain.overlay import heat
from shared.files import write_bytes, write_text
from shared.imaging import encode_png, write_png
from shared.reports.cortex import cortex_picture, volume_picture

__all__ = ["BrainPrediction", "brain_picture"]

PREVIEW_HEIGHT = 160


@dataclass(frozen=True, kw_only=True, eq=False)
class BrainPrediction:
    """The responses of all units to one picture."""

    media_types: ClassVar[tuple[str, ...]] = ("application/x-npy", "text/csv")

    image: NDArray[np.uint8]
    """[H, W, 3] RGB, the picture."""
    response: NDArray[np.float32]
    """[V], in the units that the encoder was trained on: z-scored, for most data."""
    space: SurfaceSpace | VolumeSpace | TableSpace
    regions: Mapping[str, NDArray[np.bool_]]
    """Region -> bool [V]."""
    routing: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Query -> [H, W], 0 to 1 and 1 at most somewhere: where in the picture it looked; empty for models without queries."""
    formats: tuple[str, ...] = ("gifti", "nifti")
    """What ``save`` writes of gifti, nifti and cifti, where the units allow it."""
    saves_routing: bool = False

    @cached_property
    def region_means(self) -> list[tuple[str, str, int, float, float]]:
        """Hemisphere, region, units, mean and standard deviation of the responses, for each region of each hemisphere."""
        rows = []
        names = ("left", "right") if len(self.space.hemispheres) == 2 else ("",)
        start = 0
        for name, count in zip(names, self.space.hemispheres, strict=True):
            part = slice(start, start + count)
            start += count
            for region, mask in {"all": np.ones(len(self.response), dtype=bool), **self.regions}.items():
                values = self.response[part][mask[part]]
                if len(values):
                    rows.append((name, region, len(values), float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))))
        return rows

    def summary(self) -> dict[str, Any]:
        """Mean responses by region, rounded to four decimals; responses are in the units trained on."""
        means = {f"{side} {region}".strip(): round(mean, 4) for side, region, _, mean, _ in self.region_means}
        strongest = max((name for name in means if not name.endswith("all")), key=lambda name: means[name], default=None)
        height, width = self.image.shape[:2]
        return {
            "units": len(self.response),
            "mean_response": means,
            "strongest_region": strongest,
            "peak_response": round(float(self.response.max()), 4),
            "width_px": width,
            "height_px": height,
        }

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        """Writes the responses (.npy, left hemisphere first), the table of regions (.csv), and the brain files asked for.

        Raises:
            UserError: if a file cannot be written; no half-written one stays.
        """
        names = {"responses": f"{stem}_responses.npy", "regions": f"{stem}_regions.csv"}
        write_bytes(folder / names["responses"], self.encode(self.media_types[0]))
        write_text(folder / names["regions"], self.encode(self.media_types[1]).decode())
        names |= self.space.write(self.response, folder, stem, formats=self.formats)
        if self.saves_routing and self.routing:
            names["routing"] = f"{stem}_routing.png"
            write_png(folder / names["routing"], self.routing_picture())
        return names

    def figure(self) -> Figure:
        """The picture beside the brain."""
        figure = Figure(figsize=(9, 3), layout="constrained")
        axes = figure.subplots(1, 2, width_ratios=(1, 2.2))
        brain = brain_picture(self.response, self.space)
        for each, (title, picture) in zip(axes, {"picture": self.image, "predicted response": brain}.items(), strict=True):
            each.imshow(picture)
            each.set_title(title)
            each.axis("off")
        return figure

    def encode(self, media_type: str) -> bytes:
        """The responses as .npy, float32 [V]; or the table of regions as CSV.

        Raises:
            UserError: for any other type.
        """
        if media_type == "application/x-npy":
            buffer = io.BytesIO()
            np.save(buffer, self.response)
            return buffer.getvalue()
        if media_type == "text/csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["hemisphere", "region", "units", "mean", "standard_deviation"])
            writer.writerows([*row[:3], f"{row[3]:.6f}", f"{row[4]:.6f}"] for row in self.region_means)
            return text.getvalue().encode()
        raise UserError(f"{media_type} cannot be made; available: {', '.join(self.media_types)}.")

    def preview(self) -> bytes:
        """The picture beside the brain, as PNG."""
        brain = brain_picture(self.response, self.space)
        side = Image.fromarray(self.image)
        side.thumbnail((2 * PREVIEW_HEIGHT, brain.shape[0]))
        shown = np.asarray(side)
        shown = np.pad(shown, [(0, max(0, brain.shape[0] - shown.shape[0])), (0, 8), (0, 0)], constant_values=255)
        return encode_png(np.concatenate([shown[: brain.shape[0]], brain], axis=1))

    def routing_picture(self, *, columns: int = 5) -> NDArray[np.uint8]:
        """The picture once for each query, with what it looked at over it: [rows * H, columns * W, 3].

        Raises:
            UserError: if the model has no queries.
        """
        if not self.routing:
            raise UserError(
                "this model has no queries, so there is nothing to see of where they look. Train one with model.name transformer."
            )
        panels = [heat(self.image, values) for values in self.routing.values()]
        panels += [np.full_like(self.image, 255)] * (-len(panels) % columns)
        rows = [np.concatenate(panels[start : start + columns], axis=1) for start in range(0, len(panels), columns)]
        return np.concatenate(rows, axis=0)


def brain_picture(
    values: NDArray[np.floating],
    space: SurfaceSpace | VolumeSpace | TableSpace,
    *,
    limit: float | None = None,
    height: int = PREVIEW_HEIGHT,
) -> NDArray[np.uint8]:
    """A value for each unit [V] as a picture of the brain; for units without a place, as a strip of colours."""
    if isinstance(space, SurfaceSpace):
        left, right = space.fill(values)
        if len(left) >= 10242 and space.mesh.startswith("fsaverage"):
            return cortex_picture(left, right, limit=limit, height=height)
    if isinstance(space, VolumeSpace):
        import nibabel as nib

        turned = nib.as_closest_canonical(nib.Nifti1Image(space.fill(values), space.affine))
        return volume_picture(np.asarray(turned.dataobj), height=height, limit=limit)
    import matplotlib

    limit = limit or float(np.percentile(abs(values), 98)) or 1.0
    colours = matplotlib.colormaps["RdBu_r"](np.clip(values / (2 * limit) + 0.5, 0, 1))[:, :3]
    wide = np.asarray(Image.fromarray((255 * colours).round().astype(np.uint8)[None]).resize((400, 40), Image.Resampling.NEAREST))
    return np.pad(wide, [((height - 40) // 2, height - 40 - (height - 40) // 2), (0, 0), (0, 0)], constant_values=255)
