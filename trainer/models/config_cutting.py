"""A config with fewer layers: what it says of each layer must still be said of the layers that are kept.

Lists with an item a layer keep those of the kept layers; lists of layers' numbers are renumbered. Rules (a period, the
first so many) are solved anew for the kept layers. What no rule can say is found when the cut model's layers are
compared with the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.models.layers import is_numbers, per_layer_lists

_PREFIX_COUNTS = ("first_k_dense_replace", "num_dense_layers")
_SUFFIX_COUNTS = ("num_kv_shared_layers",)


def cut_config(values: Mapping[str, Any], kept: Sequence[int], total: int, count_key: str) -> dict[str, Any]:
    """The values of a config of `total` layers, for those that are kept."""
    changed: dict[str, Any] = {
        key: [items[index] for index in kept] for key, items in per_layer_lists(values, total).items()
    }
    numbers = {old: new for new, old in enumerate(kept)}
    for key, value in values.items():
        if is_numbers(value, total) and not key.endswith(("token_id", "token_ids")):
            changed[key] = [numbers[old] for old in value if old in numbers]
        elif isinstance(value, str) and len(value) == total and "pattern" in key:
            changed[key] = "".join(value[index] for index in kept)
    changed |= _counts(values, kept, total) | _periods(values, kept) | _sparse(values, kept)
    changed |= _cycles(values, kept, total)
    if isinstance(values.get("per_layer_config"), Mapping):
        changed["per_layer_config"] = _by_number(values["per_layer_config"], numbers)
    return {**values, **changed, count_key: len(kept)}


def _by_number(settings: Mapping[Any, Any], numbers: Mapping[int, int]) -> dict[int, Any]:
    """Settings of single layers by their numbers, which JSON makes text."""
    return {numbers[int(old)]: values for old, values in settings.items() if int(old) in numbers}


def _counts(values: Mapping[str, Any], kept: Sequence[int], total: int) -> dict[str, int]:
    """`the first n layers` and `the last n layers`."""
    first = {key: sum(index < values[key] for index in kept) for key in _numbers_of(values, _PREFIX_COUNTS)}
    last = {
        key: sum(index >= total - values[key] for index in kept)
        for key in _numbers_of(values, _SUFFIX_COUNTS)
    }
    return first | last


def _periods(values: Mapping[str, Any], kept: Sequence[int]) -> dict[str, int]:
    """`NAME_layer_period` and `NAME_layer_offset`, as Jamba has them: layer i is special if i % period == offset."""
    found: dict[str, int] = {}
    for key in values:
        name = key.removesuffix("_layer_period")
        offset_key = f"{name}_layer_offset"
        if name == key or offset_key not in values:
            continue
        special = [new for new, old in enumerate(kept) if old % values[key] == values[offset_key]]
        solved = _solved(special, len(kept), values[key])
        if solved is not None:
            found |= {key: solved[0], offset_key: solved[1]}
    return found


def _solved(special: Sequence[int], layers: int, period: int) -> tuple[int, int] | None:
    """Period and offset that give these layers, the teacher's period first."""
    if not special:
        return max(layers, period) + 1, layers
    for tried in (period, *range(1, layers + 1)):
        offset = special[0] % tried
        if [index for index in range(layers) if index % tried == offset] == list(special):
            return tried, offset
    return None


def _sparse(values: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Which layers have experts: by a step and a list of exceptions (Qwen's), or from a start to an end (Ernie's)."""
    found: dict[str, Any] = {}
    step = values.get("decoder_sparse_step")
    if isinstance(step, int) and step > 0 and "mlp_only_layers" in values:
        exceptions = values["mlp_only_layers"] or []
        dense = [new for new, old in enumerate(kept) if old in exceptions or (old + 1) % step]
        found |= {"decoder_sparse_step": 1, "mlp_only_layers": dense}
    if isinstance(values.get("moe_layer_start_index"), int) and values.get("moe_layer_interval") == 1:
        start, end = values["moe_layer_start_index"], values.get("moe_layer_end_index", -1)
        found["moe_layer_start_index"] = sum(index < start for index in kept)
        if end >= 0:
            found["moe_layer_end_index"] = sum(index <= end for index in kept) - 1
    return found


def _cycles(values: Mapping[str, Any], kept: Sequence[int], total: int) -> dict[str, Any]:
    """Patterns that are repeated until the layers end: written out."""
    found: dict[str, Any] = {}
    if isinstance(values.get("block_types"), list | tuple) and values["block_types"]:
        found["block_types"] = [values["block_types"][index % len(values["block_types"])] for index in kept]
    if isinstance(values.get("attention_types"), list | tuple):
        written = [kind for kinds, times in values["attention_types"] for kind in list(kinds) * times]
        if len(written) == total:
            found["attention_types"] = [[[written[index] for index in kept], 1]]
    return found


def _numbers_of(values: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    return [key for key in keys if isinstance(values.get(key), int)]
