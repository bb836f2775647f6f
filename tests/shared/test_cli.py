"""The command line takes what people type, and says what is wrong with it in one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.cli import run
from tests.shared.toy import VERBS

DEFAULTS = {
    "model": {"name": "small", "channels": 32},
    "fit": {"epochs": 20, "lr": 1e-4, "clip": 0.5},
    "scales": [0.75, 1.0],
    "validation": 0.1,
    "augment": True,
    "output": "runs/toy",
    "resume": None,
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def settings(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line of a usage error."""
        assert (self.code, self.out) == (2, ""), self
        (line,) = self.err.splitlines()
        return line


Toy = Callable[..., Answer]


@pytest.fixture
def toy(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Answer:
        with pytest.raises(SystemExit) as ended:
            run("toy", VERBS, words)
        out, err = capsys.readouterr()
        code = ended.value.code
        return Answer(code=code if isinstance(code, int) else 0, out=out, err=err)

    return call


def test_a_verb_gets_its_settings_with_their_types(toy: Toy) -> None:
    assert toy("train").settings == DEFAULTS
    changed = toy("train", "--fit.epochs", "3", "--model.name=large", "--scales", "[0.5, 1, 2]", "--augment", "false", "--fit.clip", "null")
    assert changed.settings == {
        **DEFAULTS,
        "fit": {"epochs": 3, "lr": 1e-4, "clip": None},
        "model": {"name": "large", "channels": 32},
        "scales": [0.5, 1, 2],
        "augment": False,
    }


def test_a_yaml_file_sets_any_key_and_the_command_line_wins(toy: Toy) -> None:
    Path("a.yaml").write_text("fit: {epochs: 7, lr: 1.0e-5}\nmodel:\n  name: large\n")
    expected = {**DEFAULTS, "fit": {"epochs": 9, "lr": 1e-5, "clip": 0.5}, "model": {"name": "large", "channels": 32}}
    assert toy("train", "--cfg", "a.yaml", "--fit.epochs", "9").settings == expected
    assert toy("train", "--cfg=a.yaml", "--fit.epochs=9").settings == expected


def test_of_two_yaml_files_the_later_wins(toy: Toy) -> None:
    Path("a.yaml").write_text("fit: {epochs: 7}\nvalidation: 0.2\n")
    Path("b.yaml").write_text("fit: {epochs: 8}\n")
    settings = toy("train", "--cfg", "a.yaml", "--cfg", "b.yaml").settings
    assert (settings["fit"]["epochs"], settings["validation"]) == (8, 0.2)


def test_the_printed_configuration_is_whole_and_reads_back(toy: Toy) -> None:
    printed = toy("train", "--fit.epochs", "3", "--print_config")
    assert printed.code == 0
    content = yaml.safe_load(printed.out)
    assert content == {**DEFAULTS, "fit": {"epochs": 3, "lr": 1e-4, "clip": 0.5}}
    Path("printed.yaml").write_text(printed.out)
    assert toy("train", "--cfg", "printed.yaml").settings == content


def test_a_list_takes_several_words(toy: Toy) -> None:
    expected = {"model": "m", "input": ["a.png", "b c.png", "*.jpg"]}
    assert toy("infer", "--model", "m", "--input", "a.png", "b c.png", "*.jpg").settings == expected
    assert toy("infer", "--input", "a.png", "b c.png", "*.jpg", "--model", "m").settings == expected
    assert toy("infer", "--model", "m", "--input", "7").settings["input"] == ["7"]
    Path("a.yaml").write_text("input: [a.png, b.png]\nmodel: m\n")
    assert toy("infer", "--cfg", "a.yaml").settings["input"] == ["a.png", "b.png"]


def test_a_group_of_verbs(toy: Toy) -> None:
    assert toy("data", "list", "--long", "true").settings == {"long": True}
    assert "unknown verb 'lst'. Did you mean 'list'?" in toy("data", "lst").complaint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "unknown verb 'trian'. Did you mean 'train'?"),
        (["sing"], "unknown verb 'sing'. Known: train, infer, fail, data."),
        (["train", "--fit.epoch", "3"], "unknown option '--fit.epoch'. Did you mean '--fit.epochs'?"),
        (["train", "--epochs=3"], "unknown option '--epochs'. Did you mean '--fit.epochs'?"),
        (["train", "--fit.epochs", "0"], "fit.epochs"),
        (["train", "--fit.epochs", "many"], "fit.epochs"),
        (["train", "--validation", "1.5"], "validation"),
        (["train", "--model.name", "huge"], "large"),
        (["train", "--fit.clip", "0"], 'error: "fit.clip": Not of type PositiveFloat: does not conform to restriction v>0. Got value: 0'),
        (["infer", "--input", "a.png"], "model"),
        (["train", "extra"], "extra"),
    ],
)
def test_what_cannot_be_understood_is_named_in_one_line(words: list[str], said: str, toy: Toy) -> None:
    complaint = toy(*words).complaint
    assert complaint.startswith("toy")
    assert said in complaint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("fit: {epoch: 3}", "unknown key 'fit.epoch'. Did you mean 'fit.epochs'?"),
        ("fits: {epochs: 3}", "unknown key 'fits'. Did you mean 'fit'?"),
        ("fit: {epochs: many}", "fit.epochs"),
        ("fit: {epochs: -1}", "fit.epochs"),
        ("model: {name: huge}", "model.name"),
        ("fit: {epochs: 3", "is not YAML"),
        ("- a\n- b", "must hold keys and values"),
        ("", "must hold keys and values"),
        ("fit: 3", "fit"),
    ],
)
def test_what_is_wrong_in_a_yaml_file_is_named_with_the_file(content: str, said: str, toy: Toy) -> None:
    Path("recipe.yaml").write_text(content)
    complaint = toy("train", "--cfg", "recipe.yaml").complaint
    assert complaint.startswith("toy train: error: recipe.yaml: ")
    assert said in complaint


def test_the_file_is_not_blamed_for_what_was_typed(toy: Toy) -> None:
    Path("recipe.yaml").write_text("fit: {epochs: 3}")
    assert "recipe.yaml" not in toy("train", "--cfg", "recipe.yaml", "--fit.epochs", "many").complaint


def test_a_yaml_file_that_cannot_be_read_is_named(toy: Toy) -> None:
    assert "missing.yaml: no such file" in toy("train", "--cfg", "missing.yaml").complaint
    Path("folder.yaml").mkdir()
    assert "folder.yaml: cannot be read" in toy("train", "--cfg", "folder.yaml").complaint
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml" in toy("train", "--cfg", "binary.yaml").complaint


def test_an_option_without_its_value_is_named(toy: Toy) -> None:
    assert "--cfg" in toy("train", "--cfg").complaint
    assert "--resume" in toy("train", "--resume").complaint


def test_resume_takes_the_settings_that_the_run_was_started_with(toy: Toy) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text(toy("train", "--fit.epochs", "3", "--print_config").out)
    assert toy("train", "--resume", "run").settings == {
        **DEFAULTS,
        "fit": {"epochs": 3, "lr": 1e-4, "clip": 0.5},
        "resume": "run",
    }
    assert toy("train", "--resume=run", "--fit.epochs", "5").settings["fit"]["epochs"] == 5
    Path("other.yaml").write_text("validation: 0.3")
    settings = toy("train", "--resume", "run", "--cfg", "other.yaml").settings
    assert (settings["fit"]["epochs"], settings["validation"]) == (20, 0.3)


def test_the_exit_code_is_the_verb_s(toy: Toy) -> None:
    assert toy("fail", "--how", "code").code == 3
    assert toy("fail", "--how", "user") == Answer(code=2, out="", err="toy fail: error: frame.png: is empty. Copy it again.\n")
    interrupted = toy("fail", "--how", "interrupt")
    assert (interrupted.code, interrupted.err) == (130, "\ntoy: stopped.\n")


def test_a_missing_package_is_named_with_what_to_install(toy: Toy) -> None:
    assert "'flash.ops' is not installed" in (complaint := toy("fail", "--how", "package").complaint)
    assert "pip install" in complaint
    with pytest.raises(ModuleNotFoundError):  # a bug of ours is no matter of installing
        run("toy", VERBS, ["fail", "--how", "bug"])


def test_help_shows_verbs_and_options(toy: Toy) -> None:
    overview = toy("--help")
    assert overview.code == 0
    assert all(name in overview.out for name in ("train", "Train on labelled frames.", "data", "list"))
    options = toy("train", "--help")
    assert options.code == 0
    assert all(name in options.out for name in ("--cfg", "--fit.epochs", "{large,small}", "Which network.", "(type:", "default: 20"))
    assert "--long" in toy("data", "list", "--help").out
    assert "--input VALUE ..." in toy("infer", "--help").out


@pytest.mark.parametrize("words", [[], ["data"]])
def test_without_a_verb_it_says_which_there_are(words: list[str], toy: Toy) -> None:
    answer = toy(*words)
    assert answer.code == 2
    assert ("list" if words else "train") in answer.err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_knows_verbs_and_options(shell: str, toy: Toy) -> None:
    script = toy(f"--print_completion=shtab-{shell}")
    assert script.code == 0
    assert all(word in script.out for word in ("train", "fit.epochs", "infer", "list"))
    if shell == "bash":
        checked = subprocess.run(["bash", "-n"], input=script.out, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_the_completion_script_is_made_with_a_space_too(toy: Toy) -> None:
    assert "fit.epochs" in toy("--print_completion", "shtab-bash").out


def test_help_does_not_wait_for_torch() -> None:
    script = """
import sys
from shared.cli import run
from tests.shared.toy import VERBS
try:
    run("toy", VERBS, ["train", "--help"])
except SystemExit:
    print([name for name in ("torch", "lightning", "numpy", "matplotlib") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert answer.stdout.splitlines()[-1] == "[]", answer.stderr


def test_the_one_thing_that_a_verb_is_about_needs_no_option_name(toy: Toy) -> None:
    wanted = {"name": "kvasir-seg", "root": "here"}
    assert toy("data", "fetch", "kvasir-seg", "--root", "here").settings == wanted
    assert toy("data", "fetch", "--root", "here", "--name", "kvasir-seg").settings == wanted
    assert "required: name" in toy("data", "fetch").complaint
    assert "other" in toy("data", "fetch", "kvasir-seg", "other").complaint
    assert "toy data fetch NAME" in toy("data", "fetch", "--help").out
