"""Voxel blocks over Ray leave what this process alone leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.encoding.responses import ResponseFile
from shared.encoding.stream import stream_ridge
from shared.errors import InputError, UserError

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow

ALPHAS = np.logspace(0, 4, 5)


def test_ray_gives_the_same_fit_and_says_what_stopped_a_worker(tmp_path: Path) -> None:
    from shared.scaling.blocks import ray_blocks

    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 8)).astype(np.float32)
    np.save(tmp_path / "responses.npy", (features @ generator.normal(size=(8, 12)) + generator.normal(size=(60, 12))).astype(np.float32))
    responses = ResponseFile(tmp_path / "responses.npy")
    here = stream_ridge(features, responses, tmp_path / "here", alphas=ALPHAS, voxels_at_once=5)
    over_ray = stream_ridge(features, responses, tmp_path / "ray", alphas=ALPHAS, voxels_at_once=5, engine=ray_blocks(2))
    np.testing.assert_array_equal(over_ray.alphas, here.alphas)
    np.testing.assert_allclose(over_ray.scores, here.scores, rtol=1e-5)  # float32, and another number of threads
    (tmp_path / "gone.npy").write_bytes((tmp_path / "responses.npy").read_bytes())

    class Vanishing(ResponseFile):
        def read(self, start: int, stop: int) -> np.ndarray:
            raise InputError(f"{self.path}: there is no such file.")

    with pytest.raises(UserError, match=r"gone\.npy: there is no such file"):
        stream_ridge(features, Vanishing(tmp_path / "gone.npy"), tmp_path / "no", alphas=ALPHAS, engine=ray_blocks(1))


def test_a_cluster_that_does_not_answer_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.scaling.cluster import cluster

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"RAY_ADDRESS: nobody answers at 127\.0\.0\.1:9"), cluster():
        pass
