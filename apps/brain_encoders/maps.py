"""Maps of the brain to look at: pages to turn it around in, and which of several feature spaces each unit prefers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import Colormap, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from apps.brain_encoders.space import SurfaceSpace, TableSpace, VolumeSpace
from shared.files import write_text
from shared.reports.cortex import cortex_picture
from shared.reports.style import INK, MUTED, PALETTE, styled_figure

__all__ = ["NONE", "has_place", "on_tile", "preference_figure", "write_map_page", "write_preference_page"]

NONE = -1
"""The preference of a unit that has none."""

SLICES = 8
_UNIT = "#d5dae0"
"""Of a unit without a preference."""


def has_place(space: SurfaceSpace | VolumeSpace | TableSpace) -> bool:
    """Whether its units can be shown on a brain: voxels, or vertices of a mesh whose first ones are those of fsaverage5."""
    return isinstance(space, VolumeSpace) or (isinstance(space, SurfaceSpace) and space.mesh in ("fsaverage5", "fsaverage6", "fsaverage"))


def write_map_page(path: Path, values: NDArray[np.floating], space: SurfaceSpace | VolumeSpace | TableSpace, *, title: str) -> Path | None:
    """nilearn's viewer of a map of correlations [V], everything inside; None where there is no mesh or volume to show it on."""
    page = _viewer(values, space, title=title, colormap="RdBu_r", threshold=0.05, limits=None)
    if page is None:
        return None
    write_text(path, page)
    return path


def write_preference_page(
    path: Path, preferred: NDArray[np.intp], names: Sequence[str], space: SurfaceSpace | VolumeSpace | TableSpace
) -> Path | None:
    """As ``write_map_page``, of the preference [V] (an index of ``names``, or NONE), with a legend; None also if all have NONE."""
    if (preferred == NONE).all():
        return None
    values = preferred + 1.0  # the viewer shows nothing at 0
    page = _viewer(values, space, title="", colormap=_colormap(len(names)), threshold=0.5, limits=(1, len(names)))
    if page is None:
        return None
    rows = "".join(
        f'<div><span style="display:inline-block;width:0.8em;height:0.8em;margin-right:0.5em;background:{colour}"></span>'
        f"{html.escape(name)}</div>"
        for name, colour in zip(names, PALETTE, strict=False)
    )
    legend = (
        '<div style="position:absolute;top:1em;left:1em;z-index:9;padding:0.6em 0.9em;background:white;color:#1f2933;'
        f'font:14px/1.6 sans-serif;opacity:0.95"><b>preferred space</b>{rows}</div>'
    )
    write_text(path, page.replace("</body>", f"{legend}</body>"))
    return path


def preference_figure(preferred: NDArray[np.intp], names: Sequence[str], space: SurfaceSpace | VolumeSpace | TableSpace) -> Figure:
    """On the cortex, on slices of the volume, or, of units without a place, how many prefer each; with a legend.

    Args:
        preferred: [V], an index of ``names``, or NONE.
        names: at most as many as the palette has colours.
    """
    colours = PALETTE[: len(names)]
    if isinstance(space, SurfaceSpace) and has_place(space):
        left, right = space.fill(np.where(preferred == NONE, np.nan, preferred + 0.5))
        picture = cortex_picture(left, right, height=240, limit=len(names), colormap=_colormap(len(names)), symmetric=False)
        figure, (axis,) = styled_figure(width=7.2, height=7.2 * picture.shape[0] / picture.shape[1] + 0.4)
        axis.imshow(picture)
        axis.set_axis_off()
    elif isinstance(space, VolumeSpace):
        figure = _slices(space.fill(preferred.astype(np.float32)), space, colours)
    else:
        figure, (axis,) = styled_figure(height=1.0 + 0.35 * len(names))
        counts = [int((preferred == index).sum()) for index in range(len(names))]
        axis.barh(range(len(names)), counts, height=0.62, color=colours)
        axis.set_yticks(range(len(names)), names, color=INK)
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.set_xlabel(f"units that prefer it, of {len(preferred):,}")
        return figure
    handles = [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)]
    if isinstance(space, VolumeSpace):
        handles.append(Patch(color=_UNIT, label="not predicted"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9, labelcolor=INK)
    return figure


def on_tile(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """White around it up to the proportions of a report's gallery, 4 : 3; wider ones stay as they are."""
    height, width = picture.shape[:2]
    below = -height % 3
    beside = max(0, 4 * (height + below) // 3 - width)
    return np.pad(picture, [(0, below), (beside // 2, beside - beside // 2), (0, 0)], constant_values=255)


def _slices(whole: NDArray[np.float32], space: VolumeSpace, colours: Sequence[str]) -> Figure:
    """Axial slices seen from above, the person's left on the left."""
    import nibabel as nib

    turned = nib.as_closest_canonical(nib.Nifti1Image(whole, space.affine))
    volume = np.asarray(turned.dataobj)
    filled = np.flatnonzero(np.isfinite(volume).any(axis=(0, 1)))
    shown = filled[np.unique(np.linspace(0, len(filled) - 1, min(SLICES, len(filled))).round().astype(int))]
    inside = np.isfinite(volume).any(axis=2)
    box = tuple(slice(max(0, int(along.min()) - 1), int(along.max()) + 2) for along in np.nonzero(inside))
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = styled_figure(width=7.2, height=0.6 + 2.0 * rows, rows=rows, columns=columns)
    palette = ListedColormap([to_rgb(_UNIT), *map(to_rgb, colours)])
    for axis in axes:
        axis.set_axis_off()
    for axis, index in zip(axes, shown, strict=False):
        part = np.ma.masked_invalid(volume[(*box, index)].T[::-1])
        axis.imshow(part, cmap=palette, vmin=NONE - 0.5, vmax=len(colours) - 0.5, interpolation="nearest")
        axis.set_title(f"z = {(turned.affine @ [0, 0, index, 1])[2]:g} mm", fontsize=8, color=MUTED)
    return figure


def _viewer(
    values: NDArray[np.floating],
    space: SurfaceSpace | VolumeSpace | TableSpace,
    *,
    title: str,
    colormap: str | Colormap,
    threshold: float,
    limits: tuple[float, float] | None,
) -> str | None:
    """The page; ``limits`` are those of a map without negative values."""
    from nilearn import plotting

    scale = {"symmetric_cmap": False, "vmin": limits[0], "vmax": limits[1], "colorbar": False} if limits else {}
    if isinstance(space, VolumeSpace):
        import nibabel as nib

        image = nib.Nifti1Image(np.nan_to_num(space.fill(values)), space.affine)
        nearest = {"resampling_interpolation": "nearest"} if limits else {}
        return plotting.view_img(
            image, threshold=threshold, title=title or None, black_bg=False, cmap=colormap, **nearest, **scale
        ).get_standalone()
    if isinstance(space, SurfaceSpace) and has_place(space):
        from nilearn.datasets import load_fsaverage
        from nilearn.surface import SurfaceImage

        left, right = (np.nan_to_num(side[:10242]) for side in space.fill(values))
        mesh = load_fsaverage("fsaverage5")["inflated"]
        image = SurfaceImage(mesh=mesh, data={"left": left, "right": right})
        scale = scale or {"vmax": 1}
        return plotting.view_surf(
            surf_mesh=mesh, surf_map=image, hemi="both", threshold=threshold, title=title or None, cmap=colormap, **scale
        ).get_standalone()
    return None


def _colormap(count: int) -> ListedColormap:
    return ListedColormap([to_rgb(colour) for colour in PALETTE[:count]])
