"""A YAML or JSON file of flags: read strictly, each key as the words that would stand on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args, get_origin

import yaml  # type: ignore[import-untyped]

from schemas.cli.arguments import small_text
from schemas.errors import UsageError, one_line

MOST_BYTES = 2**24
"""Of a file of flags."""
_OF_WORDS = ("stages",)
"""Lists whose items may be mappings."""
_OFF_IS_NO = ("eval_strategy", "save_strategy", "logging_strategy", "include_num_input_tokens_seen")


class Told(NamedTuple):
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
