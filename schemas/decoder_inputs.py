"""What an encoder-decoder's decoder is given so that it predicts a target: said once, for teachers and students.

A decoder reads the target one token late, behind a token that its config names. Most classes say themselves how
(`prepare_decoder_input_ids_from_labels`: mBART begins with the target's own last token, its language); of others it is
the common way. Whether that is so is not believed but seen, where answers are compared with those of `labels=`.
"""

from __future__ import annotations

from typing import Any

IGNORED = -100
"""What pads targets, as in transformers."""


def decoder_inputs(model: Any, targets: Any) -> Any:
    """`[B, T]` ids for a decoder, from as many target ids, padded on the right with `IGNORED`.

    Raises:
        ValueError: the model's config names no token to begin with.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own(labels=targets)
    config = model.config
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise ValueError(f"decoder_start_token_id of {type(model).__name__} cannot be None")
    padding = getattr(config, "pad_token_id", None)
    shifted = targets.roll(1, 1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == IGNORED, start if padding is None else padding)
