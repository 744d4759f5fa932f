"""`docs/losses.md`, written from the entries: `make losses`. A test holds the page to them."""

from __future__ import annotations

from pathlib import Path

from trainer.losses.loss import Loss
from trainer.losses.registry import FAMILIES
from trainer.losses.serving import EVERY_TOKEN, LABELS, ORIGIN

PAGE = Path(__file__).parents[3] / "docs" / "losses.md"

HEAD = """# Losses

Written by `make losses` from the entries in `trainer/losses/`; a test holds this page to them. One flag names them all:

```
teachonce train ... --losses kl=1.0 jsd=0.5,beta=0.3 ce=0.1 rkd_distance=0.2 --temperature 2
```

or, in a file, `losses: {kl: 1.0, jsd: {weight: 0.5, beta: 0.3}}`. The total is the weighted sum; each term is logged by
its name, and once, before the first step, whether it is exact, unbiased or biased on this cache. One that the cache
cannot serve is refused before any training, with what to do.

p is the teacher's distribution, q the student's, both at `--temperature` where the loss softens; sums go over all V.
Losses that soften are multiplied by the square of the temperature, so that their weights keep their meaning; of `nkd`
the part that its formula says. h is the
student's pooled state, projected to the teacher's width where that is needed, and t the teacher's. `tail` says what a
cut distribution's rest is taken for: one more outcome (`bucket`), nothing (`ignore`), or spread evenly (`uniform`).

**Class** follows from the formula, and decides which cache serves a loss:

| class | served by |
|---|---|
"""
COST = """
**Cost.** All terms at one temperature share one softmax of a chunk of positions and its gradient, made in the fused
pass with the head; with `--temperature` those at temperature 1 (`ce` and its kin) share a second. Peak extra memory is
that of a few chunks. A term costs a few numbers a kept entry, and beside that as many sums over all V ids of the chunk,
with their gradients, as the column `passes` says (`brier` and `alpha_beta` only where entries are drawn);
`tail=uniform` costs one more. `benchmarks/loss.py` measures it.
"""


def page() -> str:
    """The whole page."""
    kinds = dict.fromkeys(loss.kind for family in FAMILIES for loss in family.LOSSES)
    parts = [HEAD, *(f"| {kind.name} | {kind.served_by} |\n" for kind in kinds), COST]
    for family in FAMILIES:
        parts.append(f"\n## {_title(family.__doc__)}\n\n")
        parts.append("| loss | formula | paper | class | needs | teachers | parameters | passes |\n")
        parts.append("|---|---|---|---|---|---|---|---|\n")
        parts += [_row(loss) for loss in family.LOSSES]
    return "".join(parts)


def _title(text: str | None) -> str:
    """A family's first sentence, up to its first stop or colon."""
    sentence = " ".join((text or "").split())
    ends = [place for mark in (". ", ": ", "; ") if (place := sentence.find(mark)) > 0]
    return sentence[: min(ends, default=len(sentence))].rstrip(".")


def _row(loss: Loss) -> str:
    paper = loss.paper
    if paper.startswith("arXiv:"):
        paper = f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    teachers = [name for name in ("softmax", "sigmoid", "identity") if loss.term(name)]  # type: ignore[arg-type]
    if loss.pooled is not None:
        teachers = ["any"]
    if loss.boxes is not None:
        teachers = ["detectors"]
    parameters = [
        f"`{name}={_shown(parameter.default)}` ({parameter.range})"
        for name, parameter in loss.parameters.items()
    ]
    cells = [
        f"`{loss.name}`",
        "`" + loss.formula.replace("|", "\\|") + "`",
        paper,
        loss.kind.name,
        _needs(loss),
        ", ".join(teachers) or "none",
        "; ".join(parameters),
        str(loss.passes) if loss.softmax is not None else "",
    ]
    return "| " + " | ".join(cells) + " |\n"


def _needs(loss: Loss) -> str:
    needs = [f"`--scalars {' '.join(loss.stores)}` unless `all`"] if loss.stores else []
    if loss.uses is not None:
        scalars = " ".join(loss.uses({name: p.default for name, p in loss.parameters.items()}))
        needs.append(f"uses `{scalars}` where it is stored")
    if loss.kind.own:
        needs.append("`--own_logits` of draws")
    if loss.pooled is not None:
        needs.append("features" if loss.least_features == 1 else f"{loss.least_features} features")
    if loss.boxes is not None:
        needs.append("boxes" if loss.name == "boxes" else "objects")
    if loss.kind is LABELS or loss.per == "labelled":
        needs.append("labels")
    if loss.kind is ORIGIN:
        needs.append("two caches")
    if loss.kind is EVERY_TOKEN:
        needs.append("what no cache holds")
    return ", ".join(needs)


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
