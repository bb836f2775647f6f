"""`voxelwise` with as many stimuli, features, penalties and folds as a whole brain has; of its voxels, a few blocks.

    pytest tests/benchmarks/test_whole_brain.py --benchmark-only --full-size -s      ten minutes

Blocks cost the same however many there are, and so does memory: prints the peak, and when each block was written.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

STIMULI, FEATURES, BLOCK, BLOCKS, BRAIN = 9000, 4096, 4096, 3, 320_000
ALPHAS = np.logspace(-2, 7, 20).round(4)


def write_tables(folder: Path) -> None:
    """Features of falling variance, and responses to them under more and less noise, voxels first."""
    generator = np.random.default_rng(0)
    spread = np.logspace(0, -1.5, FEATURES, dtype=np.float32)
    features = generator.standard_normal((STIMULI, FEATURES), dtype=np.float32) * spread
    np.save(folder / "features.npy", features)
    shape = (BLOCK * BLOCKS, STIMULI)
    table = np.lib.format.open_memmap(folder / "responses.npy", mode="w+", dtype=np.float32, shape=shape)
    at_once = 512
    noise = np.logspace(-1, 1, at_once, dtype=np.float32)[:, None]
    for start in range(0, len(table), at_once):
        signal = (features @ generator.standard_normal((FEATURES, at_once), dtype=np.float32)).T
        signal /= signal.std(axis=1, keepdims=True)
        table[start : start + at_once] = signal + noise * generator.standard_normal(signal.shape, dtype=np.float32)


def test_blocks_of_a_whole_brain(benchmark, request, tmp_path: Path) -> None:
    if not request.config.getoption("--full-size"):
        pytest.skip("a whole brain's blocks are measured with --full-size")
    write_tables(tmp_path)
    command = [sys.executable, "-m", "apps.brain_encoders", "voxelwise", "--voxels_first", "true", "--voxels_at_once", str(BLOCK)]
    command += ["--features", str(tmp_path / "features.npy"), "--responses", str(tmp_path / "responses.npy")]
    command += ["--alphas", json.dumps(ALPHAS.tolist()), "--output", str(tmp_path / "fit")]
    start, peak = time.time(), 0

    def run() -> None:
        nonlocal peak
        with subprocess.Popen(command) as process:
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                peak = max(peak, watched.memory_info().rss)
                time.sleep(0.1)
        assert process.returncode == 0

    benchmark.pedantic(run, rounds=1)
    written = sorted(path.stat().st_mtime - start for path in (tmp_path / "fit" / "blocks").iterdir())
    steps = np.diff(written)
    hours = (written[0] + (BRAIN / BLOCK - 1) * steps.mean()) / 3600
    later = ", ".join(f"{step:.0f}" for step in steps)
    print(f"\npeak {peak / 2**20:.0f} MiB; first block after {written[0]:.0f} s, others in {later} s")
    print(f"{BRAIN:,} voxels at this speed: {hours:.1f} hours")
