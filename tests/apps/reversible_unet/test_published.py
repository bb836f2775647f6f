"""What the released program saves is read, from its layout alone; anything else is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from apps.reversible_unet.published import our_name, read_published
from shared.errors import UserError
from tests.parity.fixture import Fixture, read_fixture
from tests.parity.recipe import draw_inputs, draw_state

FIXTURES = Path(__file__).parents[2] / "parity" / "fixtures"
NETWORKS = ["partially", "partially-deep", "baseline"]

State = dict[str, Any]


def fixture(name: str) -> tuple[Fixture, State]:
    found = read_fixture(FIXTURES / f"reversible-unet3d-{name}.json")
    return found, {name: torch.from_numpy(array) for name, array in draw_state(found.state, found.seed).items()}


def write(path: Path, state: State, *, best: Any = 0.83) -> Path:
    """As the program does after an epoch: weights among all that it needs to go on."""
    weights = [torch.nn.Parameter(value.clone()) for value in state.values() if isinstance(value, Tensor) and value.is_floating_point()]
    optimiser = torch.optim.Adam(weights, lr=1e-4, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [250, 400, 550], 0.2)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    schedule.step()
    content = {
        "epoch": 7,
        "bestMeanDice": best,
        "bestMeanDiceEpoch": 6,
        "movingAvg": best,
        "bestMovingAvg": best,
        "bestMovingAvgEpoch": 6,
        "net_state_dict": state,
        "optimizer_state_dict": optimiser.state_dict(),
        "lr_sheudler_state_dict": schedule.state_dict(),
    }
    torch.save(content, path)
    return path


def check_answers(path: Path, found: Fixture) -> None:
    """Within the fixture's own tolerance."""
    image = torch.from_numpy(draw_inputs(found.inputs, found.seed)["image"])
    (expected,) = [each for each in found.expected if each.name == "logits"]
    with torch.inference_mode():
        answer = read_published(path).build()(image).numpy()
    answer = answer[tuple(slice(None, None, step) for step in expected.stride or (1,) * 5)]
    assert np.abs(answer - expected.values).max() <= expected.tolerance * expected.spread


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_of_the_released_program_answers_as_published(name: str, tmp_path: Path) -> None:
    found, state = fixture(name)
    path = write(tmp_path / "e_7.pt", state)
    check_answers(path, found)
    published, config = read_published(path), found.config
    if name == "baseline":
        assert published.network == "unet3d"
        assert published.settings["channels"] == tuple(6 * 2**level for level in range(5))
    else:
        assert published.network == "reversible_unet"
        assert published.settings == {
            "in_channels": 4,
            "out_channels": 3,
            "channels": tuple(config["channels"]),
            "encoder_depth": config["encoder_depth"],
            "decoder_depth": config["decoder_depth"],
            "inner_groups": config["channels"][0] // 2,
        }


@pytest.mark.parametrize("best", [np.float64(0.8), np.float32(0.8), torch.tensor(0.8)], ids=["float64", "float32", "tensor"])
def test_scores_may_be_stored_as_numpy_or_torch_has_them(best: Any, tmp_path: Path) -> None:
    found, state = fixture("partially")
    check_answers(write(tmp_path / "e_7.pt", state, best=best), found)


def test_weights_alone_or_of_a_parallel_run_are_read_too(tmp_path: Path) -> None:
    found, state = fixture("partially")
    torch.save(state, tmp_path / "weights.pt")
    check_answers(tmp_path / "weights.pt", found)
    check_answers(write(tmp_path / "e_7.pt", {f"module.{name}": value for name, value in state.items()}), found)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_two_weights_get_the_same_name(name: str) -> None:
    _, state = fixture(name)
    assert len({our_name(each) for each in state}) == len(state)


FIRST = "encoders.0.reversibleBlocks.reversible_blocks.0.f_block.gn.weight"
SECOND = "encoders.1.reversibleBlocks.reversible_blocks.0.g_block.conv.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {"features.0.weight": torch.zeros(1)}, "is of another network ('features.0.weight' is no part of it)"),
        (lambda state: {name: value for name, value in state.items() if name != "lastConv.weight"}, "(lastConv.weight is missing)"),
        (lambda state: {name: value for name, value in state.items() if name != FIRST}, "two or more positive widths, not ()"),
        (lambda state: {name: value for name, value in state.items() if name != SECOND}, "1 of 79 entries do not fit"),
        (lambda state: state | {"firstConv.weight": torch.zeros(3)}, "is of another network"),
        (lambda state: state | {"lastConv.bias": torch.zeros(5)}, "head.bias is [5], expected [3]"),
        (lambda state: state | {FIRST: torch.zeros(5)}, "multiple of inner_groups=5"),
        (lambda state: state | {"encoders.0.conv.weight": torch.zeros(5)}, "is no part of it"),
        (lambda state: state | {"encoders.0.conv1.weight": torch.zeros(5)}, "is not part of this model"),
        (lambda state: state | {"lastConv.bias": torch.full((3,), torch.nan)}, "not finite (the first: lastConv.bias)"),
        (lambda state: {name: value for name, value in state.items() if name != "firstConv.weight"}, "is missing"),
        (lambda state: state | {"decoders.0.conv1.weight": torch.zeros(5)}, "'decoders.0.conv1.weight' is no part of it"),
        (lambda state: {0: torch.zeros(5)}, "holds no state dict"),
        (lambda state: torch.zeros(5), "holds no state dict"),
        (lambda state: {"epoch": 3}, "holds no state dict"),
        (lambda state: {}, "holds no state dict"),
    ],
)
def test_another_network_is_refused_in_one_line_that_names_the_file(change: Callable[[State], State], says: str, tmp_path: Path) -> None:
    path = tmp_path / "e_7.pt"
    torch.save({"net_state_dict": change(fixture("partially")[1])}, path)
    with pytest.raises(UserError) as caught:
        read_published(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


class Careless:
    """Something that torch would have to run to load."""


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no checkpoint"),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: torch.save({"net_state_dict": Careless()}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: path.unlink(),
    ],
    ids=["empty", "text", "cut off", "code", "a list", "missing"],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    path = write(tmp_path / "e_7.pt", fixture("partially")[1])
    spoil(path)
    with pytest.raises(UserError, match=f"^{path}: ") as caught:
        read_published(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
