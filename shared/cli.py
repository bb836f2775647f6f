"""Turns a table of verbs into a command line. A verb is a function that takes one dataclass; the dataclass is its options and its YAML.

Nothing of an app is imported but its settings until a verb is called, so that --help answers at once.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from shared.errors import UserError

__all__ = ["Verb", "Verbs", "run", "verb"]

set_parsing_settings(docstring_parse_attribute_docstrings=True, add_print_completion_argument=True)

BAD_USAGE = 2
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb of a command line."""

    target: str
    """"package.module:function"; imported when the verb is called. Returns an exit code, or anything else for success."""
    settings: type
    """The dataclass that the function takes; imports no torch. Its docstring is the verb's help."""
    positional: str | None = None
    """The option that may also be given without its name, as the first word after the verb."""


Verbs = Mapping[str, Union[Verb, "Verbs"]]
"""Verb by name; a table within the table is a group of verbs, such as data list, data fetch."""


def verb(target: str, settings: type, *, positional: str | None = None) -> Verb:
    """A row of the table: ``"train": verb("apps.pranet.training:train", TrainConfig)``."""
    return Verb(target=target, settings=settings, positional=positional)


def run(program: str, verbs: Verbs, arguments: Sequence[str] | None = None) -> NoReturn:
    """Parses the arguments (sys.argv by default), calls the verb, and exits: with what it returned, or 2 after a one-line error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    path, chosen = _choose(program, verbs, words)
    if chosen is None:
        tree = _Parser(prog=program, allow_abbrev=False)
        _grow(tree, verbs, filled=any(word.startswith("--print_completion") for word in words))
        tree.parse_args(words)
        raise AssertionError("the parser requires a verb")
    parser = _options(" ".join([program, *path]), chosen)
    words = words[len(path) :]
    if chosen.positional and words and not words[0].startswith("-"):
        words[0] = f"--{chosen.positional}={words[0]}"
    words = _resumed(_listed(words, chosen.settings))
    _check_names(words, chosen.settings, parser)
    options = parser.instantiate(parser.parse_args(words))
    settings = chosen.settings(**{field.name: options[field.name] for field in fields(chosen.settings)})
    _unrestrict(settings)
    module, function = chosen.target.split(":")
    try:
        result = getattr(importlib.import_module(module), function)(settings)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("apps", "shared"):
            raise
        parser.error(f'the package {error.name!r} is not installed, and this verb needs it: pip install "fovea[all,scale]"')
    except KeyboardInterrupt:
        print(f"\n{program}: stopped.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(result if isinstance(result, int) else 0)


class _Parser(ArgumentParser):
    """One line for an error, with what to do about it."""

    files: Sequence[Path] = ()
    """The configuration files that were given; an error in one of them names it."""
    given: Sequence[str] = ()
    """The keys that were given on the command line, which win over the files."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = (
            _one_of_several(message)
            .replace("Parser key ", "")
            .replace("a typing.Literal", "one of ")
            .replace("a <class 'tuple'>", "a list, such as [a,b]")
            .replace("\n ", "")
        )
        for path in self.files:
            if any(f'"{key}"' in message and key not in self.given for key, _ in _entries(yaml.safe_load(path.read_text()))):
                message = f"{path}: {message}"
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(BAD_USAGE)


def _one_of_several(message: str) -> str:
    """Of an option that may have several types, what is expected and what was given; the parser lists every attempt."""
    before, union, after = message.partition("Does not validate against any of the Union subtypes")
    expected = [line.strip() for line in re.findall(r"- (.*)", after) if "NoneType" not in line]
    given = re.search(r"Given value: (.*)", after)
    return f"{before}{', or '.join(expected)}. Got value: {given[1]}" if union and expected and given else message


def _choose(program: str, verbs: Verbs, words: list[str]) -> tuple[list[str], Verb | None]:
    """The verb that the first words name, None if they name a group or nothing yet."""
    path: list[str] = []
    found: Verbs | Verb = verbs
    for word in words:
        if isinstance(found, Verb) or word.startswith("-"):
            break
        if word not in found:
            _Parser(prog=" ".join([program, *path])).error(_unknown("verb", word, list(found)))
        found = found[word]
        path.append(word)
    return path, found if isinstance(found, Verb) else None


def _grow(parser: _Parser, verbs: Verbs, *, filled: bool) -> None:
    """Adds the verbs to a parser that shows help and makes completion scripts; ``filled`` with the options of each."""
    commands = parser.add_subcommands(
        dest="verb", metavar="VERB", title="verbs", description=f"`{parser.prog} VERB --help` shows its options."
    )
    for name, entry in verbs.items():
        program = f"{parser.prog} {name}"
        if isinstance(entry, Verb):
            child = _options(program, entry) if filled else _Parser(prog=program)
            commands.add_subcommand(name, child, help=_first_line(entry.settings))
        else:
            child = _Parser(prog=program)
            commands.add_subcommand(name, child, help=", ".join(entry))
            _grow(child, entry, filled=filled)


def _options(program: str, entry: Verb) -> _Parser:
    short = f" In short: `{program} {entry.positional.upper()}`." if entry.positional else ""
    parser = _Parser(prog=program, description=(entry.settings.__doc__ or "").strip() + short, allow_abbrev=False)
    parser.add_argument("--cfg", action="config", help="A YAML file with any of the options below; those on the command line win.")
    parser.add_class_arguments(entry.settings, None)
    for action in parser._actions:
        if f"{action.dest}+" in [option.strip("-") for option in action.option_strings]:
            action.metavar = "VALUE ..."  # a list: see _listed
    return parser


def _first_line(settings: type) -> str:
    return (settings.__doc__ or "").strip().splitlines()[0]


def _listed(words: list[str], settings: type) -> list[str]:
    """``--input a b c`` as the one list that the option takes."""
    hints = get_type_hints(settings)
    lists = {f"--{name}" for name, hint in hints.items() if get_origin(hint) is list}
    result: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word in lists:
            values = []
            while position < len(words) and not words[position].startswith("--"):
                values.append(words[position])
                position += 1
            result.append(f"{word}={json.dumps(values)}")
        else:
            result.append(word)
    return result


def _resumed(words: list[str]) -> list[str]:
    """``--resume RUN`` without a configuration takes the one that the run was started with."""
    run_folder = next((after for word, after in itertools.pairwise(words) if word == "--resume"), None)
    run_folder = run_folder or next((word.partition("=")[2] for word in words if word.startswith("--resume=")), None)
    if run_folder and (Path(run_folder) / "config.yaml").is_file() and not _configurations(words):
        return ["--cfg", str(Path(run_folder) / "config.yaml"), *words]
    return words


def _configurations(words: list[str]) -> list[Path]:
    named = [Path(after) for word, after in itertools.pairwise(words) if word == "--cfg"]
    return named + [Path(word.partition("=")[2]) for word in words if word.startswith("--cfg=")]


def _check_names(words: list[str], settings: type, parser: _Parser) -> None:
    """Every key of the YAML files and of the command line must exist; done here because only here the nearest name is known."""
    known = set(_known(settings))
    free = tuple(f"{name}." for name in _known(settings, kind=dict))
    optional = set(_known(settings, kind=NoneType))
    groups = {group: name for group, _, name in (key.rpartition(".") for key in sorted(known)) if group}
    paths = _configurations(words)
    for path in paths:
        try:
            content = yaml.safe_load(path.read_text())
        except FileNotFoundError:
            parser.error(f"{path}: no such file. Give --cfg a YAML file, such as one under configs/.")
        except (OSError, UnicodeDecodeError) as error:
            parser.error(f"{path}: cannot be read ({error}).")
        except yaml.YAMLError as error:
            parser.error(f"{path}: is not YAML: {' '.join(str(error).split())}")
        if not isinstance(content, dict):
            parser.error(f"{path}: must hold keys and values, such as `fit: {{epochs: 20}}`, not {type(content).__name__}.")
        for key, value in _entries(content):
            if key not in known and not key.startswith(free):
                parser.error(f"{path}: {_unknown('key', key, sorted(known))}")
            if key in groups and not isinstance(value, dict) and not (value is None and key in optional):
                parser.error(f"{path}: {key!r} must hold keys and values, such as `{key}: {{{groups[key]}: ...}}`, not {value!r}.")
    for word in words:
        key = word[2:].partition("=")[0]
        if (
            word.startswith("--")
            and not key.startswith(free)
            and key not in known | {"cfg", "help", "print_config", "print_completion"}
            and not key.endswith("+")
        ):
            parser.error(_unknown("option", word.partition("=")[0], sorted(f"--{name}" for name in known)))
    parser.files = paths
    parser.given = [word[2:].partition("=")[0] for word in words if word.startswith("--")]


def _unrestrict(settings: Any) -> None:
    """Numbers that were checked against a range become plain ones again, which every format can write."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            _unrestrict(value)
        elif isinstance(value, (int, float)):
            setattr(settings, field.name, _plain_number(value))
        elif isinstance(value, tuple):
            setattr(settings, field.name, tuple(_plain_number(one) for one in value))


def _plain_number(value: Any) -> Any:
    if isinstance(value, (int, float)) and type(value) not in (bool, int, float):
        return int(value) if isinstance(value, int) else float(value)
    return value


def _known(settings: type, prefix: str = "", *, kind: type = object) -> Iterator[str]:
    """Every key of a settings class, dotted: fit, fit.epochs, ...; of one kind: dict for those whose entries a person names,
    NoneType for those that may be null."""
    hints = get_type_hints(settings)
    for field in fields(settings):
        hint = hints[field.name]
        if kind is object or get_origin(hint) is kind or kind in get_args(hint):
            yield prefix + field.name
        for inner in (hint, *get_args(hint)):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from _known(inner, f"{prefix}{field.name}.", kind=kind)


def _entries(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a YAML file, dotted, with its value."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield f"{prefix}{key}", value
            yield from _entries(value, f"{prefix}{key}.")


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:
        leaf = {key.rsplit(".", 1)[-1]: key for key in known}
        near = [leaf[match] for match in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(leaf), n=1, cutoff=0.6)]
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known[:40])}."
    return f"unknown {kind} {name!r}. {hint}"
