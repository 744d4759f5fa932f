"""`Space`: the flags of `train` that a sweep's trials have alike, and the parameters by which they differ.

A file's keys are `train`'s flags, and its values what a file of flags has, but for two: a list is a choice of one of
its values, and `{uniform: [LOW, HIGH]}` or `{log: [LOW, HIGH]}` a range. Both may also stand within a flag that is a
mapping (`losses: {kl: {uniform: [0, 1]}, ce: 0.5}`). A value of a flag's list may bring other flags along: it is a
mapping then in which the flag itself stands (`student: [small.json, {student: shrink:layers=6, teacher: ./teacher}]`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args, get_type_hints

import numpy as np

from schemas.errors import UsageError
from trainer.sweep.domains import Choice, Domain, Value, is_range, label, parse_choice, parse_range
from trainer.training.arguments import StudentArguments
from trainer.training.config import TrainConfig
from trainer.training.fanout import check_together

Values = Mapping[str, Value]
"""Of each parameter by its name."""
Build = Callable[[Mapping[str, Any], str], tuple[TrainConfig, StudentArguments]]
"""Flags, and where they stand, to what `train` is told; a `UsageError` where they cannot be."""

OWN: Mapping[str, str] = {
    "cache": "the command names the cache",
    "output_dir": "the study names each trial's folder",
    "overwrite_output_dir": "the study names each trial's folder",
    "resume_from_checkpoint": "a sweep that is begun goes on by itself",
    "allow_new_data": "all trials of a study read one version of the cache",
}
"""Flags that are the sweep's, and why."""
ALIKE = ("eval_fraction", "cache_version", "local_cache", "local_cache_gb", "memory_cache_gb")
"""Flags that all trials have alike: by them they are compared."""
_MOST_TRIES = 64


class Parameter(NamedTuple):
    """One thing by which trials differ."""

    name: str
    """The flag, and what within it after a dot."""
    where: str
    """Its place in the file."""
    domain: Domain


@dataclass(frozen=True, kw_only=True)
class Space:
    """What trials may be."""

    where: str
    """The file."""
    told: Mapping[str, Any]
    """Its keys, as they stand there."""
    lines: Mapping[str, int]
    """The line of each key, by its name with dots."""
    parameters: tuple[Parameter, ...]

    @classmethod
    def parse(cls, told: Mapping[str, Any], where: str, lines: Mapping[str, int]) -> Space:
        """Of a file's keys; `check` tells whether `train` takes them.

        Raises:
            UsageError: naming the file's line.
        """
        whole = _whole_flags()
        found: list[Parameter] = []
        for key, value in told.items():
            place = _place(where, lines, key)
            if key in OWN:
                raise UsageError(f"the space cannot say {key}: {OWN[key]}", where=place, do="Leave it out")
            for name, part in _open(key, value):
                found.append(_parameter(name, part, _place(where, lines, name), is_whole=name in whole))
        if differs := [p for p in found if p.name.partition(".")[0] in ALIKE]:
            what = f"all trials have one {differs[0].name}, by which they are compared"
            raise UsageError(what, where=differs[0].where, expected="one value", got=differs[0].domain)
        if not found:
            raise UsageError(
                "the space holds no parameter: every trial would be the same",
                where=where,
                expected="a list of values, {uniform: [LOW, HIGH]} or {log: [LOW, HIGH]} somewhere",
            )
        return cls(where=where, told=told, lines=lines, parameters=tuple(found))

    def flags(self, values: Values) -> dict[str, Any]:
        """What `train` is told of a trial."""
        domains = {parameter.name: parameter.domain for parameter in self.parameters}
        found: dict[str, Any] = {}
        brought: dict[str, Any] = {}
        for key, value in self.told.items():
            filled = _fill(key, value, lambda name: domains[name].value(values[name]))
            if key in domains and isinstance(filled, dict) and key in filled:
                brought |= filled
            else:
                found[key] = filled
        return found | brought

    def check(self, build: Build) -> Values:
        """Whether `train` takes each value of each parameter in some trial; returns the values of one that it takes.

        Raises:
            UsageError: naming the file's line.
        """
        self._check_brought()
        accepted = self._accepted(build, {}, None)
        for parameter in self.parameters:
            for value in parameter.domain.edges:
                self._accepted(build, {**accepted, parameter.name: value}, parameter)
        return accepted

    def built(self, values: Values, build: Build) -> tuple[TrainConfig, StudentArguments]:
        """What `train` is told of a trial, checked as far as that can be without opening anything.

        Raises:
            UsageError: its flags do not go together.
        """
        return built(self.flags(values), build, self.where)

    def _check_brought(self) -> None:
        names = [parameter.name for parameter in self.parameters]
        for parameter in self.parameters:
            if not isinstance(parameter.domain, Choice):
                continue
            for value in parameter.domain.options.values():
                for key in value if isinstance(value, dict) and parameter.name in value else ():
                    taken = [n for n in names if n.partition(".")[0] == key and n != parameter.name]
                    if key in OWN or key in ALIKE or taken:
                        why = OWN.get(key) or "it stands there for all trials, or has a range of its own"
                        raise UsageError(
                            f"a value cannot bring {key} along: {why}",
                            where=parameter.where,
                            got=label(value),
                        )

    def _accepted(self, build: Build, start: Values, parameter: Parameter | None) -> Values:
        """A trial's values that `train` takes, where `parameter` has the value that it has in `start`."""
        first: UsageError | None = None
        for values in self._tries(start, parameter):
            try:
                self.built(values, build)
            except UsageError as error:
                first = first or error
            else:
                return values
        assert first is not None
        what = "no trial can be trained" if parameter is None else f"no trial can have this {parameter.name}"
        got = None if parameter is None else start[parameter.name]
        where = self._blamed(first) if parameter is None else parameter.where
        raise _retold(what, where, got, first) from first

    def _tries(self, start: Values, parameter: Parameter | None) -> Iterator[Values]:
        """`start`, or the first of everything; and then what is drawn for the others."""
        rng = np.random.default_rng(0)
        yield {p.name: start.get(p.name, p.domain.edges[0]) for p in self.parameters}
        for _ in range(_MOST_TRIES):
            drawn = {p.name: p.domain.edges[rng.integers(len(p.domain.edges))] for p in self.parameters}
            yield drawn if parameter is None else {**drawn, parameter.name: start[parameter.name]}

    def _blamed(self, error: UsageError) -> str:
        """The line of the key that an error speaks of, if it speaks of one."""
        text = str(error).replace("--", " ")
        words = {word.strip(".,:;'\"") for word in text.split()}
        named = [key for key in self.told if key in words]
        return _place(self.where, self.lines, named[0]) if named else self.where


def built(flags: Mapping[str, Any], build: Build, where: str) -> tuple[TrainConfig, StudentArguments]:
    """A trial's flags as `train` has them, with a folder that is not there.

    Raises:
        UsageError: they do not go together.
    """
    config, arguments = build({"cache": "cache", "output_dir": "trial", **flags}, where)
    check_together([(config, arguments)])
    return config, arguments


def _retold(what: str, where: str, got: Any, error: UsageError) -> UsageError:
    """The error of a parser, at the file's line."""
    why = UsageError(error.what, where=error.where, expected=error.expected, got=error.got)
    return UsageError(what, where=where, got=why if got is None else f"{got} ({why})", do=error.do)


def _whole_flags() -> set[str]:
    """Flags that take whole numbers."""
    found = set()
    for kind in (TrainConfig, StudentArguments):
        for name, hint in get_type_hints(kind).items():
            kinds = {hint, *get_args(hint)}
            if int in kinds and float not in kinds:
                found.add(name)
    return found


def _open(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The lists and ranges within a key's value, by their names."""
    if isinstance(value, list) or is_range(value):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _open(f"{name}.{key}", item)


def _fill(name: str, value: Any, chosen: Callable[[str], Any]) -> Any:
    if isinstance(value, list) or is_range(value):
        return chosen(name)
    if isinstance(value, dict):
        return {key: _fill(f"{name}.{key}", item, chosen) for key, item in value.items()}
    return value


def _parameter(name: str, told: Any, where: str, *, is_whole: bool) -> Parameter:
    try:
        domain = parse_choice(name, told) if isinstance(told, list) else parse_range(told, is_whole=is_whole)
    except ValueError as error:
        raise UsageError(f"{name} cannot be read: {error}", where=where, got=told) from error
    return Parameter(name, where, domain)


def _place(where: str, lines: Mapping[str, int], name: str) -> str:
    """The file and the line of a name; of what stands deeper, that of what it stands in."""
    parts: Sequence[str] = name.split(".")
    for number in range(len(parts), 0, -1):
        if (line := lines.get(".".join(parts[:number]))) is not None:
            return f"{where}, line {line}"
    return where
