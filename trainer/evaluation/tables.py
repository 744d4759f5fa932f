"""What was measured, as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from schemas.printable import printable
from trainer.evaluation.evaluation import Evaluated


def show(evaluated: Evaluated, console: Console | None = None) -> None:
    """Prints the metrics and the models' sizes."""
    out = console or Console(markup=False, highlight=False, emoji=False)
    title = f"held out: {evaluated.eval_fraction:g} of the documents of version {evaluated.cache_version}"
    if evaluated.where:
        title += f", where {printable(' '.join(evaluated.where))}"
    table = Table("metric", "value", title=title)
    for name, value in evaluated.metrics.items():
        if not isinstance(value, list):
            table.add_row(printable(name), _text(value))
    out.print(table)
    matrix = evaluated.metrics.get("confusion_matrix")
    if matrix is not None:
        out.print("confusion matrix (rows: label, columns: student)")
        out.print("\n".join("  ".join(printable(str(cell)) for cell in row) for row in matrix))
    out.print(_models(evaluated))


def _models(evaluated: Evaluated) -> Table:
    title = f"{evaluated.device}, batches of {evaluated.batch_size}, forward only, float32"
    table = Table("model", "parameters", "megabytes", "tokens/s", title=title)
    for model in evaluated.models:
        table.add_row(
            printable(model.name),
            f"{model.parameters:,}",
            f"{model.megabytes:,.1f}",
            _text(model.tokens_per_second),
        )
    return table


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))
