"""What leaves this project's memory: files that must be read long after its modules have moved."""

import re
from pathlib import Path

_MODULES = re.compile(rb"\b(?:schemas|pipelines|trainer)\.[a-z_]+\b")


def modules_named_in(folder: Path) -> dict[str, set[bytes]]:
    """The files below a folder whose bytes name modules of this project, as a pickle would."""
    found = {
        path.name: {*_MODULES.findall(path.read_bytes())} for path in folder.rglob("*") if path.is_file()
    }
    return {name: names for name, names in found.items() if names}
