"""Ridge in its forms, delays, ceilings and scores of brain encoders: what himalaya, voxelwise tutorials, Net2Brain and scripts answered."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.parity.fixture import Fixture

__all__ = ["matches", "run"]

Arrays = dict[str, np.ndarray]
Runner = Callable[[Fixture, Arrays], Arrays]


def matches(fixture: Fixture) -> bool:
    return fixture.system == "brain_encoders" and _runner(fixture) is not None


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    runner = _runner(fixture)
    assert runner is not None, "run is only called where matches said yes"
    return runner(fixture, inputs)


def _runner(fixture: Fixture) -> Runner | None:
    names = {expected.name for expected in fixture.expected}
    runners: dict[str, Runner] = {
        "conservative_alphas": _ridge,
        "dual_coef": _kernel_ridge,
        "deltas": _banded,
        "gammas": _dirichlet,
        "l2_neg_loss": _scores,
        "z": _zscore,
        "ncsnr": _noise_ceiling,
        "normalised": _noise_normalised,
        "two_v_two": _two_v_two,
        "stacked_r2": _stacking,
        "vpa2_R1": _partition,
        "q_bh": _permutations,
    }
    if set(fixture.config) == {"delays_a", "delays_b"}:
        return _delays
    return next((runner for name, runner in runners.items() if name in names), None)


def _mixed(inputs: Arrays) -> Arrays:
    """X and Y = X W / sqrt(p) + s E, float32, with noise that grows from target to target."""
    scale = np.logspace(-1, 1.5, inputs["W"].shape[1]).astype(np.float32)
    return {"X": inputs["X"], "Y": (inputs["X"] @ inputs["W"] / np.sqrt(inputs["X"].shape[1]) + scale * inputs["E"]).astype(np.float32)}


def _grid(text: str) -> np.ndarray:
    """From "logspace(-2, 4, 13)"."""
    low, high, count = text.removeprefix("logspace(").removesuffix(")").split(",")
    return np.logspace(float(low), float(high), int(count))


def _ridge(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.encoding.ridge import fit_ridge
    from shared.metrics.encoding import r2

    data, n, alphas = _mixed(inputs), fixture.config["n_train"], _grid(fixture.config["alphas"])
    x, y = data["X"], data["Y"]
    fit = fit_ridge(x[:n], y[:n], alphas=alphas)
    common = fit_ridge(x[:n], y[:n], alphas=alphas, choice="common", intercept=False)
    conservative = fit_ridge(x[:n], y[:n], alphas=alphas, choice="conservative", intercept=False)
    prediction = fit.predict(x[n:])
    return {
        "best_alphas": fit.alphas,
        "coef": fit.coefficients,
        "intercept": fit.intercept,
        "cv_scores": fit.scores,
        "prediction": prediction,
        "r2": r2(y[n:], prediction),
        "global_alpha": common.alphas,
        "global_coef": common.coefficients,
        "conservative_alphas": conservative.alphas,
    }


def _kernel_ridge(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.encoding.ridge import fit_kernel_ridge, fit_ridge

    data, n, alphas = _mixed(inputs), fixture.config["n_train"], _grid(fixture.config["alphas"])
    x, y = data["X"], data["Y"]
    fit = fit_kernel_ridge(x[:n] @ x[:n].T, y[:n], alphas=alphas)
    primal = fit_ridge(x[:n], y[:n], alphas=alphas)
    return {
        "best_alphas": fit.alphas,
        "dual_coef": fit.dual,
        "intercept": primal.intercept,
        "cv_scores": fit.scores,
        "prediction": fit.predict(x[n:] @ x[:n].T),
        "primal_coef": primal.coefficients,
    }


def _banded(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.encoding.banded import fit_banded_ridge
    from shared.encoding.splits import contiguous_splits
    from shared.metrics.encoding import r2
    from shared.metrics.variance import correlation_split, product_measure, relative_weights

    sizes, n = fixture.config["group_sizes"], fixture.config["n_train"]
    weights = inputs["W"].copy()
    band = np.repeat(np.arange(len(sizes)), sizes)
    for target in range(weights.shape[1]):
        weights[band != target % len(sizes), target] *= 0.1
    x = inputs["X"]
    y = (x @ weights / np.sqrt(x.shape[1]) + 0.4 * inputs["E"]).astype(np.float32)
    x, y = x - x[:n].mean(axis=0), y - y[:n].mean(axis=0)
    spaces = {str(index): part for index, part in enumerate(np.split(x, np.cumsum(sizes)[:-1], axis=1))}
    fit = fit_banded_ridge(
        {name: space[:n] for name, space in spaces.items()},
        y[:n],
        alphas=_grid(fixture.config["alphas"]),
        splits=contiguous_splits(n, 4),
        shares=inputs["gammas"],
        intercept=False,
    )
    tests = {name: space[n:] for name, space in spaces.items()}
    split, truth = fit.split(tests), y[n:]
    centred, zero_mean = split - split.mean(axis=1, keepdims=True), truth - truth.mean(axis=0)
    return {
        "deltas": fit.deltas,
        "coef": np.concatenate(list(fit.coefficients.values())),
        "cv_scores": fit.search,
        "best_gamma_index": fit.search.argmax(axis=0),
        "prediction": fit.predict(tests),
        "split_prediction": split,
        "r2": r2(truth, fit.predict(tests)),
        "r2_split": product_measure(truth, split),
        "split_product": product_measure(zero_mean, centred),
        "split_product_nocorr": product_measure(zero_mean, centred, crossed=False),
        "split_svd": relative_weights(zero_mean, centred),
        "split_corr": correlation_split(zero_mean, centred),
    }


def _dirichlet(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.encoding.banded import dirichlet_samples

    config = fixture.config
    concentration = [float(value) for value in config["concentration"]]
    samples = dirichlet_samples(config["n_samples"], config["n_kernels"], concentration=concentration, seed=config["random_state"])
    return {"gammas": samples}


def _scores(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.metrics.encoding import negative_mse, pearson, r2

    truth = inputs["y_true"].copy()
    predictions = (0.6 * truth + inputs["y_pred"]).astype(np.float32)
    truth[:, 0] = 2.0
    return {
        "l2_neg_loss": negative_mse(truth, predictions),
        "r2": r2(truth, predictions),
        "correlation": pearson(truth, predictions),
        "r2_2d": r2(truth, predictions[0]),
        "correlation_2d": pearson(truth, predictions[0]),
    }


def _delays(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.encoding.delays import delay

    return {name: delay(inputs["X"], fixture.config[f"delays_{name}"]) for name in ("a", "b")}


def _zscore(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.encoding.runs import run_labels, zscore_runs

    borders = [*fixture.config["run_onsets"], len(inputs["X"])]
    return {"z": zscore_runs(inputs["X"], run_labels(np.diff(borders).tolist()))}


def _noise_ceiling(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.metrics.noise_ceiling import (
        explainable_variance,
        noise_ceiling,
        nsd_signal_to_noise,
        signal_to_noise,
        spearman_brown,
        split_half,
    )

    scale = np.linspace(0.3, 4, inputs["signal"].shape[1])
    data = inputs["signal"] + scale * inputs["noise"]
    found, nsd = signal_to_noise(data), nsd_signal_to_noise(data)
    one, two, three = fixture.config["fraction_counts"]
    half = split_half(data[::2], data[1::2])
    return {
        "explainable_variance": explainable_variance(data),
        "explainable_variance_biased": explainable_variance(data, corrected=False),
        "noisevar": found.noise_variance,
        "signalvar": found.signal_variance,
        "ncsnr": found.ratio,
        "nc_all": 100 * noise_ceiling(found.ratio, len(data)),
        "nc_single": 100 * noise_ceiling(found.ratio, 1),
        "nsd_ncsnr": nsd.ratio,
        "nc_fraction": noise_ceiling(found.ratio, {1: one, 2: two, 3: three}),
        "split_half": half,
        "spearman_brown": spearman_brown(half),
    }


def _noise_normalised(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.metrics.encoding import pearson, published_noise_normalised

    truth, ceiling = inputs["true"], inputs["nc"].copy()
    prediction = truth + np.linspace(0.2, 4, truth.shape[1]) * inputs["noise"]
    prediction[:, 1] *= -1
    ceiling[2] = 0
    found = pearson(truth, prediction)
    normalised = published_noise_normalised(found, ceiling)
    return {"pearson": found, "normalised": normalised, "mean": normalised.mean(), "median": np.median(normalised)}


def _two_v_two(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.encoding.gcv import fit_ridge_gcv
    from shared.encoding.ridge import fit_ridge
    from shared.encoding.splits import contiguous_splits
    from shared.metrics.encoding import pearson_over_voxels, r2, two_v_two

    data, n = _mixed(inputs), fixture.config["n_train"]
    x, y = data["X"].astype(np.float64), data["Y"].astype(np.float64)
    alphas = 10.0 ** np.arange(-6, 10)
    splits = contiguous_splits(n, fixture.config["inner_folds"])
    fit = fit_ridge(x[:n], y[:n], alphas=alphas, splits=splits, score="r2", intercept=False)
    gcv = fit_ridge_gcv(x[:n], y[:n], alphas=alphas, intercept=False)
    prediction = fit.predict(x[n:])
    return {
        "weights": fit.coefficients,
        "lambdas_log10": np.log10(fit.alphas),
        "prediction": prediction,
        "two_v_two": two_v_two(y[n:], prediction),
        "pearson_rows": pearson_over_voxels(y[n:], prediction).mean(),
        "gcv_weights": gcv.coefficients,
        "gcv_lambdas_log10": np.log10(gcv.alphas),
        "R2": r2(y[n:], prediction),
    }


def _scored(part: np.ndarray) -> np.ndarray:
    return (part - part.mean(axis=0)) / part.std(axis=0)


def _published_ridge(x: np.ndarray, y: np.ndarray, folds: int) -> np.ndarray:
    """Weights at the penalties that Net2Brain chooses: it z-scores training and validation samples of each fold by themselves."""
    from shared.encoding.splits import contiguous_splits
    from shared.metrics.encoding import r2

    alphas = 10.0 ** np.arange(-6, 10)

    def weights(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
        penalty = alphas[:, None, None] * np.eye(features.shape[1])
        return np.linalg.solve(features.T @ features + penalty, features.T @ targets)

    judged = np.zeros((len(alphas), y.shape[1]))
    for rows, left_out in contiguous_splits(len(x), folds):
        judged += r2(_scored(y[left_out]), _scored(x[left_out]) @ weights(_scored(x[rows]), _scored(y[rows])))
    return weights(x, y)[judged.argmax(axis=0), :, np.arange(y.shape[1])].T


def _stacking(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.encoding.splits import contiguous_splits
    from shared.encoding.stacking import stacking_weights
    from shared.metrics.encoding import r2

    n, mix, folds = fixture.config["n_train"], np.asarray(fixture.config["mix"]), fixture.config["inner_folds"]
    spaces = [inputs[f"X{index}"].astype(np.float64) for index in range(mix.shape[1])]
    signal = sum(mix[:, i] * (space @ inputs[f"W{i}"] / np.sqrt(space.shape[1])) for i, space in enumerate(spaces))
    y = signal + 0.5 * inputs["E"]
    fitted, truth = _scored(y[:n]), _scored(y[n:])
    tests, held_out = np.empty((len(spaces), *truth.shape)), np.empty((len(spaces), *fitted.shape))
    for index, space in enumerate(spaces):
        train, test = _scored(space[:n]), _scored(space[n:])
        for rows, left_out in contiguous_splits(n, folds):
            held_out[index, left_out] = _scored(train[left_out]) @ _published_ridge(_scored(train[rows]), _scored(fitted[rows]), folds)
        tests[index] = test @ _published_ridge(train, fitted, folds)
    weights = stacking_weights(fitted - held_out)
    weighted = tests * weights.T[:, None, :]
    return {
        "r2": r2(truth, tests),
        "stacked_r2": r2(truth, weighted.sum(axis=0)),
        "r2_weighted": r2(truth, weighted),
        "r2_train": r2(fitted, held_out),
        "stacked_train_r2": r2(fitted, (held_out * weights.T[:, None, :]).sum(axis=0)),
        "weights": weights,
    }


def _partition(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.metrics.variance import model_variances, ordinary_r2, variance_partition

    v0, v1, v2, v3, error = (inputs[name] for name in ("v0", "v1", "v2", "v3", "e"))
    predictors = {"1": v0, "2": 0.5 * v0 + v1, "3": 0.3 * v1 + v2, "4": v3 + 0.4 * v0}
    target = predictors["1"] + 0.7 * predictors["2"] + 0.5 * predictors["3"] + 0.2 * predictors["4"] + error
    answers: Arrays = {}
    for size in (2, 3, 4):
        spaces = [str(index + 1) for index in range(size)]
        variances = model_variances(spaces, lambda chosen: ordinary_r2(np.stack([predictors[name] for name in chosen], axis=1), target))
        for chosen, value in variances.items():
            answers[f"vpa{size}_R{''.join(sorted(chosen))}"] = value
        for chosen, value in variance_partition(variances).items():
            answers[f"vpa{size}_y{''.join(sorted(chosen))}"] = value
    return answers


def _permutations(fixture: Fixture, inputs: Arrays) -> Arrays:
    from shared.metrics.encoding import pearson
    from shared.metrics.permutation import false_discovery_rate, permutation_test

    truth, prediction = inputs["true"], inputs["noise"].copy()
    half = truth.shape[1] // 2
    prediction[:, :half] += 0.6 * truth[:, :half]
    p = permutation_test(truth, prediction, orders=inputs["block_permutations"], block=fixture.config["block"])
    return {
        "observed": pearson(truth, prediction),
        "p": p,
        "q_bh": false_discovery_rate(p),
        "q_by": false_discovery_rate(p, any_dependence=True),
    }
