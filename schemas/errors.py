"""Every error that teachonce raises on purpose.

* TeachonceError                one line: what, where, expected, got, what to do
  + UsageError                  a wrong flag, path or model
  + CacheError                  about a cache
    - NoCacheError              nothing was ever committed there
    - FormatError               written by a newer teachonce, or not a cache's spec
    - CorruptionError           bytes that do not match their seal, schema, count or id
      . BrokenShardsError       the same, with every shard that is broken and why
      . SealedError             what a seal that holds vouches for is wrong: asked for again it is the same
    - MismatchError             the run's fingerprint or spec is not the cache's
    - ConflictError             another run committed in the meantime
  + CorpusError                 about the corpus
    - TruncatedFileError        a compressed file ends inside a frame
    - TooManyRejectsError       more documents were rejected than the run tolerates
    - TooManyMissingError       more rows would be pruned than the run tolerates
  + TeacherError                the teacher cannot be run as asked
    - DriftError                a fresh teacher no longer says what the cache holds
  + StudentError                the student does not fit the cache or the losses
  + TrainingError               training cannot go on; its last whole checkpoint stands

`ValueError` is for a bad argument of a Python call; `assert` for our own invariants.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Mapping
from typing import Any

from schemas.printable import printable

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SYSTEM_REFUSED = re.compile(r"\(os error ([0-9]{1,4})\)")
"""How libraries in Rust tell what the system said, inside errors of their own."""
_MAX_GOT_CHARS = 300
_LEAST_START = 3
"""Letters from which the beginning of a name is taken for it."""

_ADVICE: Mapping[int | None, str] = {
    errno.ENOSPC: "Free some space, or choose another disk",
    errno.EDQUOT: "Free some of your quota, or choose another disk",
    errno.EFBIG: "Raise the limit on a file's size (`ulimit -f`)",
    errno.EMFILE: "Raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "Too many files are open on this machine: end what holds them",
    errno.EROFS: "That disk is read-only: choose another path",
    errno.EACCES: "Check the path and its permissions",
    errno.EPERM: "Check the path and its permissions",
    errno.EISDIR: "A folder stands there: choose another path",
    errno.ENOTDIR: "A file stands in the place of a folder: choose another path",
    errno.ENOENT: "Check the path: a folder on its way is missing",
    errno.EEXIST: "Something stands there: choose another path",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.ELOOP: "A symbolic link stands there, or links lead in a circle: choose another path",
    errno.EIO: "The disk fails: look at the system's log",
}
"""What to do about what the system refuses."""

REPAIR = "Restore the file from a copy; or run `teachonce verify --repair` and then precompute again"
"""What to do about a shard that is not what was sealed."""
NEWER = "Install the teachonce release that wrote it, or a newer one"
"""What to do about a format that this reader does not know."""


class TeachonceError(Exception):
    """The root. `str(error)` is one line made of the parts that were given."""

    is_told = False
    """Whether the verb that it ended has printed it as an object of its own."""

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        do: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.got, self.do = what, where, expected, got, do
        super().__init__(self.line())

    def line(self) -> str:
        """The message: `what: where: expected E, got G. Do.`; nothing in it is obeyed by a terminal."""
        text = self.what if self.where is None else f"{self.what}: {self.where}"
        found = [
            f"{word} {value}"
            for word, value in (("expected", self.expected), ("got", self.got))
            if value is not None
        ]
        text = f"{text}: {', '.join(found)}" if found else text
        return printable(f"{text}. {self.do}" if self.do else text)

    def __reduce__(self) -> tuple[Any, ...]:
        """Keyword arguments survive pickling, so an error crosses a worker's border whole."""
        parts = {"where": self.where, "expected": self.expected, "got": self.got, "do": self.do}
        return _rebuild, (type(self), self.what, parts)


def _rebuild(kind: type[TeachonceError], what: str, parts: dict[str, Any]) -> TeachonceError:
    return kind(what, **parts)


def one_line(error: BaseException) -> str:
    """What a library's error says, as one line without colours, for `got=`."""
    text = " ".join(_COLOUR.sub("", str(error)).replace("\u21b3", " ").split())
    return text[:_MAX_GOT_CHARS] or repr(error)


def advice(error: BaseException) -> str:
    """What to do about what the system, or a store, refuses."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := SYSTEM_REFUSED.search(str(error))):
        number = int(found[1])
    return _ADVICE.get(number, "Check the path, its permissions, free space and credentials")


class UsageError(TeachonceError):
    """A flag, a path or a model name is wrong; nothing was done."""


class CacheError(TeachonceError):
    """Something is wrong with a cache."""


class NoCacheError(CacheError):
    """The folder holds no committed version."""


class FormatError(CacheError):
    """The cache's format is unknown to this reader."""


class CorruptionError(CacheError):
    """Bytes, schema, counts or ids are not what the log vouches for."""


class SealedError(CorruptionError):
    """Bytes that are what was sealed, and make no sense."""


class BrokenShardsError(CorruptionError):
    """Some shards of a version are not what the log vouches for."""

    faults: tuple[tuple[str, str], ...] = ()
    """Each broken shard's name, and what is wrong with it."""

    @classmethod
    def of(cls, faults: Mapping[str, TeachonceError], num_shards: int) -> BrokenShardsError:
        """Of the error that each broken shard has raised."""
        first = next(iter(faults.values()))
        error = cls(f"{len(faults)} of {num_shards} shards are broken; the first: {first}")
        error.faults = tuple((name, str(fault)) for name, fault in faults.items())
        return error

    def counted(self) -> CorruptionError:
        """The same where every fault was told before: how many there are, and what to do."""
        return CorruptionError(f"{self.what.partition(';')[0]}; they are named above", do=REPAIR)

    def __reduce__(self) -> tuple[Any, ...]:
        return (*super().__reduce__(), {"faults": self.faults})


class MismatchError(CacheError):
    """A run would mix another teacher or another spec into a cache."""


class ConflictError(CacheError):
    """The cache has moved on since the run began."""


class CorpusError(TeachonceError):
    """The corpus cannot be read as asked."""


class TruncatedFileError(CorpusError):
    """A compressed file ends inside a frame: its last documents are missing."""


class TooManyRejectsError(CorpusError):
    """The share of rejected documents is above the tolerance; nothing was committed."""


class TooManyMissingError(CorpusError):
    """So many of the cache's documents are missing in the corpus that it is rather the corpus that is not whole."""


class TeacherError(TeachonceError):
    """The teacher cannot be opened or run as asked."""


class DriftError(TeacherError):
    """A fresh teacher's distributions are further from the cache's than the bound."""


class StudentError(TeachonceError):
    """The student does not fit the cache, or a loss does not fit the spec."""


class TrainingError(TeachonceError):
    """Training cannot go on: it is no longer finite, or what it comes to cannot be saved."""


def nearest(word: str, names: Iterable[str]) -> str:
    """`Did you mean NAME? `, where a name is near to a word that is none; else nothing.

    A transposition, a dash for an underscore, a missing or another ending are near. What merely shares some letters is
    not: a wrong hint is worse than none.
    """
    known = {_plain(name): name for name in reversed(list(names))}
    plain = _plain(word)
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    if not near and len(plain) >= _LEAST_START:
        near = sorted((name for name in known if name.startswith(plain)), key=len)[:1]
    return f"Did you mean {known[near[0]]}? " if near else ""


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("-", "_")
