"""Training: a readout on the features of a frozen backbone, by gradients or by ridge regression; then a bundle."""

from __future__ import annotations

import csv
import io
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apps.brain_encoders.config import TrainConfig
from apps.brain_encoders.data import Examples, Parts, check_pictures, divide, make_phantom, open_study, unreadable
from apps.brain_encoders.features import FeatureStore, backbone_of, fit_projection
from apps.brain_encoders.inference import Brain, BrainEncoderPredictor
from apps.brain_encoders.losses import hemisphere_loss
from apps.brain_encoders.model import BrainEncoder, LinearReadout, RidgeReadout, pooled
from apps.brain_encoders.report import write_training_report
from apps.brain_encoders.settings import Settings, build_readout, query_membership
from apps.brain_encoders.study import Study, content_key
from shared.bundle import provenance
from shared.encoding.ridge import fit_ridge
from shared.encoding.splits import grouped_splits
from shared.errors import UserError
from shared.files import write_text
from shared.metrics.encoding import pearson
from shared.training.config import FitConfig
from shared.training.fit import configure_optimizers, fit, new_run
from shared.training.loader import TrainingLoader

__all__ = ["EncoderTraining", "train"]

Batch = dict[str, Tensor]


class EncoderTraining(pl.LightningModule):
    """The readout alone is trained, and alone is in the checkpoints; the backbone is frozen, as published.

    Args:
        readout: features [B, C, h, w] to responses [B, V].
        hemispheres: units of each.
        penalty: factor of the linear readout's penalty.
        config: optimiser and schedule.
        backbone: what makes features of pictures, where batches hold pictures.
    """

    def __init__(
        self, readout: nn.Module, *, hemispheres: tuple[int, ...], penalty: float, config: FitConfig, backbone: nn.Module | None
    ) -> None:
        super().__init__()
        self.readout, self.hemispheres, self.penalty, self.config = readout, hemispheres, penalty, config
        self._backbone = (backbone,)  # in a tuple, so that it is no part of the module
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, stimulus: Tensor) -> Tensor:
        """Features [B, C, h, w], or pictures where there is a backbone, to responses [B, V]."""
        (backbone,) = self._backbone
        if backbone is not None:
            with torch.no_grad():
                stimulus = backbone.to(stimulus.device)(stimulus)
        return self.readout(stimulus)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """batch: "input" and "response" [B, V]."""
        loss = hemisphere_loss(self(batch["input"]).float(), batch["response"], self.hemispheres)
        if isinstance(self.readout, LinearReadout):
            loss = loss + self.penalty * self.readout.penalty(self.hemispheres)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}: the training has diverged. Lower fit.optimizer.lr."
            )
        self.log("loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["input"]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Keeps predictions, because a correlation is of all images."""
        self._seen.append((self(batch["input"]).float().cpu(), batch["response"].cpu()))

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over units of the correlation, by which the paper chooses the epoch, and the loss."""
        predicted, measured = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        correlation = float(np.nan_to_num(pearson(measured.numpy(), predicted.numpy())).mean())
        values = {"val_correlation": correlation, "val_loss": float(hemisphere_loss(predicted, measured, self.hemispheres))}
        self.log_dict(values, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """As the settings say."""
        return configure_optimizers(self, self.config)


def train(config: TrainConfig) -> None:
    """Fits an encoder and leaves a run folder with a bundle in ``model/``; see README.md of this app for the recipes."""
    folder = config.resume or config.output
    new_run(folder, config, resume=config.resume)
    if config.data.phantoms and not config.data.root.exists():
        print(f"{config.data.root}: making a phantom brain that has seen {config.data.phantoms} pictures")
        make_phantom(config.data.root, count=config.data.phantoms, seed=config.fit.seed)
    study = open_study(config.data)
    parts = divide(study, validation=config.data.validation, seed=config.fit.seed)
    regions = ", ".join(study.regions) or "no regions"
    print(f"{study.root}: {study.units:,} units ({regions}); {len(parts.train)} images to fit, {len(parts.validation)} to validate on")

    backbone = backbone_of(config.backbone)
    store = FeatureStore(backbone, config.backbone, folder=config.data.cache)
    check_pictures(store.missing([*parts.train, *parts.validation]))
    test = [study.images[index] for index in study.part(test=True)]
    bad = unreadable(test)
    if bad:
        print(f"{len(bad)} of {len(test)} test pictures cannot be read, and evaluate will leave them out: {next(iter(bad.values()))}")
    store.extract([*parts.train, *parts.validation], batch_size=config.fit.batch_size)
    if config.model.name == "ridge":
        settings, readout, history, facts = _fit_ridge(config, study, parts, store)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_text(folder / "metrics.csv", text.getvalue())
    else:
        settings, readout, leads, facts = _fit_by_gradients(config, study, parts, store)
        if not leads:
            return
    network = BrainEncoder(backbone=backbone.cpu(), readout=readout).eval()
    correlation = pearson(parts.validation_responses, _predicted(readout, store, parts))
    metrics = {"correlation": float(np.nan_to_num(correlation).mean()), "median_correlation": float(np.median(np.nan_to_num(correlation)))}
    facts |= {
        "seed": config.fit.seed,
        "data": study.name,
        "data_sha256": study.fingerprint(),
        "images": [len(parts.train), len(parts.validation)],
    }
    fitted = [content_key(path) for path in (*parts.train, *parts.validation)]
    brain = Brain(study.space, study.regions, correlation.astype(np.float32), fitted)
    predictor = BrainEncoderPredictor(network, settings, brain, facts=provenance(**facts, metrics=metrics))
    predictor.save_bundle(folder / "model")
    report = write_training_report(folder, predictor, study, parts, metrics)
    print(f"validation correlation {metrics['correlation']:.3f} (mean over {study.units:,} units)")
    print(f"Bundle: {folder / 'model'}; to look at: {report}")


def _fit_by_gradients(
    config: TrainConfig, study: Study, parts: Parts, store: FeatureStore
) -> tuple[Settings, nn.Module, bool, dict[str, Any]]:
    queries, membership = query_membership(config.model, study.space, study.regions)
    shape = tuple(store.read(parts.train[0]).shape)
    settings = Settings(model=config.model, backbone=config.backbone, features=shape, hemispheres=study.space.hemispheres, queries=queries)
    pl.seed_everything(config.fit.seed, verbose=False)
    readout = build_readout(settings, membership)
    # The readout starts at the mean response, which else takes it many steps.
    with torch.no_grad():
        _bias(readout).copy_(torch.from_numpy(parts.train_responses.mean(axis=0)))
    module = EncoderTraining(
        readout,
        hemispheres=settings.hemispheres,
        penalty=config.loss.penalty,
        config=config.fit,
        backbone=store.backbone if store.folder is None else None,
    )
    examples = Examples(parts.train, parts.train_responses, store, config.backbone)
    loader = TrainingLoader(examples, batch_size=config.fit.batch_size, seed=config.fit.seed, workers=config.fit.workers)
    held_out = Examples(parts.validation, parts.validation_responses, store, config.backbone)
    checks = DataLoader(held_out, batch_size=config.fit.batch_size, num_workers=config.fit.workers)
    folder = config.resume or config.output
    run = fit(module, loader, checks, config.fit, folder=folder, monitor="val_correlation", resume=config.resume is not None)
    return settings, module.readout.cpu().eval(), run.leads, {"best_epoch": run.epoch}


def _fit_ridge(
    config: TrainConfig, study: Study, parts: Parts, store: FeatureStore
) -> tuple[Settings, nn.Module, list[dict[str, float]], dict[str, Any]]:
    ridge = config.ridge
    first = store.read(parts.train[0])
    places = (min(ridge.pool, first.shape[1]), min(ridge.pool, first.shape[2]))
    vectors = torch.cat([pooled(batch, places) for batch in store.batches(parts.train)]).numpy()
    projection = fit_projection(vectors, kind=ridge.projection, components=ridge.components, seed=config.fit.seed)
    splits = grouped_splits([path.name for path in parts.train], ridge.folds, seed=config.fit.seed)
    found = fit_ridge(projection(vectors), parts.train_responses, alphas=ridge.alphas, splits=splits)
    settings = Settings(
        model=config.model,
        backbone=config.backbone,
        features=tuple(first.shape),
        hemispheres=study.space.hemispheres,
        pool=ridge.pool,
        components=0 if projection.components is None else len(projection.components),
    )
    readout = build_readout(settings, None)
    assert isinstance(readout, RidgeReadout)
    state = {"centre": projection.centre, "scale": projection.scale}
    state |= {"readout.weight": found.coefficients.T, "readout.bias": found.intercept}
    state["components"] = np.empty(0, np.float32) if projection.components is None else projection.components
    readout.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)) for name, value in state.items()})
    used, counts = np.unique(found.alphas, return_counts=True)
    print(f"ridge: penalties {', '.join(f'{alpha:g} ({count:,} units)' for alpha, count in zip(used, counts, strict=True))}")
    edges = np.isin(found.alphas, [min(ridge.alphas), max(ridge.alphas)]).mean()
    history = [{"epoch": 0, "cross_validated_mse": float(-np.mean(found.scores)), "alpha_at_the_edge": float(edges)}]
    return settings, readout.eval(), history, {"alphas": {f"{alpha:g}": int(count) for alpha, count in zip(used, counts, strict=True)}}


def _bias(readout: Any) -> Tensor:
    """The mean that the units start from."""
    return readout.readout.bias


@torch.inference_mode()
def _predicted(readout: nn.Module, store: FeatureStore, parts: Parts) -> NDArray[np.float32]:
    """[validation, V]"""
    return torch.cat([readout(batch) for batch in store.batches(parts.validation)]).float().numpy()
