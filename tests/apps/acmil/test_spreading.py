"""Slides spread over Ray leave what this process alone leaves, and a broken one is listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from apps.acmil.bags import read_bag, read_tiles
from shared.phantoms.slide import slide_phantom, write_pyramid
from tests.commands import Answer

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.thorough


@pytest.fixture
def cluster() -> Iterator[None]:
    """Started once for both verbs."""
    root = str(Path(__file__).parents[3])
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    yield
    ray.shutdown()


def test_ray_leaves_what_the_local_engine_leaves(cluster: None, acmil: Callable[..., Answer], tmp_path: Path) -> None:
    for seed in (1, 2):
        write_pyramid(tmp_path / "slides" / f"{seed}.tiff", slide_phantom(seed, width=640, height=640).image, mpp=0.5)
    (tmp_path / "slides" / "letter.svs").write_text("Dear colleague,")
    for verb in ("tile", "features"):
        words = [verb, "--input", "slides", "--tiling.tile_px", "64", "--device", "cpu", "--output"]
        here, spread = acmil(*words, f"{verb}_here"), acmil(*words, f"{verb}_ray", "--engine", "ray", "--workers", "1")
        assert (here.code, spread.code) == (3, 3), spread.err
        for name in ("predictions.jsonl", "failures.csv"):
            lines = [sorted((tmp_path / f"{verb}_{engine}" / name).read_text().splitlines()) for engine in ("here", "ray")]
            assert lines[0] == lines[1]
            assert len(lines[0]) == 2  # the two slides; the heading and the letter
    for name in ("1.h5", "2.h5"):
        np.testing.assert_array_equal(
            read_tiles(tmp_path / "tile_ray" / name).coordinates, read_tiles(tmp_path / "tile_here" / name).coordinates
        )
        bags = [read_bag(tmp_path / f"features_{engine}" / name) for engine in ("here", "ray")]
        np.testing.assert_array_equal(bags[0].coordinates, bags[1].coordinates)
        np.testing.assert_allclose(bags[0].features, bags[1].features, atol=1e-5)  # another number of threads
