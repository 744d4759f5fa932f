"""The fields of transformers' `TrainingArguments`, read in its source and not imported: that would take seconds.

A help text and the refusal of a wrong flag need names, types, defaults and help alone. What is no literal in the source
(a default that a library decides) is None here; values are made by the class itself afterwards. A test compares every
flag with the one that comes of the class. Costs a tenth of a second.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from dataclasses import field, make_dataclass
from enum import Enum
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from trainer.training.flags import LoopFlags

_PLAIN: Mapping[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
_CLASS, _FILES = "TrainingArguments", ("trainer_utils.py", "training_args.py")


@functools.cache
def settings_of_transformers() -> type[Any]:
    """A dataclass with the fields of `StudentArguments`, none of which is checked.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in _sources()]
    known: dict[str, Any] = {**_PLAIN, "Any": Any, "Literal": Literal}
    known |= {name: kind for tree in trees for name, kind in _enums(tree)}
    (body,) = (node.body for node in trees[-1].body if isinstance(node, ast.ClassDef) and node.name == _CLASS)
    found = [_field(node, known) for node in body if isinstance(node, ast.AnnAssign)]
    base = make_dataclass(_CLASS, [one for one in found if one is not None])
    return make_dataclass("Settings", [], bases=(LoopFlags, base))


def _sources() -> list[Path]:
    spec = PathFinder.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
    return [Path(spec.submodule_search_locations[0], name) for name in _FILES]


def _enums(tree: ast.Module) -> Iterator[tuple[str, type[Enum]]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases):
            members = {
                each.targets[0].id: each.value.value
                for each in node.body
                if isinstance(each, ast.Assign)
                and isinstance(each.targets[0], ast.Name)
                and isinstance(each.value, ast.Constant)
            }
            if members:
                yield node.name, Enum(node.name, members)  # type: ignore[misc]


def _field(node: ast.AnnAssign, known: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """One `name: type = field(...)`; None of what the constructor does not take."""
    assert isinstance(node.target, ast.Name)
    given = {}
    if isinstance(node.value, ast.Call):
        given = {word.arg: word.value for word in node.value.keywords}
    if "init" in given and not _literal(given["init"]):
        return None
    default = _literal(given.get("default", node.value))
    if isinstance(default, list):
        told = field(default_factory=functools.partial(list, default), metadata=_told(given))
    else:
        told = field(default=default, metadata=_told(given))
    return node.target.id, _hint(node.annotation, known), told


def _told(given: Mapping[str | None, ast.expr]) -> dict[str, Any]:
    """Help, choices and the like, as far as they are literals."""
    node = given.get("metadata")
    if not isinstance(node, ast.Dict):
        return {}
    pairs = zip(node.keys, node.values, strict=True)
    found = {_literal(key): _literal(value) for key, value in pairs}
    return {key: value for key, value in found.items() if value is not None}


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _hint(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """An annotation as a type; a name that is unknown here is a text's."""
    if isinstance(node, ast.Constant):
        return node.value if node.value is None or isinstance(node.value, bool) else str
    if isinstance(node, ast.BinOp):
        return _hint(node.left, known) | _hint(node.right, known)
    if isinstance(node, ast.Subscript):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _hint(node.value, known)[tuple(_hint(part, known) for part in parts)]
    return known.get(ast.unparse(node), str)
