"""The precompute job against the bare forward, and against a plain Beam pipeline. Prints ratios.

* **job**: `pipelines.precompute`, from the corpus file to the committed version.
* **bare**: the same model on the same batches with the same threads, its own forward, nothing else.
* **plain**: what Beam's documentation shows: `RunInference` with batches of 16 in corpus order, `WriteToParquet` of the
  64 largest log-probabilities.

All three run in this process, one after the other; model load is left out of each and printed apart. Documents are
paragraphs of the corpus, so that lengths vary as real ones do.

    python benchmarks/precompute.py                                  # what the repository ships, about two minutes
    python benchmarks/assets.py data                                 # once: SmolLM2-135M and the PostgreSQL pages
    python benchmarks/precompute.py --teacher data/smollm2 --corpus data/postgresql.jsonl --tokens 40000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import torch
import transformers
from apache_beam.io.parquetio import WriteToParquet
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines import CorpusConfig, PrecomputeConfig, TeacherConfig, handler, precompute
from pipelines.batching import collate, plan_batches
from pipelines.corpus import find_pieces, read_piece
from pipelines.documents import Source, parse
from pipelines.fingerprint import make_header, resolve
from pipelines.teacher import Batch
from pipelines.tokenise import Tokeniser
from schemas.policies import parse_keep

ROOT = Path(__file__).resolve().parents[1]
PLAIN_BATCH, PLAIN_K = 16, 64


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "paragraphs.jsonl")
        config = PrecomputeConfig(
            corpus=CorpusConfig(files=(str(corpus),)),
            teacher=TeacherConfig(path=arguments.teacher, task="causal-lm", device="cpu"),
            cache=str(Path(folder, "cache")),
            keep=parse_keep(arguments.keep),
            max_length=arguments.max_length,
            max_reject_fraction=1.0,
            show_progress=False,
        )
        batches, tokens = prepare(arguments, config, corpus)
        print(f"{tokens:,} tokens, {len(batches)} batches, {arguments.threads} threads, {arguments.teacher}")
        bare, bare_load = time_bare(config, batches)
        print(f"bare   {bare:8.1f} s   (model load {bare_load:.1f} s left out)", flush=True)
        job, job_load = time_job(config)
        print(f"job    {job:8.1f} s   (model load and check {job_load:.1f} s left out)", flush=True)
        again = timed(lambda: precompute(config))
        print(f"again  {again:8.1f} s   (nothing new)", flush=True)
        print(f"job / bare    {job / bare:.3f}   (aim: at most 1.10)")
        print(f"again / job   {again / job:.3f}")
        if not arguments.no_plain:
            plain, plain_load = time_plain(config, corpus, Path(folder, "plain"))
            print(f"plain  {plain:8.1f} s   (model load {plain_load:.1f} s left out)")
            print(f"plain / job   {plain / job:.2f}   (aim: at least 2)")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--teacher", default=str(ROOT / "examples/teacher"), help="causal LM folder")
    parser.add_argument("--corpus", default=str(ROOT / "examples/corpus.jsonl.zst"), help="JSONL with `text`")
    parser.add_argument("--tokens", type=int, default=150_000, help="about so many tokens of paragraphs")
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--keep", default="top_p:0.99,k=64", help="keep policy of the job")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no_plain", action="store_true", help="leave the plain pipeline out")
    return parser.parse_args()


def prepare(arguments: argparse.Namespace, config: PrecomputeConfig, corpus: Path) -> tuple[list[Batch], int]:
    """Writes the paragraphs, and makes the batches that the job will make of them."""
    teacher = resolve(config.teacher)
    texts = paragraphs(arguments.corpus)
    kept, tokens = [], 0
    for text in texts:
        kept.append(json.dumps({"text": text}))
        tokens += len(teacher.tokenizer(text)["input_ids"])
        if tokens >= arguments.tokens:
            break
    corpus.write_text("\n".join(kept) + "\n", encoding="utf-8")
    spec = make_header(config, teacher).spec
    tokeniser = Tokeniser.of(teacher.tokenizer, spec, "text", "")
    examples = []
    for piece in find_pieces(config.corpus):
        for record in read_piece(piece, ["text"]):
            document = parse(record, Source(piece.path, record.offset), config.corpus, None, "jsonl")
            examples += list(tokeniser.examples(document))
    lengths = [example.num_tokens for example in examples]
    planned = plan_batches(lengths, config.batch_tokens or handler.DEFAULT_BATCH_TOKENS["cpu"])
    batches = [collate([examples[i] for i in batch], spec, pad_id=0, multiple=1) for batch in planned]
    return batches, sum(lengths)


def paragraphs(path: str) -> Iterator[str]:
    """Each different line of the corpus's texts that has at least two words, in the corpus's order."""
    seen = set()
    for piece in find_pieces(CorpusConfig(files=(path,))):
        for record in read_piece(piece, ["text"]):
            document = record.value if isinstance(record.value, dict) else json.loads(record.value)
            for line in document["text"].splitlines():
                if len(line.split()) >= 2 and line not in seen:
                    seen.add(line)
                    yield line


@torch.inference_mode()
def time_bare(config: PrecomputeConfig, batches: Sequence[Batch]) -> tuple[float, float]:
    started = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(config.teacher.path, dtype=torch.float32).eval()
    load = time.perf_counter() - started

    def forward() -> None:
        for batch in batches:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    model(input_ids=batches[-1].input_ids)
    return timed(forward), load


def time_job(config: PrecomputeConfig) -> tuple[float, float]:
    load, opened = 0.0, handler.open_scorer

    def timed_open(job: handler.TeacherJob) -> Any:
        nonlocal load
        started = time.perf_counter()
        scorer = opened(job)
        load += time.perf_counter() - started
        return scorer

    handler.open_scorer = timed_open
    try:
        seconds = timed(lambda: precompute(config))
    finally:
        handler.open_scorer = opened
    return seconds - load, load


class PlainHandler(ModelHandler[str, Mapping[str, Any], Any]):  # type: ignore[misc]
    """The teacher as Beam's documentation would run it."""

    load_seconds = 0.0

    def __init__(self, path: str, max_length: int) -> None:
        super().__init__(min_batch_size=PLAIN_BATCH, max_batch_size=PLAIN_BATCH)
        self._path, self._max_length = path, max_length

    def load_model(self) -> Any:
        started = time.perf_counter()
        tokenizer = transformers.AutoTokenizer.from_pretrained(self._path)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = transformers.AutoModelForCausalLM.from_pretrained(self._path, dtype=torch.float32).eval()
        PlainHandler.load_seconds += time.perf_counter() - started
        model.tokenizer = tokenizer
        return model

    @torch.inference_mode()
    def run_inference(
        self, batch: Sequence[str], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Mapping[str, Any]]:
        inputs = model.tokenizer(
            list(batch), return_tensors="pt", padding=True, truncation=True, max_length=self._max_length
        )
        logprobs = model(**inputs).logits.float().log_softmax(-1)
        values, ids = logprobs.topk(PLAIN_K)
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            yield {"ids": ids[row][mask].tolist(), "logprobs": values[row][mask].tolist()}


def time_plain(config: PrecomputeConfig, corpus: Path, out: Path) -> tuple[float, float]:
    entries = pa.schema(
        [("ids", pa.list_(pa.list_(pa.int32()))), ("logprobs", pa.list_(pa.list_(pa.float32())))]
    )

    def run() -> None:
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            _ = (
                pipeline
                | beam.io.ReadFromText(str(corpus))
                | beam.Map(lambda line: json.loads(line)["text"])
                | RunInference(PlainHandler(config.teacher.path, config.max_length or 512))
                | WriteToParquet(str(out), entries, codec="zstd")
            )

    seconds = timed(run)
    return seconds - PlainHandler.load_seconds, PlainHandler.load_seconds


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
