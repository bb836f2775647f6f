"""Device and precision follow what the machine can do."""

import pytest
import torch

from shared.devices import autocast, resolve_device, resolve_precision
from shared.errors import UserError

CPU = torch.device("cpu")


def test_auto_takes_the_best_that_there_is() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == expected


def test_a_device_can_be_named() -> None:
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:97", "gpu", "tpu", "", "meta"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UserError, match=r"Available: auto, cpu"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_asked_for_is_taken(name: str) -> None:
    assert resolve_precision(name, CPU) == name


def test_auto_is_exact_on_a_cpu() -> None:
    assert resolve_precision("auto", CPU) == "fp32"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_auto_takes_what_a_gpu_computes_natively() -> None:
    device = resolve_device("auto")
    modern = torch.cuda.get_device_capability(device)[0] >= 8
    assert resolve_precision("auto", device) == ("bf16" if modern else "fp16")


def test_autocast_computes_in_the_precision() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.rand(2, 4)
    for precision, kind in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        with autocast(precision, CPU):
            assert layer(x).dtype == kind
