"""The site of teachonce: Sphinx over the pages of this folder, which GitHub shows as they are."""

import re
from typing import Any

project = "teachonce"
author = "the authors of teachonce"
copyright = author
html_title = "teachonce"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "requirements.txt"]
html_theme = "furo"
html_static_path: list[str] = []

myst_enable_extensions = ["fieldlist"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
# What a page links to beside pages (a Dockerfile, a schedule) is a file of this repository, and is handed out.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "code"


def _as_rst(*event: Any) -> None:
    """Docstrings are written in the little Markdown that people read in an editor: code in single backticks."""
    lines = event[-1]
    text = "\n".join(lines)
    text = re.sub(r"(?s)```python\n(.*?)```", _block, text)
    text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", text)
    lines[:] = text.split("\n")


def _block(match: re.Match[str]) -> str:
    return "::\n\n" + "\n".join(f"    {line}" for line in match[1].splitlines()) + "\n"


def _signature(*event: Any) -> tuple[str | None, str | None]:
    """A field with a factory has no default that Python could read back."""
    signature, returned = event[-2:]
    return (signature.replace("<factory>", "...") if signature else signature), returned


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _as_rst, priority=400)
    app.connect("autodoc-process-signature", _signature)
