"""fit() leaves a run folder that says everything, and that goes on after an interruption as if there had been none."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from shared.config import to_yaml
from shared.errors import UserError
from shared.training.callbacks import Stopped
from shared.training.config import FitConfig, OptimizerConfig, ScheduleConfig
from shared.training.fit import new_run
from shared.training.loader import TrainingLoader
from tests.shared.training.tiny import Points, StopAt, TinyTraining, settings, state, train


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """A training gives the signals back to whom they belonged."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def test_a_run_leaves_history_logs_and_two_checkpoints(tmp_path: Path) -> None:
    run, module = train(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "tensorboard", "checkpoints"}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert any((tmp_path / "tensorboard").iterdir())
    history = rows(tmp_path)
    assert [row["epoch"] for row in history] == ["0", "1", "2"]
    assert [row["step"] for row in history] == ["6", "12", "18"]
    errors = [float(row["val_error"]) for row in history]
    assert run.score == pytest.approx(min(errors))
    assert run.epoch == errors.index(min(errors))
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[name]) for name, value in module.state_dict().items())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path, uninterrupted: Path) -> None:
    train(tmp_path / "again")
    assert_same(state(tmp_path / "again"), state(uninterrupted))
    train(tmp_path / "other", settings(seed=1))
    assert not torch.equal(state(tmp_path / "other")["weights"]["network.0.weight"], state(uninterrupted)["weights"]["network.0.weight"])


@pytest.mark.parametrize("at", [(0, 0), (1, 3), (1, 5), (2, 4)])
def test_stopped_and_resumed_it_ends_with_the_weights_of_an_uninterrupted_run(
    at: tuple[int, int], tmp_path: Path, uninterrupted: Path
) -> None:
    """(1, 5) is the last batch of an epoch: it ends with its validation and stops at the first batch of the next."""
    with pytest.raises(Stopped, match=f"SIGTERM.*--resume {tmp_path}") as stopped:
        train(tmp_path, callbacks=(StopAt(*at),))
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    run, _ = train(tmp_path, resume=True)
    assert_same(state(tmp_path), state(uninterrupted))
    assert rows(tmp_path) == rows(uninterrupted)
    assert len(run.history) == 3


def test_ctrl_c_stops_as_sigterm_does(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped:
        train(tmp_path, callbacks=(StopAt(0, 2, signal.SIGINT),))
    assert stopped.value.exit_code == 130


def test_stopped_between_gradients_that_are_added_up_it_first_makes_the_step(tmp_path: Path) -> None:
    config = settings(accumulate=4)  # 6 batches: steps after the 4th and the 6th
    train(tmp_path / "whole", config)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", config, callbacks=(StopAt(1, 1),))
    train(tmp_path / "cut", config, resume=True)
    assert state(tmp_path / "whole")["step"] == 6
    assert_same(state(tmp_path / "cut"), state(tmp_path / "whole"))


def test_a_timed_checkpoint_is_as_good_to_resume_from(tmp_path: Path, uninterrupted: Path) -> None:
    class Kill(StopAt):
        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            if (trainer.current_epoch, arguments[-1]) == self.at:
                raise MemoryError  # nothing gets a chance to save

    with pytest.raises(MemoryError):
        train(tmp_path, settings(checkpoint_minutes=1e-6), callbacks=(Kill(1, 3),))
    assert state(tmp_path)["step"] == 9
    train(tmp_path, resume=True)
    assert_same(state(tmp_path), state(uninterrupted))


def test_the_learning_rate_follows_the_schedule_to_the_end_whatever_is_added_up(tmp_path: Path) -> None:
    config = settings(accumulate=4, epochs=4, schedule=ScheduleConfig(name="cosine"))
    _, module = train(tmp_path, config)
    assert len(module.rates) == 8  # 2 in each epoch: after 4 batches and after the last 2
    assert module.rates[0] == pytest.approx(0.05)
    assert module.rates[4] == pytest.approx(0.025)  # half way
    assert module.rates[7] < 0.05 * 0.04  # (1 + cos(7/8 pi)) / 2 = 0.038


def test_the_first_epoch_is_the_first(tmp_path: Path) -> None:
    seen = []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
            seen.append(batch["x"])

    train(tmp_path, settings(epochs=1), variants=(1.0,), callbacks=(Keep(),))
    expected = list(TrainingLoader(Points(), batch_size=4, seed=0))
    assert all(torch.equal(one, other["x"]) for one, other in zip(seen, expected, strict=True))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_each_optimiser_trains_in_bf16_with_a_clipped_gradient(name: Any, tmp_path: Path) -> None:
    clip = {"clip_value": 0.5} if name == "adam" else {"clip_norm": 1.0}
    config = settings(epochs=1, precision="bf16", optimizer=OptimizerConfig(name=name, lr=0.01, weight_decay=0.01), **clip)
    run, module = train(tmp_path, config)
    assert module.precisions == {torch.bfloat16}
    assert run.score < 10


def test_it_stops_after_the_time_it_was_given_and_keeps_the_best_so_far(tmp_path: Path) -> None:
    run, _ = train(tmp_path, settings(epochs=10_000, max_minutes=0.02))
    assert 1 <= len(run.history) < 10_000
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_two_ways_to_clip_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clip_value and fit.clip_norm"):
        train(tmp_path, settings(clip_value=1.0, clip_norm=1.0))


def test_a_loss_that_is_not_a_number_ends_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss became nan in epoch 0"):
        train(tmp_path, module=TinyTraining(settings(), diverge=True))


def test_an_accelerator_or_strategy_that_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fit.accelerator.*tpu"):
        train(tmp_path, settings(accelerator="tpu"))
    with pytest.raises(UserError, match=r"fit.strategy.*slow_mo"):
        train(tmp_path, settings(strategy="slow_mo"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path, settings(epochs=1))
    module = TinyTraining(settings())
    module.network[0] = torch.nn.Linear(3, 16)
    with pytest.raises(UserError, match=r"last.ckpt: is of another model"):
        train(tmp_path, resume=True, module=module)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(tmp_path, settings(epochs=1))
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"last.ckpt: .*damaged"):
        train(tmp_path, resume=True)


def test_a_full_disk_ends_with_a_message_and_leaves_the_last_whole_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, settings(epochs=1))
    script = f"""
import resource, signal
from pathlib import Path
from shared.errors import UserError
from tests.shared.training.tiny import settings, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    train(Path({str(tmp_path)!r}), settings(epochs=2), resume=True)
except UserError as error:
    print(error)
"""
    answer = python(script)
    assert "cannot be written" in answer.stdout, answer.stderr
    assert "Traceback" not in answer.stderr
    assert state(tmp_path)["step"] == 6


@pytest.mark.slow
def test_compiled_it_gives_the_same_training(tmp_path: Path, uninterrupted: Path) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:
        pytest.skip("no C++ compiler")
    train(tmp_path, settings(compile=True))
    compiled, eager = state(tmp_path), state(uninterrupted)
    assert compiled["weights"].keys() == eager["weights"].keys()
    assert len(rows(tmp_path)) == 3


@pytest.mark.slow
def test_two_processes_train_one_model_and_leave_one_history(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from tests.shared.training.tiny import settings, train
run, module = train(Path({str(tmp_path)!r}), settings(devices=2, strategy="ddp", epochs=2))
Path({str(tmp_path)!r}, "leads" if run.leads else "follows").write_text(str(len(module.rates)))
"""
    path = tmp_path / "two.py"
    path.write_text(script)
    answer = python(path)
    assert answer.returncode == 0, answer.stderr[-3000:]
    # 6 points each, in batches of 4 and 2, each at two scales: 4 steps in each of 2 epochs.
    assert ((tmp_path / "leads").read_text(), (tmp_path / "follows").read_text()) == ("8", "8")
    assert [row["step"] for row in rows(tmp_path)] == ["4", "8"]


def test_a_new_run_does_not_write_over_an_old_one_and_there_must_be_something_to_resume(tmp_path: Path) -> None:
    new_run(tmp_path / "run", FitConfig(), resume=None)
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        new_run(tmp_path / "run", FitConfig(), resume=tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == to_yaml(FitConfig())
    train(tmp_path / "run", settings(epochs=1))
    with pytest.raises(UserError, match="holds a run already"):
        new_run(tmp_path / "run", FitConfig(), resume=None)
    new_run(tmp_path / "run", FitConfig(), resume=tmp_path / "run")


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[name])
        else:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name


def python(script: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", script] if isinstance(script, str) else [str(script)])]
    root = str(Path(__file__).parents[3])
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, timeout=120)
