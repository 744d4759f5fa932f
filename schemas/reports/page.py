"""The page: one file, which opens anywhere and asks no network for anything.

Its scripts stand inside, the bundle of Vega once for all charts. A policy in its head lets no other script run and no
request out, whatever a corpus has smuggled into a text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import vl_convert

from schemas.reports.cache_facts import CacheFacts
from schemas.reports.cache_section import cache_section
from schemas.reports.markup import Html, data, element, joined, shown
from schemas.reports.run_section import run_section
from schemas.reports.runs import Run
from schemas.reports.style import SCRIPT, STYLE

_SNIPPET = "window.vegaEmbed = vegaEmbed;"


def page_of(caches: Sequence[CacheFacts], runs: Sequence[Run], *, command: str) -> str:
    """The whole page as HTML."""
    charts: dict[str, Any] = {}
    sections = [cache_section(facts, f"cache-{n}", charts) for n, facts in enumerate(caches)]
    if runs:
        sections.append(run_section(runs, charts))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    head = element("h1", shown("teachonce report"))
    told = element("p", shown(f"{made}: "), element("code", shown(command)), **{"class": "dim"})
    return _document(joined([head, told, *sections]), charts)


def _document(body: Html, charts: Mapping[str, Any]) -> str:
    scripts = (vl_convert.javascript_bundle(_SNIPPET), SCRIPT)
    assert not any("</script" in script.lower() for script in scripts)
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))} 'unsafe-eval'; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    inline = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{shown(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>teachonce report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n{data('charts', charts)}\n{inline}</body>\n</html>\n"
    )


def _hash(script: str) -> str:
    """How a policy names a script that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
