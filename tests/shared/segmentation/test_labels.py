"""Between label maps and what a network answers: nothing is lost on the way, and a strange value is named."""

import numpy as np
import pytest
import torch

from shared.errors import InputError, UserError
from shared.segmentation.config import TaskConfig, check_task
from shared.segmentation.labels import Labels
from tests.shared.segmentation.bright import BRATS_TASK

EXCLUSIVE = Labels(TaskConfig(labels={"anterior": [1], "posterior": [2, 7]}))
NESTED = Labels(BRATS_TASK)


def one_hot(codes: torch.Tensor, channels: int) -> np.ndarray:
    """[K, *spatial] of class numbers [*spatial]."""
    return np.stack([(codes == number).numpy().astype(np.float32) for number in range(channels)])


def test_exclusive_classes_are_numbered_in_order_and_come_back_with_their_first_value():
    labels = torch.tensor([0, 1, 2, 7], dtype=torch.uint8).reshape(1, 1, 4, 1, 1)
    codes = EXCLUSIVE.encode(labels)
    assert codes.dtype == torch.uint8
    assert codes.shape == labels.shape
    assert codes.flatten().tolist() == [0, 1, 2, 2]
    assert EXCLUSIVE.decode(one_hot(codes[0, 0], EXCLUSIVE.channels)).ravel().tolist() == [0, 1, 2, 2]
    assert EXCLUSIVE.written == {1: "anterior", 2: "posterior"}


def test_nested_regions_become_a_mask_each_and_are_painted_over_one_another_in_their_order():
    labels = torch.tensor([0, 1, 2, 4], dtype=torch.uint8).reshape(1, 1, 4, 1, 1)
    masks = NESTED.encode(labels)
    assert masks.shape == (1, 3, 4, 1, 1)
    assert masks[0, :, :, 0, 0].tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    assert NESTED.decode(masks[0].numpy().astype(np.float32)).ravel().tolist() == [0, 1, 2, 4]
    assert NESTED.regions == {"whole tumour": (1, 2, 4), "tumour core": (1, 4)}
    # Where only the innermost is sure it is kept: what encloses it cannot be less likely than it is.
    assert NESTED.decode(np.array([0.2, 0.2, 0.9]).reshape(3, 1, 1, 1)).item() == 4


def test_a_class_is_chosen_where_all_classes_together_reach_the_threshold():
    probability = np.array([0.4, 0.25, 0.35], np.float32).reshape(3, 1, 1, 1)
    assert EXCLUSIVE.decode(probability, threshold=0.5).item() == 2
    assert EXCLUSIVE.decode(probability, threshold=0.7).item() == 0
    assert EXCLUSIVE.decode(probability, threshold=0.2).item() == 2
    only = Labels(TaskConfig(labels={"tumour": [5]}))
    assert only.decode(np.array([0.7, 0.3]).reshape(2, 1, 1, 1), threshold=0.3).item() == 5


def test_uncertainty_is_0_where_an_answer_is_sure_and_1_where_all_are_equal():
    probability = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]], np.float32).T.reshape(3, 3, 1, 1)
    entropy = EXCLUSIVE.entropy(probability).ravel()
    assert entropy[:2] == pytest.approx([0, 1], abs=1e-5)
    assert entropy[2] == pytest.approx(np.log(2) / np.log(3), abs=1e-5)
    regions = np.array([[1, 1, 0], [1, 0.5, 0], [1, 0.9, 0.9]], np.float32).T.reshape(3, 3, 1, 1)
    assert NESTED.entropy(regions).ravel()[:2] == pytest.approx([0, 1], abs=1e-5)  # the least sure region counts
    assert NESTED.entropy(regions).min() >= 0


def test_outside_of_what_was_seen_is_background():
    assert EXCLUSIVE.outside == (1.0, 0.0, 0.0)
    assert NESTED.outside == (0.0, 0.0, 0.0)
    for labels in (EXCLUSIVE, NESTED):
        assert labels.decode(np.array(labels.outside).reshape(-1, 1, 1, 1)).item() == 0
        assert labels.activate(torch.zeros(2, labels.channels, 1, 1, 1)).shape == (2, labels.channels, 1, 1, 1)


def test_a_value_of_no_class_is_named_with_the_file_and_what_there_is():
    with pytest.raises(InputError, match=r"^a_seg\.nii: holds the value 3, .*anterior: 1; posterior: 2, 7.*task\.labels"):
        EXCLUSIVE.check(np.array([0, 1, 3, 9]), name="a_seg.nii")
    EXCLUSIVE.check(np.array([0, 2, 7]), name="a_seg.nii")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": {}}, "at least one"),
        ({"modalities": {}}, "at least one"),
        ({"labels": {"tumour": [0]}}, "1 to 255"),
        ({"labels": {"tumour": []}}, "1 to 255"),
        ({"labels": {"a": [1], "b": [2, 1]}}, "one value to two classes"),
        ({"labels": {"a": [1, 2], "b": [1]}, "overlapping": True}, "one value to two classes"),
        ({"channels": ["flair"]}, "must name each of t1ce once"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused_with_its_key(changes, says):
    with pytest.raises(UserError, match=says) as caught:
        check_task(TaskConfig(**changes))
    assert "task." in str(caught.value)


def test_regions_may_share_values():
    check_task(BRATS_TASK)
