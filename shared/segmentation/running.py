"""The verbs that only differ in the predictor: infer, serve, growth; and the phantoms."""

from __future__ import annotations

import dataclasses
from datetime import date
from functools import partial
from typing import Any

from shared.errors import UserError
from shared.files import write_json
from shared.imaging.volumes import Volume, find_cases
from shared.inference.protocols import Predictor
from shared.inference.run import local_engine, run
from shared.metrics.growth import growth
from shared.phantoms.head import write_head_follow_ups, write_heads
from shared.phantoms.head_settings import HeadSequence, HeadSettings
from shared.reports.patient import write_growth_report
from shared.segmentation.config import GrowthConfig, HeadPhantomConfig, InferVolumesConfig
from shared.segmentation.prediction import Kept
from shared.segmentation.predictor import Options, VolumePredictor
from shared.segmentation.report import write_inference_report
from shared.serving.config import ServeConfig

__all__ = ["growth_volumes", "infer_volumes", "make_heads", "serve_volumes"]


def infer_volumes(predictor_class: type[VolumePredictor], config: InferVolumesConfig) -> int:
    """Segments every input and writes the results; the exit code is 3 if some inputs could not be used."""
    options = Options(
        batch_size=config.batch_size,
        tta=config.tta,
        threshold=config.threshold,
        minimum_ml=config.minimum_ml,
        kept=Kept(uncertainty=config.uncertainty, probability=config.probability, report=config.report),
    )
    computing: dict[str, Any] = {"device": config.device, "precision": config.precision, "options": options}
    predictor = predictor_class.load(config.model, **computing)
    about = predictor.about
    maker = {key: about[key] for key in ("settings", "provenance", "tta", "threshold", "minimum_ml")}
    maker |= {"kept": dataclasses.asdict(options.kept)}
    if config.engine == "ray":
        from shared.scaling.infer import ray_engine

        engine = ray_engine(predictor_class, config, computing)
    else:
        engine = local_engine(predictor, output=config.output, batch_size=1, workers=config.workers)
    modalities = predictor.settings.task.modalities
    find = partial(find_cases, modalities=modalities)
    outcome = run(config, suffixes=predictor.suffixes, engine=engine, maker=maker, find=find)
    report = write_inference_report(outcome, about)
    found = sum(bool(row["found"]) for row in outcome.rows)
    print(f"{len(outcome.rows)} volumes: something found in {found}, nothing in {len(outcome.rows) - found}. To look at: {report}")
    if outcome.failures:
        print(f"{len(outcome.failures)} inputs could not be used; {config.output / 'failures.csv'} says why.")
    return outcome.exit_code


def serve_volumes(predictor_class: type[VolumePredictor], config: ServeConfig, *, media_types: tuple[str, ...]) -> None:
    """Answers over HTTP until it is told to stop; several replicas under Ray Serve."""
    if config.replicas > 1:
        from shared.scaling.serve import serve as serve_predictor
    else:
        from shared.serving.server import serve as serve_predictor

    def load() -> Predictor[Any]:
        return predictor_class.load(config.model, device=config.device, precision=config.precision)

    serve_predictor(load, config, media_types=media_types)


def growth_volumes(predictor_class: type[VolumePredictor], config: GrowthConfig) -> None:
    """Segments two scans of one patient and compares them, lesion by lesion.

    Raises:
        InputError: if a scan cannot be used.
        UserError: if a date is none, or the result cannot be written.
    """
    options = Options(batch_size=config.batch_size)
    predictor = predictor_class.load(config.model, device=config.device, precision=config.precision, options=options)
    before, after = (predictor.predict(path) for path in (config.before, config.after))
    dates = [
        _date(given, option) or _study_date(prediction.volume)
        for given, option, prediction in (
            (config.date_before, "--date_before", before),
            (config.date_after, "--date_after", after),
        )
    ]
    known = (dates[0], dates[1]) if dates[0] is not None and dates[1] is not None else None
    found = growth(before.lesions, after.lesions, dates=known)
    for prediction, stem in ((before, "before"), (after, "after")):
        prediction.save(config.output, stem)
    write_json(config.output / "growth.json", _plain(found))
    page = config.output / "growth.html"
    write_growth_report(
        page,
        before=before.scan,
        after=after.scan,
        growth=found,
        names=predictor.classes.written,
        dates=known,
        title=f"{config.before.name} and {config.after.name}",
        subject="lesion" if predictor.settings.lesion else "part",
        details={"Model": predictor.name},
    )
    print(f"{before.lesions.volume_ml:.2f} ml before, {after.lesions.volume_ml:.2f} ml after. To look at: {page}")


def make_heads(config: HeadPhantomConfig, *, sequences: tuple[HeadSequence, ...], train: str) -> None:
    """Writes head phantoms into a new folder, in the layout of BraTS.

    Args:
        sequences: unless the person says others.
        train: the command to go on with, to be said at the end.
    """
    if config.output.exists() and any(config.output.iterdir()):
        raise UserError(f"{config.output}: is not empty. Name a new folder, so that nothing is lost.")
    settings = HeadSettings(
        kind=config.kind,
        sequences=config.sequences or sequences,
        shape=config.shape,
        spacing_mm=config.spacing_mm,
        volume_ml=config.volume_ml,
        skull_stripped=config.skull_stripped,
    )
    if config.follow_up:
        write_head_follow_ups(config.output, count=config.count, seed=config.seed, settings=settings)
    else:
        write_heads(config.output, count=config.count, seed=config.seed, settings=settings, empty_fraction=config.empty_fraction)
    print(f"{config.output}: {config.count} phantom heads with label maps. Train: {train} --data.root {config.output}")


def _date(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{option} {text}: is no date; write it as 2024-03-31.") from error


def _study_date(volume: Volume) -> date | None:
    dicom = volume.source.dicom if volume.source is not None else None
    text = str(dicom.images[0].get("StudyDate") or "") if dicom is not None else ""
    try:
        return date.fromisoformat(f"{text[:4]}-{text[4:6]}-{text[6:8]}")
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    """A dataclass, or anything in one, JSON-ready: without arrays, dates as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else value
