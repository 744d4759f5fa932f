"""The rows of `quality.py`: from which cache, by which loss."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One way to learn: from a cache with a policy, by a loss."""

    keep: str
    loss: str = "kl"
    own_logits: bool = False
    """Whether drawn entries' own log-probabilities are stored: what losses need that are not linear in p."""


ROWS = {
    "ce": Row("threshold:1/8", "ce"),
    "full": Row("threshold:1/8", "online"),
    "top_k:16 renormalised": Row("top_k:16", "kl_kept"),
    "top_k:16 tail": Row("top_k:16"),
    "top_k:64 renormalised": Row("top_k:64", "kl_kept"),
    "top_k:64 tail": Row("top_k:64"),
    "top_p:0.99,k=64 tail": Row("top_p:0.99,k=64"),
    "sampled:13": Row("sampled:13"),
    "sampled:50": Row("sampled:50"),
    "threshold:1/8": Row("threshold:1/8"),
    "threshold:1/16": Row("threshold:1/16"),
    "threshold:1/18": Row("threshold:1/18"),
    "threshold:1/32": Row("threshold:1/32"),
    "threshold:1/64": Row("threshold:1/64"),
    "threshold:1/16,k=8": Row("threshold:1/16,k=8"),
}
"""`ce` and `full` read tokens from a cache, and nothing of what it keeps."""

LOSS_ROWS = {
    "brier": Row("threshold:1/32", "brier"),
    "dkd": Row("threshold:1/32", "dkd=0.2"),
    "nkd": Row("threshold:1/32", "nkd"),
    "kl_student_unsure": Row("threshold:1/32", "kl_student_unsure"),
    "kl_entropy": Row("threshold:1/32", "kl_entropy=2"),
    "jsd": Row("threshold:1/32", "jsd=4", own_logits=True),
    "tvd": Row("threshold:1/32", "tvd=4", own_logits=True),
    "hellinger": Row("threshold:1/32", "hellinger=4", own_logits=True),
    "skew_kl": Row("threshold:1/32", "skew_kl", own_logits=True),
    "skew_rkl": Row("threshold:1/32", "skew_rkl", own_logits=True),
    "alpha_beta": Row("threshold:1/32", "alpha_beta", own_logits=True),
    "rkl, top_p:0.99,k=64": Row("top_p:0.99,k=64", "rkl"),
}
"""Other losses than `kl`. Weights bring their gradients near that of `kl`, whose learning rate they take: the second
derivative of Jensen-Shannon at p = q is a quarter of KL's, and so is Hellinger's."""
EVERY_ROW = ROWS | LOSS_ROWS

QUICK = ("ce", "full", "top_k:16 renormalised", "threshold:1/16")
