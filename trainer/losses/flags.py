"""Losses, and what changes them in the course of a run, as they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from schemas.errors import nearest
from trainer.losses.loss import Loss, Parameter, Settings, Value
from trainer.losses.registry import LOSSES
from trainer.losses.schedules import Schedule


def parse_losses(texts: Sequence[str]) -> tuple[dict[str, float], dict[str, dict[str, Value]]]:
    """Weights, and parameters that are told, of `NAME=WEIGHT,PARAMETER=VALUE,...`.

    Raises:
        ValueError: one cannot be read, or stands twice.
    """
    parsed = [_parse(text) for text in texts]
    weights = {name: weight for name, weight, _ in parsed}
    if len(weights) != len(parsed):
        raise ValueError(f"a loss is named twice in {' '.join(texts)}")
    return weights, {name: told for name, _, told in parsed if told}


def parse_schedules(texts: Sequence[str]) -> dict[str, Schedule]:
    """Of `NAME=SHAPE`.

    Raises:
        ValueError: one cannot be read, or stands twice.
    """
    found = dict(_parse_schedule(text) for text in texts)
    if len(found) != len(texts):
        raise ValueError(f"a schedule is named twice in {' '.join(texts)}")
    return found


def parse_adversarial(text: str | None) -> float:
    """Epsilon of `fgm=EPSILON`; 0 of nothing.

    Raises:
        ValueError: it cannot be read.
    """
    if text is None:
        return 0.0
    name, _, epsilon = text.partition("=")
    if name != "fgm":
        raise ValueError(f"{text!r} is not fgm=EPSILON")
    return float(Parameter(default=1.0, low=0.0, beyond=True).read("the epsilon of fgm", epsilon or "1"))


def with_distance(
    settings: Mapping[str, Mapping[str, Value]], feature_loss: str
) -> Mapping[str, Mapping[str, Value]]:
    """The parameters with `feature`'s distance, which has a flag of its own too.

    Raises:
        ValueError: it is none, or is told twice and not alike.
    """
    if feature_loss == "mse":
        return settings
    distance = LOSSES["feature"].parameters["distance"].read("feature_loss", feature_loss)
    of_feature = settings.get("feature", {})
    if of_feature.get("distance", distance) != distance:
        raise ValueError("feature's distance is told twice, and not alike: leave one out")
    return {**settings, "feature": {"distance": distance, **of_feature}}


def together(each: Iterable[Mapping[str, Mapping[str, Value]]]) -> dict[str, dict[str, Value]]:
    """One set of parameters that several sets of losses have; what is a loss's default is left out: a run is the same
    whether or not it says that.

    Raises:
        ValueError: two of them tell a loss's parameter otherwise.
    """
    found: dict[str, dict[str, Value]] = {}
    for settings in each:
        for name, told in settings.items():
            before = found.setdefault(name, {})
            for key, value in told.items():
                if before.setdefault(key, value) != value:
                    raise ValueError(
                        f"{name}'s {key} is told twice, and not alike: {before[key]} and {value}"
                    )
    unusual = {name: _unusual(LOSSES[name], told) for name, told in found.items()}
    return {name: told for name, told in unusual.items() if told}


def _parse(text: str) -> tuple[str, float, dict[str, Value]]:
    head, *rest = text.split(",")
    name, equals, weight = head.partition("=")
    if name not in LOSSES:
        raise ValueError(f"no such loss: {name!r}. {nearest(name, LOSSES)}There are {', '.join(LOSSES)}")
    try:
        found = float(weight) if equals else 1.0
    except ValueError as error:
        raise ValueError(f"{text!r} is not NAME=WEIGHT[,PARAMETER=VALUE...]") from error
    parameters, told = LOSSES[name].parameters, dict[str, Value]()
    for part in rest:
        key, _, value = part.partition("=")
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise ValueError(
                f"{name} has no parameter {key!r}. {nearest(key, parameters)}Its parameters: {known}"
            )
        if key in told:
            raise ValueError(f"{key} stands twice in {text!r}")
        told[key] = parameters[key].read(f"{name}'s {key}", value)
    return name, found, told


def _parse_schedule(text: str) -> tuple[str, Schedule]:
    name, _, schedule = text.partition("=")
    try:
        return name, Schedule.parse(schedule)
    except ValueError as error:
        raise ValueError(f"the schedule of {name}: {error}") from error


def _unusual(loss: Loss, told: Settings) -> dict[str, Value]:
    return {key: value for key, value in told.items() if value != loss.defaults[key]}
