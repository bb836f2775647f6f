"""Training: from labelled bags to a bundle."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apps.acmil.bags import BagFile, list_bags, read_bag
from apps.acmil.config import StopConfig, TrainConfig
from apps.acmil.data import Batch, LabelledSlide, TrainingBags, ValidationBags, bags_of, describe, labelled_slides, read_labels, usable_bags
from apps.acmil.folds import Parts, divide
from apps.acmil.inference import ACMILPredictor, Settings
from apps.acmil.losses import negative_entropy, slide_loss
from apps.acmil.metrics import slide_scores
from apps.acmil.phantoms import bags_of_slides, write_labelled_slides
from apps.acmil.report import write_training_report
from shared.bundle import provenance
from shared.errors import UserError
from shared.files import write_text
from shared.training.config import FitConfig
from shared.training.fit import configure_optimizers, fit, new_run
from shared.training.loader import TrainingLoader

__all__ = ["MILTraining", "Patience", "prototypes_of", "train"]


class MILTraining(pl.LightningModule):
    """One slide at a time, as published: the sum of the network's losses.

    Args:
        network: see ``networks.Network``.
        classes: how many.
        config: optimiser and schedule.
    """

    def __init__(self, network: nn.Module, *, classes: int, config: FitConfig) -> None:
        super().__init__()
        self.network, self.classes, self.config = network, classes, config
        self.seen: list[tuple[list[float], int]] = []
        """Probabilities and label of each validation slide so far."""

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """batch: "bag" [1, N, D], "label" [1]."""
        losses = self.network.losses(batch["bag"][0], batch["label"][0])
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}: the training has diverged. Lower fit.optimizer.lr."
            )
        named = {f"loss_{name}": value.detach() for name, value in losses.items()} if len(losses) > 1 else {}
        self.log("loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True, batch_size=1, sync_dist=True)
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """batch: "bag" [N, D], "label". Logs the slide's cross-entropy and how even its attention is (0: one tile, 1: all alike)."""
        answer = self.network(batch["bag"])
        logits, attention = answer.logits.float(), answer.attention[None].float()
        evenness = -negative_entropy(attention) / max(np.log(attention.shape[-1]), 1e-9)
        values = {"val_loss": slide_loss(logits, batch["label"]), "val_evenness": evenness}
        self.log_dict(values, batch_size=1, sync_dist=True)
        self.seen.append((torch.softmax(logits, -1).tolist(), int(batch["label"])))

    def on_validation_epoch_end(self) -> None:
        """Logs AUC, macro F1 and balanced accuracy of all validation slides, and ``val_score``: the sum of the first two."""
        seen, self.seen = self.seen, []
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, seen)
            seen = [one for part in parts for one in part]
        scores = slide_scores([probabilities for probabilities, _ in seen], [label for _, label in seen])
        auc = 0.5 if scores.auc is None else scores.auc
        values = {"val_auc": auc, "val_f1": scores.f1_macro, "val_balanced_accuracy": scores.balanced_accuracy}
        self.log_dict({**values, "val_score": auc + scores.f1_macro}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """As the settings say."""
        return configure_optimizers(self, self.config)


class Patience(pl.Callback):
    """Stops a training that has not become better for some epochs; its count is in the checkpoints."""

    def __init__(self, config: StopConfig, *, monitor: str, maximise: bool) -> None:
        self.config, self.monitor, self.sign = config, monitor, 1.0 if maximise else -1.0
        self.best, self.waited = -float("inf"), 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts one epoch."""
        value = self.sign * float(trainer.callback_metrics[self.monitor])
        self.best, self.waited = (value, 0) if value > self.best else (self.best, self.waited + 1)
        if self.config.patience and self.waited >= self.config.patience and trainer.current_epoch + 1 >= self.config.not_before:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The best value and how long ago it was."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As ``state_dict`` gave it."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]


def train(config: TrainConfig) -> None:
    """Trains and leaves a run folder with a bundle in ``model/``; see README.md of this app for the recipes."""
    folder = config.resume or config.output
    if config.fit.batch_size != 1:
        raise UserError(f"fit.batch_size is {config.fit.batch_size}: slides differ in size, so it must be 1. Use fit.accumulate instead.")
    new_run(folder, config, resume=config.resume)
    slides, classes = _slides(config, folder)
    parts = divide(slides, config.data, seed=config.fit.seed)
    width, encoder = usable_bags(slides)
    held = f", {len(parts.test)} held out" if parts.test else ""
    print(f"{len(parts.train)} slides to train on, {len(parts.validation)} to validate on{held}; classes: {', '.join(classes)}")

    pl.seed_everything(config.fit.seed, verbose=False)
    known = bool(encoder) and encoder.startswith(config.encoder.name)
    settings = Settings(
        model=config.model,
        classes=classes,
        features=width,
        encoder=encoder,
        tiling=config.tiling if known else None,
        encoding=config.encoder if known else None,
    )
    network = settings.build()
    if config.model.name == "ibmil":
        network.prototypes.copy_(prototypes_of(config, parts.train))
    loader = TrainingLoader(
        TrainingBags(parts.train, balance=config.data.balance, max_instances=config.data.max_instances),
        batch_size=1,
        seed=config.fit.seed,
        workers=config.fit.workers,
    )
    checks = DataLoader(ValidationBags(parts.validation), batch_size=None, num_workers=config.fit.workers)
    module = MILTraining(network, classes=len(classes), config=config.fit)
    monitor, maximise = ("val_score", True) if config.stop.select == "score" else ("val_loss", False)
    patience = Patience(config.stop, monitor=monitor, maximise=maximise)
    resuming = {"resume": config.resume is not None, "callbacks": [patience]}
    run = fit(module, loader, checks, config.fit, folder=folder, monitor=monitor, maximise=maximise, **resuming)

    if not run.leads:
        return
    predictor = ACMILPredictor(network, settings, device="auto")
    rows = {part: answers(predictor, getattr(parts, part)) for part in ("validation", "test") if getattr(parts, part)}
    metrics = {part: _figures(one) for part, one in rows.items()}
    facts = {"seed": config.fit.seed, **describe(config.data.root, slides), "best_epoch": run.epoch}
    facts |= {"slides": [len(parts.train), len(parts.validation), len(parts.test)], "metrics": metrics["validation"]}
    facts |= {"held_out": metrics["test"]} if "test" in metrics else {}
    predictor = ACMILPredictor(network, settings, facts=provenance(**facts), device="auto")
    predictor.save_bundle(folder / "model")
    write_text(folder / "slides.csv", _table(parts, rows, classes))
    report = write_training_report(folder, run, predictor, metrics, {part: len(getattr(parts, part)) for part in ("train", *rows)})
    said = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in metrics["validation"].items() if value is not None)
    print(f"best epoch {run.epoch}: validation {said}. Model: {folder / 'model'}, report: {report}")


def answers(predictor: ACMILPredictor, slides: Sequence[LabelledSlide]) -> list[tuple[LabelledSlide, list[float]]]:
    """Each slide with its probabilities."""
    return [(slide, predictor.answer(read_bag(slide.source).features)[0].tolist()) for slide in slides]


def prototypes_of(config: TrainConfig, slides: Sequence[LabelledSlide]) -> Tensor:
    """IBMIL's: the centres of clusters of a trained ABMIL's features of the training slides, each of length 1.

    Raises:
        UserError: if there is no such ABMIL, or there are fewer slides than prototypes.
    """
    if config.model.first_stage is None:
        raise UserError(
            "model.name ibmil is the second of two stages: train an abmil on the same slides, and give model.first_stage its bundle."
        )
    predictor = ACMILPredictor.load(config.model.first_stage, device="cpu")
    if predictor.settings.model.name != "abmil":
        raise UserError(
            f"{config.model.first_stage}: is a {predictor.settings.model.name}; model.first_stage must be the bundle of an abmil."
        )
    if len(slides) < config.model.prototypes:
        raise UserError(f"{len(slides)} slides cannot give {config.model.prototypes} prototypes: ask for fewer with model.prototypes.")
    with torch.inference_mode():
        features = torch.stack([predictor.network.slide_feature(torch.from_numpy(read_bag(slide.source).features)) for slide in slides])
    unit = nn.functional.normalize(features, dim=1).double().numpy()
    centres, _ = kmeans2(unit, config.model.prototypes, iter=20, minit="++", rng=np.random.default_rng(config.fit.seed))
    return torch.from_numpy(centres).float()


def _slides(config: TrainConfig, folder: Path) -> tuple[list[LabelledSlide], tuple[str, ...]]:
    """The labelled slides; makes phantoms, and bags of slides that have none, if need be."""
    data = config.data
    if data.phantoms and not data.root.exists():
        print(f"{data.root}: making {data.phantoms} slide phantoms and the bags of their tiles")
        write_labelled_slides(data.root, count=data.phantoms, seed=config.fit.seed, tiling=config.tiling, encoder=config.encoder)
    bags, table = bags_of(data)
    if not table.is_file():
        raise UserError(
            f"{table}: no such table of labels. `apps.acmil data list` shows what to fetch; your own: --data.root, or --data.labels "
            "and --data.bags"
        )
    rows = read_labels(table)
    sources: list[BagFile]
    if not bags.exists() and data.bags is None and (data.root / "slides").is_dir():
        options = {"tiling": config.tiling, "encoder": config.encoder, "wanted": {row.slide for row in rows}}
        print(f"{data.root / 'slides'}: making the features of the slides' tiles, in {folder / 'bags'}")
        sources = bags_of_slides(data.root / "slides", folder / "bags", **options)
    else:
        sources = list_bags(bags)
    return labelled_slides(rows, sources, table=table)


def _figures(rows: Sequence[tuple[LabelledSlide, list[float]]]) -> dict[str, float | None]:
    return asdict(slide_scores([probability for _, probability in rows], [slide.label for slide, _ in rows]))


def _table(parts: Parts, rows: dict[str, list[tuple[LabelledSlide, list[float]]]], classes: Sequence[str]) -> str:
    """slides.csv: every slide, its part, and what the model says of those that it was not trained on."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "patient", "label", "part", *(f"probability_{name}" for name in classes)])
    said = {slide.name: probability for one in rows.values() for slide, probability in one}
    for part in ("train", "validation", "test"):
        for slide in getattr(parts, part):
            probability = [f"{value:.6f}" for value in said.get(slide.name, [])] or [""] * len(classes)
            writer.writerow([slide.name, slide.patient, slide.label_name, part, *probability])
    return text.getvalue()
