"""What the page says of one cache."""

from __future__ import annotations

from typing import Any

from schemas.reports.cache_facts import MOST_VERSIONS, CacheFacts
from schemas.reports.cards import cards
from schemas.reports.markup import Html, element, foreign, joined, pairs, shown, table
from schemas.reports.plots.plots import CACHE_PLOTS

_SHOWN_VERSIONS, _SHOWN_CHANGES = 20, 40


def cache_section(facts: CacheFacts, place: str, charts: dict[str, Any]) -> Html:
    """Its head, plots, versions and drift checks."""
    parts = [
        element("h2", shown("Cache "), foreign(f"{facts.path}, version {facts.version}")),
        pairs(facts.told),
        element("p", shown(sample_told(facts)), **{"class": "dim", "id": f"{place}-sample"}),
        cards(CACHE_PLOTS, facts, place, charts),
        _versions(facts),
        _drift(facts),
    ]
    return element("section", joined(parts), id=place)


def sample_told(facts: CacheFacts) -> str:
    """How much was read for what is shown of positions."""
    sample, totals = facts.sample, facts.totals
    if sample.is_whole:
        return f"Every position was read: {sample.tokens:,} tokens in {sample.row_groups:,} row groups."
    share = sample.tokens / max(1, totals.tokens)
    return (
        f"A sample: {sample.row_groups:,} row groups with {sample.tokens:,} of {totals.tokens:,} tokens ({share:.2%}), "
        f"and the footers of {sample.shards:,} shards, were read for mass, entropies, entries and bytes by column; "
        "--sample_tokens reads more. Counts, lengths and means in the list above are of all of the cache."
    )


def _versions(facts: CacheFacts) -> Html:
    names = ("version", "time, UTC", "run", "shards", "examples", "rejected")
    rows = [
        (
            shown(one.number),
            shown(one.time.strftime("%Y-%m-%d %H:%M:%S")),
            foreign(one.run),
            shown(f"{one.shards:,}"),
            shown(f"{one.examples:,}"),
            shown(f"{one.rejects:,}"),
        )
        for one in reversed(facts.versions[-_SHOWN_VERSIONS:])
    ]
    left = facts.version + 1 - len(facts.versions)
    told = f" Of older ones {left:,} were not read (the newest {MOST_VERSIONS} are)." if left else ""
    first = f"The newest {len(rows)} of {facts.version + 1:,} versions.{told}"
    inner = [
        element("h3", shown("Versions")),
        element("p", shown(first), **{"class": "dim"}),
        table(names, rows),
    ]
    return element("section", *inner, **{"class": "card"})


def _drift(facts: CacheFacts) -> Html:
    """The commits hold where the teacher ran otherwise; what a check then measured is in the run's own output."""
    heading = element("h3", shown("Drift checks"))
    if not facts.provenance:
        nothing = element("p", shown("The newest version records no run of a teacher."))
        return element("section", heading, nothing, **{"class": "card"})
    rows = [
        (shown(one.version), foreign(one.name), foreign(one.before), foreign(one.after))
        for one in facts.changes[-_SHOWN_CHANGES:]
    ]
    told = (
        "Where the teacher ran otherwise than for the version before, a sample of the cache was scored again, and a "
        "mean KL above --max_drift_kl would have refused the run. The commits record the change, and no number; "
        "`teachonce verify CACHE --teacher DIR` measures one."
        if rows
        else "The teacher ran alike for all versions that are told of, so no sample was scored again."
    )
    names = ("version", "what changed", "before", "then")
    parts = [heading, element("p", shown(told), **{"class": "dim"})]
    parts += [table(names, rows)] if rows else []
    return element("section", *parts, pairs(facts.provenance.items()), **{"class": "card"})
