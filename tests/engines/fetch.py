"""Fetches the engines and object stores that `make test-engines` runs: pinned, checked, and once.

    python tests/engines/fetch.py       into .engines/; what is there and whole is skipped

* Go programs (Prism, MinIO, fake-gcs-server): `go install` of a pinned version, whose modules Go checks against its
  checksum database; the sum of the program's own module is compared with the one written here.
* Another release of transformers, with the tokenizers and hub library that it needs, beside the lock's: by pip, with
  hashes (`transformers.txt`), into a folder that a test puts first on the path.
* Jars: Beam's Flink job server by Maven (`pom.xml`), Flink itself out of a Python source archive (`flink.txt`, with its
  hash); every jar is compared with `jars.sha256`.

Cost on two cores, nothing cached: about five minutes, and 750 MB on disk. Only the standard library is used.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ENGINES = HERE.parents[1] / ".engines"
SUMS = HERE / "jars.sha256"
TRANSFORMERS = "transformers-5.5.0"
"""The other release: its `save_pretrained` writes other files than the lock's."""


class Program(NamedTuple):
    """A Go program: what to install, and the checksum of its module, as `go version -m` tells it."""

    package: str
    version: str
    module_sum: str


PROGRAMS = {
    "prism": Program(
        "github.com/apache/beam/sdks/v2/go/cmd/prism",
        "v2.77.0",
        "h1:RsC61pHEvtySEHAURQyP/+CVOJm/hy5hewuG9JF0+Ow=",
    ),
    "minio": Program(
        "github.com/minio/minio",
        "v0.0.0-20260212201848-7aac2a2c5b7c",
        "h1:/qdoYujxF5MBLDMVLeiYJ/7fBa1HikX39Dvzb9Ji8pA=",
    ),
    "fake-gcs-server": Program(
        "github.com/fsouza/fake-gcs-server", "v1.56.1", "h1:K03sAvbLvDz4hAynpCCUqnNRp+ik9JFSvHbkD/wTPOU="
    ),
}


def main() -> int:
    """Fetches what is missing, one after the other; one line for each."""
    parser = argparse.ArgumentParser(description="fetch the engines and object stores of the engine tests")
    parser.add_argument("--write_sums", action="store_true", help=f"write {SUMS.name} anew, from what came")
    arguments = parser.parse_args()
    try:
        told(TRANSFORMERS, library_is_there, fetch_library)
        require("go", "mvn", "java")
        for name in PROGRAMS:
            told(name, program_is_there, fetch_program)
        told("beam-flink", jars_are_there, fetch_beam_jars)
        told("flink", jars_are_there, fetch_flink_jars)
        if arguments.write_sums:
            write_sums()
        check_jars()
    except (FetchError, OSError) as error:
        sys.stderr.write(f"engines: {error}\n")
        return 1
    return 0


class FetchError(Exception):
    """Something is missing on this machine, or what came is not what was pinned."""


def told(name, is_there, fetch):
    """Fetches a thing unless it is there, and says how long that took."""
    if is_there(name):
        print(f"{name}: there")
        return
    started = time.monotonic()
    print(f"{name}: fetching", flush=True)
    fetch(name)
    print(f"{name}: fetched in {time.monotonic() - started:.0f} s", flush=True)


def library_is_there(name: str) -> bool:
    """Whether the other release is there, whole: it was moved to its place when it was."""
    return (ENGINES / name / f"{name}.dist-info").is_dir()


def fetch_library(name: str) -> None:
    """Installs the other release into a folder of its own."""
    with scratch() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        kind = ["--no-compile", "--only-binary=:all:", "--require-hashes", f"--target={folder / 'lib'}"]
        call(*pip, *kind, f"--requirement={HERE / 'transformers.txt'}")
        move(folder / "lib", ENGINES / name)


def program_path(name: str) -> Path:
    """Where a Go program lies."""
    return ENGINES / "bin" / name


def program_is_there(name: str) -> bool:
    """Whether a program is there and is the pinned one."""
    return program_path(name).is_file() and module_sum(program_path(name)) == PROGRAMS[name].module_sum


def fetch_program(name: str) -> None:
    """Builds a Go program into a folder of its own, checks it, and moves it to its place."""
    program = PROGRAMS[name]
    with scratch() as folder:
        call("go", "install", f"{program.package}@{program.version}", env={"GOBIN": str(folder)})
        got = module_sum(folder / name)
        if got != program.module_sum:
            raise FetchError(f"{name} {program.version}: expected the module {program.module_sum}, got {got}")
        move(folder / name, program_path(name))


def module_sum(program: Path) -> str | None:
    """The checksum of the module that a Go program was built from."""
    for line in call("go", "version", "-m", str(program)).splitlines():
        words = line.split()
        if words[:1] == ["mod"]:
            return words[3] if len(words) > 3 else None
    return None


def fetch_beam_jars(name: str) -> None:
    """Beam's Flink runner and job server, with all that they need."""
    with scratch() as folder:
        call(
            "mvn",
            "--quiet",
            "--batch-mode",
            f"--file={HERE / 'pom.xml'}",
            "dependency:copy-dependencies",
            f"-DoutputDirectory={folder / 'lib'}",
        )
        move(folder / "lib", ENGINES / name)


def fetch_flink_jars(name: str) -> None:
    """Flink's distribution: the jars of a source archive, of which nothing is installed."""
    with scratch() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        kind = ["--no-build-isolation", "--no-binary=:all:", "--require-hashes"]
        call(*pip, *kind, f"--requirement={HERE / 'flink.txt'}", f"--dest={folder}")
        (folder / "lib").mkdir()
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as file:
            for member in file:
                path = Path(member.name)
                if path.parts[1:3] == ("deps", "lib") and path.suffix == ".jar":
                    (folder / "lib" / path.name).write_bytes(file.extractfile(member).read())
        move(folder / "lib", ENGINES / name)


def jars_are_there(folder: str) -> bool:
    """Whether all pinned jars of a folder are there; what they hold is checked at the end."""
    wanted = [name for name in pinned() if name.startswith(f"{folder}/")]
    return bool(wanted) and all((ENGINES / name).is_file() for name in wanted)


def check_jars() -> None:
    """Compares every jar with its pinned checksum.

    Raises:
        FetchError: one differs, is missing, or is not known.
    """
    wanted, found = pinned(), digests()
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise FetchError(
            f"{len(wrong)} jars are not those of {SUMS.name}, the first {wrong[0]}: "
            f"expected {wanted.get(wrong[0])}, got {found.get(wrong[0])}. Remove {ENGINES} and fetch again"
        )
    print(f"{len(found)} jars: as pinned")


def pinned() -> dict[str, str]:
    """The sha256 of each jar, by its name below the engines' folder."""
    lines = SUMS.read_text(encoding="utf-8").splitlines() if SUMS.exists() else []
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def digests() -> dict[str, str]:
    """The sha256 of each jar that is there."""
    found = {}
    for folder in ("beam-flink", "flink"):
        for path in sorted((ENGINES / folder).glob("*.jar")):
            with path.open("rb") as file:
                found[f"{folder}/{path.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_sums() -> None:
    """Pins what was fetched: for whoever raises a version, after looking at what came."""
    SUMS.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests().items())))


def require(*tools: str) -> None:
    """Fails unless these are on the path.

    Raises:
        FetchError: naming those that are not.
    """
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise FetchError(f"{', '.join(missing)} not found: install go (1.26 or newer), mvn and java (17)")


def call(tool: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """A tool's stdout.

    Raises:
        FetchError: it failed; with the end of what it said.
    """
    done = subprocess.run(
        [tool, *arguments], check=False, capture_output=True, text=True, env={**os.environ, **(env or {})}
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-800:]
        raise FetchError(f"{' '.join([Path(tool).name, *arguments[:3]])} failed: {said}")
    return done.stdout


def scratch() -> tempfile.TemporaryDirectory:
    """A folder beside the engines, so that a move out of it is one rename."""
    ENGINES.mkdir(exist_ok=True)
    return ScratchFolder(dir=ENGINES, prefix="tmp-")


class ScratchFolder(tempfile.TemporaryDirectory):
    """A temporary folder, entered as a path."""

    def __enter__(self) -> Path:
        return Path(super().__enter__())


def move(source: Path, target: Path) -> None:
    """Puts something whole into its place; what was there before goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


if __name__ == "__main__":
    sys.exit(main())
