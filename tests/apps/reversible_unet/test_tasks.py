"""Sequences and label values of each collection: in which order they come, what is painted where, and that every recipe says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from apps.reversible_unet.config import LossConfig, ModelConfig, brats_task
from apps.reversible_unet.inference import ReversibleUNetPredictor, build
from apps.reversible_unet.training import loss_of
from shared.config import plain
from shared.errors import UserError
from shared.segmentation.cases import labelled_volumes, read_image, read_labelled
from shared.segmentation.config import TaskConfig
from shared.segmentation.labels import Labels
from shared.segmentation.predictor import SegmentationSettings
from tests.apps.reversible_unet.conftest import save, tumour, write_case
from tests.commands import Answer

CONFIGS = Path(__file__).parents[3] / "configs" / "reversible_unet"


@pytest.fixture
def task_of(reversible: Callable[..., Answer]) -> Callable[[str], TaskConfig]:
    """The task of a recipe, as the command line understands it."""

    def task(recipe: str) -> TaskConfig:
        answer = reversible("train", "--cfg", CONFIGS / f"{recipe}.yaml", "--print_config")
        assert answer.code == 0, answer.err
        return TaskConfig(**yaml.safe_load(answer.out)["task"])

    return task


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_understood_and_makes_a_network(path: Path, reversible: Callable[..., Answer]) -> None:
    import torch

    answer = reversible("train", "--cfg", path, "--print_config")
    assert answer.code == 0, answer.err
    settings = yaml.safe_load(answer.out)
    task = TaskConfig(**settings["task"])
    loss_of(LossConfig(**settings["loss"]), Labels(task))
    lists = {name: tuple(settings["model"][name]) for name in ("channels", "expansion", "chunks")}
    with torch.device("meta"):
        build(ModelConfig(**{**settings["model"], **lists}), Labels(task))
    assert list(task.modalities) == (["t1"] if path.stem == "hippocampus" else ["t1", "t1ce", "t2", "flair"])


@pytest.mark.parametrize(
    ("recipe", "oedema", "core", "enhancing"), [("brats", 2, 1, 4), ("brats2023", 2, 1, 3), ("msd_brain_tumour", 1, 2, 3)]
)
def test_nested_regions_are_painted_as_the_collection_labels_them(
    recipe: str, oedema: int, core: int, enhancing: int, task_of: Callable[[str], TaskConfig]
) -> None:
    labels = Labels(task_of(recipe))
    whole, middle, inner = np.array([0.2, 0.9, 0.9, 0.9]), np.array([0.1, 0.4, 0.8, 0.7]), np.array([0.0, 0.1, 0.3, 0.6])
    painted = labels.decode(np.stack([whole, middle, inner])[:, :, None, None])
    assert painted.ravel().tolist() == [0, oedema, core, enhancing]
    assert [mask.ravel().tolist() for mask in labels.masks(painted).values()] == [
        [False, True, True, True],
        [False, False, True, True],
        [False, False, False, True],
    ]


def test_channels_of_the_decathlon_come_in_their_own_order(task_of: Callable[[str], TaskConfig], tmp_path: Path) -> None:
    values, _ = tumour(0)
    flair, t1, t1ce, t2 = 3, 0, 1, 2
    save(tmp_path / "BRATS_001.nii.gz", np.moveaxis(values[[flair, t1, t1ce, t2]], 0, -1))
    np.testing.assert_array_equal(read_image(tmp_path / "BRATS_001.nii.gz", task_of("msd_brain_tumour")).values, values)


def test_the_names_of_brats_2023_are_known(task_of: Callable[[str], TaskConfig], tmp_path: Path) -> None:
    values, labels = tumour(0)
    write_case(tmp_path, "BraTS-GLI-00000-000", values, np.where(labels == 4, 3, labels), words=("t1n", "t1c", "t2w", "t2f"))
    task = task_of("brats2023")
    (one,) = labelled_volumes(tmp_path, task)
    image, truth = read_labelled(one, Labels(task))
    np.testing.assert_array_equal(image.values, values)
    assert set(np.unique(truth.values)) == {0, 1, 2, 3}


def test_a_loss_of_regions_is_refused_for_classes_that_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"loss\.name published_dice: is of overlapping regions"):
        loss_of(LossConfig(name="published_dice"), Labels(TaskConfig()))


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(channels=(4, 8), block="bottleneck", expansion=(2, 1), chunks=(2, 1), encoder_depth=2),
        ModelConfig(name="unet3d", channels=(4, 8)),
        ModelConfig(name="unet", channels=(4, 8)),
    ],
    ids=["bottleneck", "baseline", "MONAI's U-Net"],
)
def test_a_bundle_of_any_network_answers_the_same_when_it_is_loaded(model: ModelConfig, tmp_path: Path) -> None:
    network = build(model, Labels(brats_task()))
    predictor = ReversibleUNetPredictor(network, model=plain(model), settings=SegmentationSettings(task=brats_task()))
    predictor.save_bundle(tmp_path / "bundle")
    case = write_case(tmp_path, "p0", tumour(0)[0], None)
    again = ReversibleUNetPredictor.load(tmp_path / "bundle", device="cpu").predict(case)
    np.testing.assert_array_equal(again.probability, predictor.predict(case).probability)
