"""What was measured, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from schemas.cli.tables import Table, number, print_table
from schemas.cli.tables import console as stdout
from schemas.printable import printable
from trainer.evaluation.comparison import Compared
from trainer.evaluation.evaluation import Evaluated
from trainer.evaluation.speed import ModelSize


def show(evaluated: Evaluated, console: Console | None = None) -> None:
    """Prints a student's metrics and the models' sizes."""
    out = console or stdout()
    rows = tuple((name, _cell(value)) for name, value in _numbers(evaluated.metrics).items())
    print_table(Table(title=_title(evaluated), names=("metric", "value"), rows=rows), out)
    if "confusion_matrix" in evaluated.metrics:
        out.print("\n".join(_confusion(evaluated)))
    print_table(_models(evaluated, evaluated.models), out)
    if (export := evaluated.export) is not None:
        out.print(
            printable(
                f"{export.path}: {number(export.bytes)} bytes; on {number(export.rows)} held-out rows it differs from "
                f"torch by {export.largest_difference:.2g} at most, of numbers up to {number(export.largest_value)}"
            )
        )


def show_compared(compared: Compared, console: Console | None = None) -> None:
    """Prints several students' metrics, a column each, the ensemble's last; and the sizes of all."""
    out, first, ensemble = console or stdout(), compared.students[0], compared.ensemble
    columns = {one.models[0].name: one.metrics for one in compared.students}
    models = [one.models[0] for one in compared.students]
    title = _title(first)
    if ensemble is not None:
        columns[f"ensemble ({ensemble.how})"] = ensemble.metrics
        models.append(ensemble.model)
        if ensemble.fitted_rows:
            title += f", less the half ({ensemble.fitted_rows:,} rows) that the weights were fitted on"
    named = dict.fromkeys(name for metrics in columns.values() for name in _numbers(metrics))
    rows = tuple((name, *(_cell(metrics.get(name)) for metrics in columns.values())) for name in named)
    print_table(Table(title=title, names=("metric", *columns), rows=rows), out)
    if ensemble is not None and ensemble.weights is not None:
        told = ", ".join(f"{name} {number(weight)}" for name, weight in ensemble.weights.items())
        out.print(printable(f"weights of the ensemble: {told}"))
    print_table(_models(first, [*models, *first.models[1:]]), out)


def _title(evaluated: Evaluated) -> str:
    title = f"held out: {evaluated.eval_fraction:g} of the documents of version {evaluated.cache_version}"
    if evaluated.where:
        title += f", where {' '.join(evaluated.where)}"
    return title


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not isinstance(value, list)}


def _confusion(evaluated: Evaluated) -> list[str]:
    """A line a class, by its name; several classes a row have two by two numbers each."""
    matrix = evaluated.metrics["confusion_matrix"]
    names = [printable(name) for name in evaluated.classes or map(str, range(len(matrix)))]
    width = max(map(len, names))
    head = "confusion matrix (rows: label, columns: student, in the same order)"
    if isinstance(matrix[0][0], list):
        head = "confusion matrix of each class (true negatives, false positives / false negatives, true positives)"
        lines = ["  /  ".join("  ".join(map(str, row)) for row in own) for own in matrix]
    else:
        lines = ["  ".join(map(str, row)) for row in matrix]
    return [head, *(f"{name:<{width}}  {line}" for name, line in zip(names, lines, strict=True))]


def _models(evaluated: Evaluated, models: Sequence[ModelSize]) -> Table:
    title = f"{evaluated.device}, batches of {evaluated.batch_size}, forward only, float32"
    rows = tuple((one.name, one.parameters, one.megabytes, one.tokens_per_second) for one in models)
    return Table(title=title, names=("model", "parameters", "megabytes", "tokens/s"), rows=rows)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else str(value)
