"""Bytes, errors and speeds of the codec on a real teacher's answers to real text.

Every figure comes from the functions of the real write and read path (`pipelines.keep.select`,
`pipelines.scoring.encode`, `schemas.rows`, `schemas.shards`). What the teacher said is kept in a file, so that only the
first start is slow.

    python benchmarks/codec.py                          # the teacher and corpus that the repository ships
    python benchmarks/assets.py data                    # once: real models, and real texts
    python benchmarks/codec.py --teacher data/smollm2 --corpus data/postgresql.jsonl --tokens 20000

* *entries*: kept ids, codes and counts, and the shard's list of frequent ids (by 2^20 positions, a full shard);
  *scalars*: top log-probability, entropy, gold. All in bytes a position.
* *KL*: of the exact entries after coding from before, both divided by their sums, in nats.
* *variance*: of the weights, summed over the ids and averaged over positions, in closed form: tau x M - sum of p^2 over
  the tail of a threshold, (1 - sum of p^2) / N of N draws. 0 for those that cut: they are biased by what they lack.
* Speeds are of processor time of one thread, the best of several turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers
from answers import Answers, load_or_make
from entropies import bounds, id_codings
from ratios import tell
from shards_of import feature_bytes, quantisation_kl, rows_of, seal, sizes, spec_of, zstd_level
from speeds import columns_read, decoding, encoding

from schemas.policies import Sampled, Threshold, is_sampling

ROOT = Path(__file__).resolve().parents[1]
POLICIES = {
    "top_k:64": 130,
    "top_p:0.99,k=64": 105,
    "threshold:1/8": 9,
    "threshold:1/16": 14,
    "threshold:1/16 own_logits": 19,
    "threshold:1/32": None,
    "threshold:1/64": None,
    "sampled:13": None,
    "sampled:50": None,
}
"""What is measured, and the aim in bytes of entries a position."""
SHOWN = ("top_p:0.99,k=64", "threshold:1/16")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    answers = load_or_make(arguments.teacher, arguments.corpus, arguments.tokens, arguments.folder)
    print(
        f"{answers.num_positions:,} positions of {len(answers.lengths)} windows, V={answers.vocab_size:,}, "
        f"entropy {answers.entropy.mean():.2f} nats; {Path(arguments.teacher).name}"
    )
    policies(answers)
    steps(answers)
    for keep in SHOWN:
        ids(answers, keep)
        levels_and_groups(answers, keep)
    width = answers.features.shape[1]
    found = feature_bytes(answers)
    print(f"\nint8 feature of 384 (measured at {width}): {found:.0f} B an example   (aim: at most 420)")
    speeds(answers)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--teacher", default=str(ROOT / "examples/teacher"), help="causal LM's folder")
    parser.add_argument("--corpus", default=str(ROOT / "examples/corpus.jsonl.zst"), help="JSONL with `text`")
    parser.add_argument("--tokens", type=int, default=20_000, help="about so many tokens")
    parser.add_argument("--folder", type=Path, default=ROOT / "data", help="where answers are kept")
    return parser.parse_args()


def head(*names: str) -> None:
    print("\n| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")


def policies(answers: Answers) -> None:
    sized = ("B entries", "aim", "ids", "codes", "counts")
    head("policy", "entries", *sized, "KL mean", "KL max", "exact mass", "variance", "B / bound")
    noise: dict[str, tuple[float, float]] = {}
    for label, aim in POLICIES.items():
        name, _, own = label.partition(" ")
        spec = spec_of(answers, name, own_logits=bool(own))
        rows = rows_of(answers, spec)
        size = sizes(seal(rows))
        divergence = quantisation_kl(answers, spec)
        bound = bounds(rows, answers.inputs)
        limit = bound["ids unigram, no order"] + bound["codes"] + bound["counts"]
        ratio = "" if own or name.startswith("sampled") else f"{size.entries / limit:.2f}"
        if is_sampling(spec.keep) and not own:
            noise[label] = size.entries, variance(answers, name)
        print(
            f"| {label} | {rows.num_entries / rows.num_positions:.1f} | {size.entries:.2f} | {aim or ''} | "
            f"{size.ids:.2f} | {size.codes:.2f} | {size.counts:.2f} | {divergence.mean():.1e} | "
            f"{divergence.max():.1e} | {mass(answers, name).mean():.4f} | {variance(answers, name):.4f} | {ratio} |"
        )
    print(
        f"\nbeside each: scalars {size.scalars:.2f} B (aim: at most 3), input_ids {size.input_ids:.2f} B; "
        f"of the entries, the list of ids {size.listed:.3f} B\n"
        "bound: entropies of ids (unigram, drawn ones without their order), codes and counts"
    )
    at_equal_bytes(noise)


def at_equal_bytes(noise: Mapping[str, tuple[float, float]]) -> None:
    """Variance of `threshold` at the bytes of `sampled`, between its measured ones on a line of logarithms."""
    ours = sorted(pair for label, pair in noise.items() if label.startswith("threshold"))
    sizes_, variances = np.log(np.array(ours).T)
    for label in (label for label in noise if label.startswith("sampled")):
        size, other = noise[label]
        mine = float(np.exp(np.interp(np.log(size), sizes_, variances)))
        print(
            f"at the bytes of {label}: threshold's variance {mine:.4f}, {mine / other:.2f} of its {other:.4f}"
        )


def mass(answers: Answers, name: str) -> np.ndarray:
    """Of the exact entries, [N]."""
    spec = spec_of(answers, name)
    p = np.exp(answers.top_logprobs.astype(np.float64))
    inside = np.arange(p.shape[1]) < answers.exact_counts(spec.keep)[:, None]
    found: np.ndarray = np.where(inside, p, 0).sum(1)
    return found


def variance(answers: Answers, name: str) -> float:
    keep = spec_of(answers, name).keep
    if isinstance(keep, Sampled):
        return float((1 - answers.sum_squares).mean() / keep.n)
    if not isinstance(keep, Threshold):
        return 0.0
    p = np.exp(answers.top_logprobs.astype(np.float64))
    inside = np.arange(p.shape[1]) < answers.exact_counts(keep)[:, None]
    squares = answers.sum_squares - np.where(inside, p * p, 0).sum(1)
    return float((keep.tau * (1 - mass(answers, name)) - squares).mean())


def steps(answers: Answers) -> None:
    head("step, nats", "policy", "B codes", "KL mean (aim at 1/16: 1e-4)", "KL max")
    for keep in SHOWN:
        for step in (1 / 8, 1 / 16, 1 / 32):
            spec = spec_of(answers, keep, step=step)
            divergence = quantisation_kl(answers, spec)
            codes = sizes(seal(rows_of(answers, spec))).codes
            errors = f"{divergence.mean():.1e} | {divergence.max():.1e}"
            print(f"| 1/{round(1 / step)} | {keep} | {codes:.2f} | {errors} |")


def ids(answers: Answers, keep: str) -> None:
    rows = rows_of(answers, spec_of(answers, keep))
    print(f"\n| ids of {keep} | B a position |\n|---|---|")
    for name, size in id_codings(rows, answers.inputs).items():
        print(f"| {name} | {size:.2f} |")
    for name, size in bounds(rows, answers.inputs).items():
        print(f"| entropy: {name} | {size:.2f} |")


def levels_and_groups(answers: Answers, keep: str) -> None:
    rows = rows_of(answers, spec_of(answers, keep))
    print(f"\n| {keep} | B entries |\n|---|---|")
    for level in (1, 3, 9, 19):
        with zstd_level(level):
            print(f"| zstd {level} | {sizes(seal(rows)).entries:.2f} |")
    for tokens in (2**13, 2**15, 2**16):
        note = "" if rows.num_tokens >= tokens else f" (all {rows.num_tokens:,} tokens)"
        print(f"| row groups of {tokens // 1024}k tokens{note} | {sizes(seal(rows, tokens)).entries:.2f} |")


def speeds(answers: Answers) -> None:
    ours = ("M positions/s", "aim", "less fetch and hash")
    naive = ("naive Parquet", "ratio", "bytes / naive's")
    ratios: dict[str, tuple[float, float]] = {}
    head("decoding", *ours, *naive, "lists through Python", "ratio (aim: 50)", "Arrow alone")
    for keep in ("threshold:1/16", "top_p:0.99,k=64", "top_k:64"):
        rows = rows_of(answers, spec_of(answers, keep))
        sealed = seal(rows)
        with tempfile.TemporaryDirectory() as folder:
            found = decoding(rows, Path(folder))
        alone = rows.num_positions / columns_read(sealed.data)
        print(
            f"| {keep} | {found.ours / 1e6:.2f} | 2 | {found.decoded / 1e6:.2f} | "
            f"{found.naive / 1e6:.2f} | {found.ours / found.naive:.2f} | "
            f"{sizes(sealed).entries / found.naive_bytes:.2f} | {found.lists / 1e6:.3f} | "
            f"{found.ours / found.lists:.0f} | {alone / 1e6:.2f} |"
        )
        ratios[f"decoding / naive Parquet, positions a second, {keep}"] = (found.ours / found.naive, 1.0)
        ratios[f"decoding / lists through Python, {keep}"] = (found.ours / found.lists, 50)
    print("\n| encoding | k positions/s | aim | encode | ranks, Parquet, hashes |\n|---|---|---|---|---|")
    for keep in ("top_k:64", "top_p:0.99,k=64"):
        spec = spec_of(answers, keep)
        assert not is_sampling(spec.keep)
        made = encoding(answers, spec, rows_of(answers, spec))
        print(f"| {keep} | {made.both / 1e3:.0f} | 300 | {made.encode / 1e3:.0f} | {made.seal / 1e3:.0f} |")
    print()
    for name, (ratio, aim) in ratios.items():
        tell(name, ratio, aim, at_least=True)


if __name__ == "__main__":
    main()
