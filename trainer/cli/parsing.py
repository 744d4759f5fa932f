"""Parsing shared by the verbs: dataclasses become flags, a YAML or JSON file gives defaults, errors are one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]
from transformers import HfArgumentParser

from schemas.cli.arguments import Repeatable, small_text
from schemas.errors import TeachonceError, UsageError, one_line

HELP_ALL = "--help_all"
MOST_BYTES = 2**24
"""Of a file of flags."""
_OF_WORDS = ("stages",)
"""Lists whose items may be mappings."""
_OFF_IS_NO = ("eval_strategy", "save_strategy", "logging_strategy", "include_num_input_tokens_seen")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with defaults where there are any, examples as they are written, and each flag in one spelling."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default in (None, argparse.SUPPRESS, False, []) or not action.option_strings
        return action.help if told else f"{action.help} (default: %(default)s)"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings = action.option_strings
        action.option_strings = [text for text in spellings if "-" not in text.lstrip("-")]
        text = super()._format_action_invocation(action)
        action.option_strings = spellings
        return text


class Parser(HfArgumentParser):  # type: ignore[misc]
    """`HfArgumentParser` whose every error is a `UsageError`, with defaults from a file before the flags."""

    def __init__(
        self, kinds: Sequence[type], *, description: str, examples: str, shown: Iterable[str] = ()
    ) -> None:
        first, *others = kinds
        names = " ".join(f"--{f.name} {f.name.upper()}" for f in dataclasses.fields(first) if _required(f))
        super().__init__(
            list(kinds),
            usage=f"teachonce {description.split(maxsplit=1)[0]} [FILE.yaml] {names} [flags]",
            description=description.partition(" ")[2],
            epilog=examples,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self._hidden = {f.name for kind in others for f in dataclasses.fields(kind)} - set(shown)
        self._shows_all = False
        # What was not told is left to the dataclass: argparse has its own idea of some defaults. Where `--no_x` stands
        # behind `--x`, the first says what is so.
        self._untold = {action.dest: action.default for action in reversed(self._actions)}
        if others:
            self.add_argument(
                HELP_ALL, action="store_true", help="also show every other flag of transformers"
            )

    def error(self, message: str) -> NoReturn:
        """What argparse would print with its usage."""
        raise UsageError(message, do="See --help")

    def format_help(self) -> str:
        """The help without the flags that only `--help_all` shows."""
        if not self._shows_all:
            for action in self._actions:
                if action.dest in self._hidden:
                    action.help = argparse.SUPPRESS
        text: str = super().format_help()
        return text

    def values(self, argv: Sequence[str]) -> list[Any]:
        """One value of each dataclass from `[FILE] flags`; flags win over the file.

        Raises:
            UsageError: an unknown flag or key, a wrong value, or a file that cannot be read.
        """
        arguments = list(argv)
        if HELP_ALL in arguments:
            self._shows_all, arguments = True, ["--help"]
        if arguments and not arguments[0].startswith("-"):
            path = arguments.pop(0)
            self.use(read_file(path), path)
        namespace, unknown = self.parse_known_args(arguments)
        if unknown:
            raise UsageError("there is no such flag", got=" ".join(unknown), do="See --help")
        values = vars(namespace)
        return [self._build(kind, values) for kind in self.dataclass_types]

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
            if action is None or key in ("help", "help_all", "students"):
                raise UsageError("there is no such key", where=path, got=key, do="See --help")
            action.required = False
            action.default = _Told(
                where=path,
                key=key,
                kind=kinds.get(key),
                takes_list=bool(action.nargs == "+"),
                is_path=isinstance(action, Repeatable),
                may_be_nothing=type(None) in get_args(kinds.get(key)) and key not in settled,
            ).text(value)


class _Told(NamedTuple):
    """One key of a file, and what its flag is."""

    where: str
    key: str
    kind: Any
    takes_list: bool
    is_path: bool
    """One text is one item then: a path may hold spaces."""
    may_be_nothing: bool

    def text(self, value: Any) -> Any:
        """As argparse would have it: scalars as text, so that a flag's own type reads them.

        A list where the flag takes one; there `{kl: 1, jsd: {weight: 1, beta: 0.3}}` is `[kl=1, "jsd=1,beta=0.3"]`,
        and one text is read as on the command line. A mapping where the flag takes one, as JSON. Nothing where the
        flag may be nothing.
        """
        if value is None:
            if not self.may_be_nothing:
                raise self._wrong("a value, or no such line", "nothing")
            return None
        if self.takes_list:
            return self._items(value)
        if isinstance(value, dict):
            if dict not in [get_origin(kind) or kind for kind in (self.kind, *get_args(self.kind))]:
                raise self._wrong("one value", value)
            return json.dumps(value)
        if isinstance(value, list):
            raise self._wrong("one value", value)
        if value is False and self.key in _OFF_IS_NO:
            return "no"  # what YAML makes of it
        return str(value)

    def _items(self, value: Any) -> list[str]:
        if isinstance(value, dict):
            found = [f"{name}={self._value(item)}" for name, item in value.items()]
        elif isinstance(value, list):
            found = [self._words(item) for item in value]
        else:
            found = [self._scalar(value)] if self.is_path else self._scalar(value).split()
        if not found:
            raise self._wrong("at least one value", value)
        return found

    def _words(self, item: Any) -> str:
        """`{share: 0.3, losses: {pkd: 1}, freeze: [a, b]}` is `share=0.3 losses=pkd=1 freeze=a freeze=b`."""
        if not isinstance(item, dict) or self.key not in _OF_WORDS:
            return self._scalar(item)
        words = []
        for name, value in item.items():
            is_text = isinstance(value, str)
            each = (
                value.split()
                if is_text
                else self._items(value)
                if isinstance(value, dict | list)
                else [value]
            )
            words += [f"{name}={self._scalar(one)}" for one in each]
        return " ".join(words)

    def _value(self, item: Any) -> str:
        """`{weight: 0.5, beta: 0.3}` is `0.5,beta=0.3`."""
        if not isinstance(item, dict) or "weight" not in item:
            return self._scalar(item)
        others = [f",{name}={self._scalar(value)}" for name, value in item.items() if name != "weight"]
        return "".join([self._scalar(item["weight"]), *others])

    def _scalar(self, value: Any) -> str:
        if value is None or isinstance(value, dict | list):
            raise self._wrong("texts or numbers", "nothing" if value is None else value)
        return str(value)

    def _wrong(self, expected: str, got: Any) -> UsageError:
        return UsageError(
            f"the key {self.key} has a value that cannot be", where=self.where, expected=expected, got=got
        )


def read_file(path: str) -> dict[str, Any]:
    """The keys of a YAML or JSON file.

    Raises:
        UsageError: it is not there, or holds no mapping.
    """
    try:
        text = small_text(path, MOST_BYTES)
        found = (
            json.loads(text, object_pairs_hook=_once)
            if path.endswith(".json")
            else yaml.load(text, _OnceLoader)
        )
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise UsageError("the file of flags cannot be read", where=path, got=one_line(error)) from error
    if not isinstance(found, dict):
        raise UsageError("a file of flags holds `flag: value` lines", where=path, got=type(found).__name__)
    return found


class _OnceLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML in which a key may stand once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        _once([(self.construct_object(key, deep=True), None) for key, _ in node.value])
        return super().construct_mapping(node, deep)


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key} stands there twice")
        found[key] = value
    return found


def _required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing
