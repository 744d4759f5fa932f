"""The versions that driver and workers must share.

A worker image or a staged package can be older than the code that started the run. `teachonce` and `apache-beam` must
be equal, or steps and values of two builds would meet in one run: a worker refuses before it tokenises or asks the
teacher. torch, transformers and the device may differ: they are provenance, which the workers tell with each unit.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import schemas
from schemas.errors import TeacherError


@functools.cache
def shared_versions() -> dict[str, str]:
    """What must be equal on the driver and on every worker; `code` tells two builds of one version apart."""
    state = hashlib.sha256()
    for file in (__file__, str(schemas.__file__)):
        state.update(package_hash(Path(file).parent))
    found = {name: version(name) for name in ("teachonce", "apache-beam")}
    return {**found, "code": state.hexdigest()[:12]}


def package_hash(folder: Path) -> bytes:
    """A hash of a package's sources, those of its sub-packages included: their places below it, and their bytes."""
    state = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        data = file.read_bytes()
        state.update(f"{folder.name}/{file.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
    return state.digest()


def check_versions(started_with: Mapping[str, str]) -> None:
    """Refuses to work in a run that another build started.

    Raises:
        TeacherError: naming every difference.
    """
    here = shared_versions()
    other = [name for name, value in started_with.items() if here.get(name) != value]
    if other:
        raise TeacherError(
            "a worker has other versions than the run was started with",
            where=platform.node(),
            expected=", ".join(f"{name} {started_with[name]}" for name in other),
            got=", ".join(f"{name} {here.get(name)}" for name in other),
            do="Build the worker image from the commit and requirements.lock that start the run",
        )
