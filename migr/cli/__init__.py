"""The command line of every script: flags, `--config YAML` with the same keys, one line for each mistake.

A YAML file may say `include: other.yaml` (a path beside it): keys of its own win over those that it includes, flags win
over both. sft.py and grpo.py read theirs by TRL's parser, with the same YAML (`migr.training.arguments`).
"""

import argparse
import difflib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from migr.errors import InputError
from migr.files.parsing import read_yaml
from migr.files.records import check_writable

Settings = TypeVar("Settings")
INCLUDE = "include"
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Parser(argparse.ArgumentParser):
    """The command line of a script; its docstring is the help.

    Args:
        description: The docstring.
        yaml: Whether `--config` is read; a script that takes the YAML of another one has a `--config` of its own.

    Attributes:
        explicit: Names of the arguments that a flag or the YAML gave, once `parse_args` has run.
    """

    def __init__(self, description: str | None, yaml: bool = True) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)
        self.explicit: frozenset[str] = frozenset()
        self._foreign: set[str] = set()
        self.yaml = yaml
        if yaml:
            self.add_argument("--config", type=Path, metavar="YAML", help="file with these same keys; flags win")

    def add_settings(self, *kinds: type, without: Iterable[str] = (), **defaults: Any) -> None:
        """Add a flag for each field of the dataclasses.

        Args:
            kinds: Such as those of `migr.settings`.
            without: Fields that this command does not have.
            defaults: Other defaults than the dataclass's.
        """
        for kind in kinds:
            group = self.add_argument_group((kind.__doc__ or "").partition(".")[0].partition("\n")[0])
            hints = get_type_hints(kind)
            for field in fields(kind):
                if field.name in without:
                    continue
                default = field.default_factory() if field.default_factory is not MISSING else field.default
                default = defaults.get(field.name, default)
                more = dict(field.metadata)
                text = str(more.pop("help", "")).replace("%", "%%")
                if default not in (None, [], MISSING) and not isinstance(default, bool):
                    text += f" (default {default})"
                group.add_argument(f"--{field.name}", default=default, help=text, **_kind(hints[field.name]), **more)

    def accept_keys(self, *kinds: type | str) -> None:
        """Let the YAML hold these dataclasses' fields, and these keys, too, which other commands read."""
        for kind in kinds:
            self._foreign |= {kind} if isinstance(kind, str) else {field.name for field in fields(kind)}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse flags and YAML.

        Raises:
            InputError: An unknown flag or key, a value of the wrong type, a YAML that cannot be read.
        """
        argv = self._plain_switches(sys.argv[1:] if args is None else list(map(str, args)))
        files = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"]
        files += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
        if len(files) > 1 or argv[-1:] == ["--config"]:
            raise InputError("--config: give the path of one YAML file (`include: FILE` in it reads another)")
        words = self._words(Path(files[0])) if files and self.yaml else []
        parsed, unknown = super().parse_known_args([*words, *argv], namespace)
        if flags := [word for word in unknown if word.startswith("-")] or unknown:
            raise InputError(f"unknown flag {flags[0]!r}{hint(flags[0], self._names())} (--help lists the flags)")
        options = (self._option_string_actions.get(word.partition("=")[0]) for word in (*words, *argv))
        self.explicit = frozenset(action.dest for action in options if action is not None)
        if isinstance(out := getattr(parsed, "out", None), Path):
            check_writable(out)
        return parsed

    def inherit(self, args: Any, values: Mapping[str, Any], source: object) -> None:
        """Take values from what an earlier stage has recorded; say where one that was given here differs.

        Args:
            args: What `parse_args` returned; changed in place.
            values: Argument -> value.
            source: The file that says so.
        """
        for name, value in values.items():
            if name not in self.explicit:
                setattr(args, name, value)
            elif getattr(args, name) != value:
                print(f"note: {name} is {getattr(args, name)} here and {value} in {source}", file=sys.stderr)

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message} (--help lists the flags)")

    def _names(self) -> list[str]:
        return [action.dest for action in self._actions if action.option_strings]

    def _plain_switches(self, argv: list[str]) -> list[str]:
        """`--overwrite true`, as sft.py takes it, as `--overwrite`."""
        switches = {a.option_strings[0] for a in self._actions if isinstance(a, argparse.BooleanOptionalAction)}
        words: list[str] = []
        for word in argv:
            if words and words[-1] in switches and word.lower() in ("true", "false"):
                if word.lower() == "false":
                    words[-1] = f"--no-{words[-1][2:]}"
            else:
                words.append(word)
        return words

    def _words(self, path: Path) -> list[str]:
        """The keys of a YAML file as flags."""
        actions = {action.dest: action for action in self._actions if action.dest not in ("help", "config")}
        scalars, lists = [], []
        for key, value in read_config(path).items():
            if key not in actions:
                if key in self._foreign:
                    continue
                raise InputError(f"--config {path}: unknown key {key!r}{hint(str(key), actions)}")
            action = actions[key]
            if isinstance(action, argparse.BooleanOptionalAction):
                if (truth := _TRUTH.get(str(value).lower())) is None:
                    raise InputError(f"--config {path}: {key} must be true or false, not {value!r}")
                scalars.append(f"--{key}" if truth else f"--no-{key}")
            elif action.nargs in ("+", "*"):
                lists += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
            elif isinstance(value, list | dict):
                raise InputError(f"--config {path}: {key} must be one value, not {value!r}")
            elif value is not None:
                scalars.append(f"--{key}={value}")
        return [*lists, *scalars, f"--config={path}"]  # a list must not swallow what stands behind it


def settings_of(kind: type[Settings], args: Any, **values: Any) -> Settings:
    """The dataclass with what was parsed; fields that the command does not have keep their defaults."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{**{name: getattr(args, name) for name in names if hasattr(args, name)}, **values})


def hint(name: str, known: Iterable[str]) -> str:
    """ ", did you mean …?" if a known name is near."""
    near = difflib.get_close_matches(name.lstrip("-").partition("=")[0].replace("-", "_"), list(known), 1)
    return f", did you mean {near[0]!r}?" if near else ""


def read_config(path: Path, _including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a YAML file and of those that it includes; its own win.

    Raises:
        InputError: It cannot be read, holds no mapping, has a key twice, or includes itself.
    """
    try:
        values = read_yaml(path)
    except InputError as error:
        raise InputError(f"--config {error}") from None
    other = values.pop(INCLUDE, None)
    if other is None:
        return values
    if not isinstance(other, str) or path.resolve() in _including:
        raise InputError(f"--config {path}: {INCLUDE} must be the path of another YAML file, not {other!r}")
    return {**read_config(path.parent / other, (*_including, path.resolve())), **values}


def demo_arguments(stage: str) -> list[str]:
    """The command line of a stage in the demo, for a script that is started without one; makes what it lacks.

    The demo is asked as a program: nothing of it, nor of the stages that it runs, comes into this process.
    """
    script = Path(__file__).resolve().parents[2] / "stages" / "demo" / "demo.py"
    command: Sequence[str] = [sys.executable, str(script), "--arguments", stage]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return [str(word) for word in json.loads(done.stdout.splitlines()[-1])]


def _kind(hint: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    inner = [part for part in get_args(hint) if part is not NoneType]
    if get_origin(hint) is not list and inner:  # X | None
        return _kind(inner[0])
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": inner[0], "nargs": "+"} if inner else {"type": hint}
