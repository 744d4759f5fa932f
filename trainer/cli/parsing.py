"""Parsing shared by the verbs: dataclasses become flags, a YAML or JSON file gives defaults, errors are one line.

A field is the flag that transformers' `HfArgumentParser` would make of it (a test compares the two); that one is not
used, because a help text would wait for transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from schemas.cli.arguments import Parser as BaseParser
from schemas.cli.arguments import Repeatable
from schemas.errors import TeachonceError, UsageError, nearest, one_line
from trainer.cli.flag_files import Told, read_file

HELP_ALL = "--help_all"
_HELP_COLUMN = 30
_YES, _NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
_METAVARS: Mapping[Any, str] = {int: "N", float: "X", str: "TEXT", dict: "JSON"}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with defaults where there are any, examples as they are written, and each flag in one spelling."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_HELP_COLUMN)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default in (None, argparse.SUPPRESS, False, []) or not action.option_strings
        return action.help if told else f"{action.help} (default: %(default)s)"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings = action.option_strings
        action.option_strings = [text for text in spellings if "-" not in text.lstrip("-")]
        text = super()._format_action_invocation(action)
        action.option_strings = spellings
        return text

    def _format_args(self, action: argparse.Action, default_metavar: Any) -> str:
        if action.nargs == "+":
            return f"{action.metavar or default_metavar} ..."
        return "" if action.nargs == "?" else super()._format_args(action, default_metavar)


class Parser(BaseParser):
    """A parser of the fields of dataclasses; `groups` are the titles of the help and whose names stand under each."""

    def __init__(
        self,
        kinds: Sequence[type],
        *,
        description: str,
        examples: str,
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        verb = description.split(maxsplit=1)[0]
        needed = [f for f in dataclasses.fields(kinds[0]) if _is_required(f)]
        names = " ".join(f"--{f.name} {f.metadata.get('metavar', f.name.upper())}" for f in needed)
        super().__init__(
            prog=f"teachonce {verb}",
            usage=f"teachonce {verb} [FILE.yaml] {names} [flags]",
            description=description.partition(" ")[2],
            epilog=examples,
            formatter_class=_Formatter,
        )
        self.dataclass_types = list(kinds)
        self._shows_all = len(kinds) == 1
        self._add_fields(groups or {})
        # What was not told is left to the dataclass: argparse has its own idea of some defaults. Where `--no_x` stands
        # behind `--x`, the first says what is so.
        self._untold = {action.dest: action.default for action in reversed(self._actions)}
        if not self._shows_all:
            self.add_argument(
                HELP_ALL, action="store_true", help="also show every other flag of transformers"
            )

    def _add_fields(self, groups: Mapping[str, Sequence[str]]) -> None:
        """Each group's flags in its order, then the others; of these only the first kind's are in a short help."""
        own, *others = self.dataclass_types
        fields = {f.name: f for kind in self.dataclass_types for f in dataclasses.fields(kind) if f.init}
        hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        grouped = {title: [name for name in names if name in fields] for title, names in groups.items()}
        left = [name for name in fields if not any(name in names for names in grouped.values())]
        shown = {f.name for f in dataclasses.fields(own)}
        grouped |= {"others": [name for name in left if name in shown]} if others or groups else {}
        self._hidden = {name for name in left if name not in shown}
        for title, names in grouped.items():
            group = self.add_argument_group(title) if names else self
            for name in names:
                _add_field(group, fields[name], hints[name])
        rest = [name for name in left if name not in {n for names in grouped.values() for n in names}]
        group = self.add_argument_group("of transformers") if self._hidden else self
        for name in rest:
            _add_field(group, fields[name], hints[name])

    def format_help(self) -> str:
        """The help without the flags that only `--help_all` shows."""
        if not self._shows_all:
            for action in self._actions:
                if action.dest in self._hidden:
                    action.help = argparse.SUPPRESS
        return super().format_help()

    def values(self, argv: Sequence[str]) -> list[Any]:
        """One value of each dataclass from `[FILE] flags`; flags win over the file.

        Raises:
            UsageError: an unknown flag or key, a wrong value, or a file that cannot be read.
        """
        values = self.words(argv)
        return [self._build(kind, values) for kind in self.dataclass_types]

    def words(self, argv: Sequence[str]) -> Mapping[str, Any]:
        """What each flag says, as far as no dataclass is asked.

        Raises:
            UsageError: as `values`.
        """
        arguments = list(argv)
        if HELP_ALL in arguments:
            self._shows_all, arguments = True, ["--help"]
        if arguments and not arguments[0].startswith("-"):
            path = arguments.pop(0)
            self.use(read_file(path), path)
        found: Mapping[str, Any] = vars(self.parse_args(arguments))
        return found

    def _build(self, kind: Any, values: Mapping[str, Any]) -> Any:
        said = {
            field.name: values[field.name]
            for field in dataclasses.fields(kind)
            if field.init and values[field.name] != self._untold[field.name]
        }
        try:
            return kind(**said)
        except TeachonceError:
            raise
        except Exception as error:
            got = one_line(error).rstrip(".")
            raise UsageError("a flag has a value that cannot be", got=got, do="See --help") from error

    def use(self, keys: Mapping[str, Any], path: str) -> None:
        """Takes a file's keys as defaults, later ones in place of earlier; what a flag requires may stand there.

        Raises:
            UsageError: a key that is no flag, or a value of another shape than the flag's.
        """
        actions = {action.dest: action for action in reversed(self._actions)}
        kinds = {name: kind for each in self.dataclass_types for name, kind in get_type_hints(each).items()}
        settled = {name for each in self.dataclass_types for name in getattr(each, "SETTLED", ())}
        for key, value in keys.items():
            action = actions.get(key)
            if action is None or key in ("help", "help_all", "students", "tasks", "json"):
                raise UsageError(
                    "there is no such key", where=path, got=key, do=f"{nearest(str(key), actions)}See --help"
                )
            action.required = False
            action.default = Told(
                where=path,
                key=key,
                kind=kinds.get(key),
                takes_list=bool(action.nargs == "+"),
                is_path=isinstance(action, Repeatable),
                may_be_nothing=type(None) in get_args(kinds.get(key)) and key not in settled,
            ).text(value)


def _add_field(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    """A field as a flag: in both spellings, and with a `--no_` where it is on by itself."""
    name, kind = field.name, _kind(hint)
    spellings = [f"--{name}"] + [f"--{name.replace('_', '-')}"] * ("_" in name)
    told = dict(field.metadata)
    keywords = {**told, **_default(field, is_list=get_origin(kind) is list), **_type(kind, field)}
    choices = keywords.get("choices")
    if not choices and keywords.get("nargs") != "?":
        keywords.setdefault("metavar", _METAVARS.get(keywords["type"], "TEXT"))
    group.add_argument(*spellings, **keywords)
    if field.default is True and kind in (bool, bool | None):
        off = [f"--no_{name}", f"--no-{name.replace('_', '-')}"]
        group.add_argument(*off, action="store_false", dest=name, **{**told, "default": False})


def _kind(hint: Any) -> Any:
    """What one value of a field is, where it may be several things: as transformers chooses."""
    arguments = get_args(hint)
    if get_origin(hint) not in (Union, UnionType):
        return hint
    if NoneType not in arguments:
        if Any in arguments:
            return str  # what is no text, Python alone can tell
        return arguments[0] if arguments[1] is str else arguments[1]
    if bool in arguments:
        return hint
    return arguments[0] if arguments[1] is NoneType else arguments[1]


def _type(kind: Any, field: dataclasses.Field[Any]) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices = [one.value for one in kind]
        return {"choices": choices, "type": _choice(choices)}
    if get_origin(kind) is Literal:
        return {"choices": list(get_args(kind)), "type": _choice(get_args(kind))}
    if kind in (bool, bool | None):
        takes_none = kind is not bool and field.default in (None, dataclasses.MISSING)
        return {"type": truth} if takes_none else {"type": truth, "nargs": "?", "const": True}
    if get_origin(kind) is list:
        return {"type": get_args(kind)[0], "nargs": "+"}
    return {"type": get_origin(kind) or kind}


def _choice(choices: Sequence[Any]) -> Callable[[str], Any]:
    by_text = {str(choice): choice for choice in choices}
    return lambda text: by_text.get(text, text)


def _default(field: dataclasses.Field[Any], *, is_list: bool) -> dict[str, Any]:
    if field.default is not dataclasses.MISSING:
        return {} if is_list else {"default": field.default}
    if field.default_factory is not dataclasses.MISSING:
        return {"default": field.default_factory()}
    return {"required": True}


def truth(text: str) -> bool:
    """Yes or no, as the `type` of a flag."""
    if text.lower() not in (*_YES, *_NO):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() in _YES


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing
