"""Ridge with a penalty per voxel beside himalaya and scikit-learn, and beside the multiplications that nobody can spare.

    pytest tests/benchmarks/test_ridge.py --benchmark-only               small sizes, a minute or two
    pytest tests/benchmarks/test_ridge.py --benchmark-only --full-size   768 and 4,096 features, 5,000 and 20,000 voxels, too

The first way of a group is the floor: as many multiplications and additions as decomposing, rotating, judging and fitting need (with an
eigendecomposition counted as 9 n^3), at the speed of this machine's products of matrices. The others' ratios to it are what they waste.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from sklearn.linear_model import RidgeCV as SklearnRidgeCV

from shared.encoding.ridge import fit_ridge

ALPHAS = np.logspace(-1, 5, 10)
FOLDS = 5
SMALL = {"600 x 96, 500 voxels": (600, 96, 500), "600 x 96, 4,000 voxels": (600, 96, 4000)}
SMALL |= {"600 x 900, 500 voxels": (600, 900, 500), "600 x 900, 4,000 voxels": (600, 900, 4000)}
FULL = {"2,000 x 768, 5,000 voxels": (2000, 768, 5000), "2,000 x 768, 20,000 voxels": (2000, 768, 20000)}
FULL |= {"2,000 x 4,096, 5,000 voxels": (2000, 4096, 5000), "2,000 x 4,096, 20,000 voxels": (2000, 4096, 20000)}
WAYS = (
    "floor",
    "fit_ridge",
    "himalaya RidgeCV, NumPy",
    "himalaya RidgeCV, torch",
    "himalaya KernelRidgeCV, torch",
    "scikit-learn, leave-one-out",
)


@cache
def problem(n: int, p: int, voxels: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((n, p), dtype=np.float32)
    weights = generator.standard_normal((p, voxels), dtype=np.float32) / np.float32(np.sqrt(p))
    noise = np.logspace(-1, 1.5, voxels, dtype=np.float32) * generator.standard_normal((n, voxels), dtype=np.float32)
    responses = features @ weights + noise
    return features - features.mean(axis=0), responses - responses.mean(axis=0)


def needed_flop(n: int, p: int, voxels: int) -> float:
    held_out = n / FOLDS
    train = n - held_out
    if p < n:
        fold = 2 * train * p**2 + 9 * p**3 + 2 * p * train * voxels + len(ALPHAS) * 2 * held_out * p * voxels
        return FOLDS * fold + 2 * n * p * voxels + 2 * p**2 * voxels
    fold = 9 * train**3 + 2 * train**2 * voxels + len(ALPHAS) * 2 * held_out * train * voxels
    return 2 * n**2 * p + FOLDS * fold + 9 * n**3 + 4 * n**2 * voxels + 2 * p * n * voxels


def multiply(flop: float) -> None:
    """So much of it, in products large enough to run at full speed."""
    side = 1000
    first, second, out = torch.ones(side, side), torch.ones(side, side), torch.empty(side, side)
    for _ in range(max(1, round(flop / (2 * side**3)))):
        torch.mm(first, second, out=out)


def by_himalaya(model: type, backend: str, features: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    module = set_backend(backend)
    solver = {"n_targets_batch": 5000, "warn": False} if model is RidgeCV else {"n_targets_batch": 5000}
    fit = model(alphas=ALPHAS.astype(np.float32), cv=FOLDS, fit_intercept=False, solver_params=solver)
    fit.fit(module.asarray(features), module.asarray(responses))
    coefficients = module.to_numpy(fit.coef_) if model is RidgeCV else None
    return module.to_numpy(fit.best_alphas_), coefficients


def by_fovea(features: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fit = fit_ridge(features, responses, alphas=ALPHAS, splits=FOLDS, intercept=False)
    return fit.alphas, fit.coefficients


@cache
def answer(n: int, p: int, voxels: int) -> tuple[np.ndarray, np.ndarray]:
    return by_fovea(*problem(n, p, voxels))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [*SMALL, *FULL])
def test_a_penalty_per_voxel(measure, request, size: str, way: str) -> None:
    if size in FULL and not request.config.getoption("--full-size"):
        pytest.skip("real sizes are measured with --full-size")
    shape = (SMALL | FULL)[size]
    features, responses = problem(*shape)

    ways = {
        "floor": lambda: multiply(needed_flop(*shape)),
        "fit_ridge": lambda: by_fovea(features, responses),
        "himalaya RidgeCV, NumPy": lambda: by_himalaya(RidgeCV, "numpy", features, responses),
        "himalaya RidgeCV, torch": lambda: by_himalaya(RidgeCV, "torch", features, responses),
        "himalaya KernelRidgeCV, torch": lambda: by_himalaya(KernelRidgeCV, "torch", features, responses),
        "scikit-learn, leave-one-out": lambda: SklearnRidgeCV(alphas=ALPHAS, fit_intercept=False, alpha_per_target=True).fit(
            features, responses
        ),
    }
    found: list[object] = []
    group = f"{size}, {len(ALPHAS)} penalties, {FOLDS} folds"
    measure(group, way, lambda: found.append(ways[way]()), images=shape[2], rounds=1 if size in FULL else 3)
    if way.startswith("himalaya"):
        alphas, coefficients = found[-1]
        own_alphas, own_coefficients = answer(*shape)
        # Both compute in float32; where two penalties score alike to its last digits, either may win.
        same = np.isclose(np.log10(alphas), np.log10(own_alphas), atol=1e-4)
        assert same.mean() > (0.999 if coefficients is not None else 0.99)  # more for kernels [n, n] that n > p leaves without full rank
        if coefficients is not None:
            # Rounding of float32: up to 2e-6 of himalaya's, 6e-7 of ours, against float64; there the two agree to 1e-12 (tests).
            assert np.abs(coefficients - own_coefficients)[:, same].max() < 3e-6


STREAM = """
import resource, sys
from pathlib import Path
import numpy as np
from shared.encoding.responses import ResponseFile
from shared.encoding.stream import stream_ridge
folder, voxels = Path(sys.argv[1]), int(sys.argv[2])
generator = np.random.default_rng(0)
features = generator.standard_normal((400, 128), dtype=np.float32)
table = np.lib.format.open_memmap(folder / "responses.npy", mode="w+", dtype=np.float32, shape=(voxels, 400))
for start in range(0, voxels, 1000):
    table[start : start + 1000] = generator.standard_normal((min(1000, voxels - start), 400), dtype=np.float32)
del table
responses = ResponseFile(folder / "responses.npy", voxels_first=True)
stream_ridge(features, responses, folder / "fit", alphas=np.logspace(0, 4, 5), voxels_at_once=1000)
"""


@pytest.mark.parametrize("voxels", [4000, 40000])
def test_memory_of_a_streamed_fit_does_not_grow_with_voxels(benchmark, tmp_path: Path, voxels: int) -> None:
    """Prints the peak memory of a process of its own: look at both lines."""
    program = STREAM + "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    command = [sys.executable, "-c", program, str(tmp_path), str(voxels)]
    done = benchmark.pedantic(lambda: subprocess.run(command, capture_output=True, text=True, check=True), rounds=1)
    benchmark.extra_info["peak MiB"] = int(done.stdout)
    print(f"\n{voxels} voxels: peak {done.stdout.strip()} MiB")
