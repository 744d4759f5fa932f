"""The site: every page is in a toctree, every link between pages leads somewhere, and where Sphinx is, it builds."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import pipelines
import schemas
import trainer
from schemas.tasks import TASKS
from tests.docs.blocks import DOCS, ROOT

SPHINX = ROOT / ".venv-docs" / "bin" / "python"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
READ = [ROOT / "README.md", ROOT / "README.zh.md", *PAGES]
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")


def toctree(page):
    """The pages that a page's toctrees name."""
    named = set()
    for body in re.findall(
        r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        for line in body.splitlines():
            if line and not line.startswith(":"):
                named |= set(page.parent.glob(f"{line}.md"))
    return {one.resolve() for one in named}


def reached(page):
    found = {page.resolve()}
    for below in toctree(page):
        found |= reached(below)
    return found


def test_every_page_is_in_the_toctree():
    assert reached(DOCS / "index.md") == {page.resolve() for page in PAGES}
    named = re.findall(r"^[\w/-]+$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert len(named) == len(set(named)) > 30
    assert [name for name in named if not (DOCS / f"{name}.md").exists()] == []


def test_every_task_has_a_tutorial():
    for name in TASKS:
        assert {(DOCS / f"{name}.md").resolve(), (DOCS / "tasks" / f"{name}.md").resolve()} & toctree(
            DOCS / "index.md"
        )


def slug(heading):
    """As GitHub and the site name a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def links(page):
    """Links of a page to what is no address, without those inside code."""
    text = re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    every = (one or two for one, two in _LINK.findall(text))
    return [link for link in every if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


def test_links_are_seen():
    assert "quality.md" in links(DOCS / "cost.md")
    assert "quality.png" in links(DOCS / "quality.md")
    assert sum(map(len, map(links, PAGES))) > 30


def test_pages_named_in_the_readme_are_there():
    named = re.findall(r"docs/[\w/-]+\.md", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert len(named) > 15


def test_the_reference_names_what_is_public():
    """Whatever a package exports is on the page, and nothing else."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    for package in (schemas, pipelines, trainer):
        (section,) = re.findall(rf"## `{package.__name__}`.*?```\n", text, re.DOTALL)
        listed = {name for names in re.findall(r":members: (.*)", section) for name in names.split(", ")}
        listed |= set(re.findall(rf"autoclass:: {package.__name__}\.(\w+)", section))
        assert listed == set(package.__all__)


def test_the_configuration_is_python_and_names_what_is_required():
    tree = ast.parse((DOCS / "conf.py").read_text())
    (extensions,) = [
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and n.targets[0].id == "extensions"
    ]
    required = (DOCS / "requirements.txt").read_text()
    assert {"myst_parser", "sphinx.ext.autodoc"} <= set(extensions)
    for package in ("sphinx==", "furo==", "myst-parser==", "sphinxcontrib-mermaid=="):
        assert package in required


@pytest.mark.skipif(not SPHINX.exists(), reason="Sphinx is not installed here: `make docs` makes .venv-docs")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [SPHINX, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", DOCS, tmp_path / "site"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "site" / "tasks" / "causal-lm.html").exists()
    api = (tmp_path / "site" / "api.html").read_text()
    assert all(f"{name}" in api for package in (schemas, pipelines, trainer) for name in package.__all__)
    shutil.rmtree(tmp_path / "site")
    assert Path(DOCS / "conf.py").exists()
