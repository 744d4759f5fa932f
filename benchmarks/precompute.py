"""The precompute job against the bare forward, and against a plain Beam pipeline. Prints ratios.

* **job**: `pipelines.precompute`, from the corpus file to the committed version; then again over the same corpus, and
  over the same with 1% more documents.
* **bare**: the same model on the same batches with the same threads, its own forward, nothing else: half of the batches
  before the job and half after it, so that a machine that becomes slower or faster counts for both.
* **plain**: what Beam's documentation shows: `RunInference` with batches of 16 in corpus order, `WriteToParquet` of the
  64 largest log-probabilities, or of a classifier's logits and mean-pooled features.

All run in this process, one after the other. Model load is left out of job, bare and plain, and printed apart; the
later runs are compared with the whole first one. Documents are paragraphs of the corpus, so that lengths vary as real
ones do.

    python benchmarks/precompute.py                                  # what the repository ships, about two minutes
    python benchmarks/assets.py data                                 # once: real models, and real texts
    python benchmarks/precompute.py --teacher data/smollm2 --corpus data/postgresql.jsonl --tokens 40000
    python benchmarks/precompute.py --teacher data/minilm --corpus data/wordnet.jsonl --classes 45 --tokens 1000000 \
        --plain_every 8
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import torch
import transformers
from apache_beam.io.parquetio import WriteToParquet
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from ratios import tell

from pipelines import CorpusConfig, PrecomputeConfig, RunSummary, TeacherConfig, precompute
from pipelines.corpus.documents import Source, parse
from pipelines.corpus.files import find_pieces, read_piece
from pipelines.corpus.tokenization import Tokeniser
from pipelines.fingerprint.fingerprint import make_header, resolve
from pipelines.scoring import handler
from pipelines.teacher.batching import collate, plan_batches
from pipelines.teacher.budget import START_TOKENS
from pipelines.teacher.model import Batch
from schemas.policies import parse_keep

ROOT = Path(__file__).resolve().parents[1]
PLAIN_BATCH, PLAIN_K = 16, 64


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(arguments, Path(folder))
        batches, tokens, more = prepare(arguments, config, Path(folder, "paragraphs.jsonl"))
        print(f"{tokens:,} tokens, {len(batches)} batches, {arguments.threads} threads, {arguments.teacher}")
        before, _ = time_bare(config, batches[::2])
        summary, job, job_load = time_job(config)
        after, bare_load = time_bare(config, batches[1::2])
        bare, first = before + after, job + job_load
        print(f"bare   {bare:8.1f} s   (model load {bare_load:.1f} s left out)")
        print(f"job    {job:8.1f} s   (model load and check {job_load:.1f} s left out)")
        again = timed(lambda: precompute(config))
        print(f"again  {again:8.1f} s   (nothing new)")
        grown = replace(config, corpus=CorpusConfig(files=(*config.corpus.files, str(more))))
        new = timed(lambda: precompute(grown))
        print(f"more   {new:8.1f} s   (1% new documents)")
        tell("job / bare forward", job / bare, 1.05)
        tell("padded / tokens", summary.padded_tokens / summary.totals.tokens, 1.05)
        tell("second run, nothing new / first", again / first, 0.02)
        tell("1% new documents / first", new / first, 0.03)
        if not arguments.no_plain:
            part = write_every(arguments.plain_every, Path(folder, "paragraphs.jsonl"))
            plain, plain_load = time_plain(part, config, Path(folder, "plain"))
            every = f", over every {arguments.plain_every}th document" if arguments.plain_every > 1 else ""
            print(f"plain  {plain:8.1f} s   (model load {plain_load:.1f} s left out{every})")
            tell(
                "plain RunInference + WriteToParquet / job",
                plain * arguments.plain_every / job,
                2,
                at_least=True,
            )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--teacher", default=str(ROOT / "examples/teacher"), help="model folder")
    parser.add_argument("--corpus", default=str(ROOT / "examples/corpus.jsonl.zst"), help="JSONL with `text`")
    parser.add_argument("--tokens", type=int, default=150_000, help="about so many tokens of paragraphs")
    parser.add_argument("--max_length", type=int, default=512)
    classes = "score texts in so many classes; a body without a head gets a random one: the time is the same"
    parser.add_argument("--classes", type=int, metavar="N", help=classes)
    parser.add_argument("--keep", default="top_p:0.99,k=64", help="keep policy of the job")
    parser.add_argument("--threads", type=int, default=2)
    plain_every = "plain pipeline over every Nth document, its time times N: it is the slowest part by far"
    parser.add_argument("--plain_every", type=int, default=1, metavar="N", help=plain_every)
    parser.add_argument("--no_plain", action="store_true", help="leave the plain pipeline out")
    return parser.parse_args()


def make_config(arguments: argparse.Namespace, folder: Path) -> PrecomputeConfig:
    """The run; for a classifier with the features that its students would ask for."""
    teacher = arguments.teacher
    if arguments.classes:
        teacher = str(folder / "classifier")
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            arguments.teacher, num_labels=arguments.classes, dtype=torch.float32
        )
        model.save_pretrained(teacher)
        transformers.AutoTokenizer.from_pretrained(arguments.teacher).save_pretrained(teacher)
    return PrecomputeConfig(
        corpus=CorpusConfig(files=(str(folder / "paragraphs.jsonl"),)),
        teacher=TeacherConfig(
            path=teacher, task="sequence-classification" if arguments.classes else "causal-lm", device="cpu"
        ),
        cache=str(folder / "cache"),
        keep=None if arguments.classes else parse_keep(arguments.keep),
        features=("mean:-1",) if arguments.classes else (),
        max_length=arguments.max_length,
        max_reject_fraction=1.0,
        show_progress=False,
    )


def prepare(
    arguments: argparse.Namespace, config: PrecomputeConfig, corpus: Path
) -> tuple[list[Batch], int, Path]:
    """Writes the paragraphs, and 1% more of them apart; makes the batches that the job will make of the first."""
    teacher = resolve(config.teacher)
    texts = paragraphs(arguments.corpus)
    kept, tokens = [], 0
    for text in texts:
        kept.append(text)
        tokens += len(teacher.tokenizer(text)["input_ids"])
        if tokens >= arguments.tokens:
            break
    more = corpus.with_name("more.jsonl")
    for path, part in ((corpus, kept), (more, list(itertools.islice(texts, max(1, len(kept) // 100))))):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in part), encoding="utf-8")
    spec = make_header(config, teacher).spec
    tokeniser = Tokeniser.of(teacher.tokenizer, spec, "text", "")
    examples = []
    for piece in find_pieces(config.corpus):
        for record in read_piece(piece, ["text"]):
            document = parse(record, Source(piece.path, record.offset), config.corpus, None, "jsonl")
            examples += list(tokeniser.examples(document))
    lengths = [example.num_tokens for example in examples]
    planned = plan_batches(lengths, config.batch_tokens or START_TOKENS["cpu"])
    batches = [collate([examples[i] for i in batch], spec, pad_id=0) for batch in planned]
    return batches, sum(lengths), more


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


def open_model(config: PrecomputeConfig) -> Any:
    kinds = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "sequence-classification": transformers.AutoModelForSequenceClassification,
    }
    return kinds[config.teacher.task].from_pretrained(config.teacher.path, dtype=torch.float32).eval()


@torch.inference_mode()
def time_bare(config: PrecomputeConfig, batches: Sequence[Batch]) -> tuple[float, float]:
    started = time.perf_counter()
    model = open_model(config)
    load = time.perf_counter() - started
    options = {"use_cache": False} if config.teacher.task == "causal-lm" else {}

    def forward() -> None:
        for batch in batches:
            if batch.token_type_ids is not None:
                options["token_type_ids"] = batch.token_type_ids
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)

    model(input_ids=batches[-1].input_ids)
    return timed(forward), load


def time_job(config: PrecomputeConfig) -> tuple[RunSummary, float, float]:
    load, opened = 0.0, handler.open_scorer
    found = []

    def timed_open(job: handler.TeacherJob) -> Any:
        nonlocal load
        started = time.perf_counter()
        scorer = opened(job)
        load += time.perf_counter() - started
        return scorer

    handler.open_scorer = timed_open
    try:
        seconds = timed(lambda: found.append(precompute(config)))
    finally:
        handler.open_scorer = opened
    return found[0], seconds - load, load


class PlainHandler(ModelHandler[str, Mapping[str, Any], Any]):  # type: ignore[misc]
    """The teacher as Beam's documentation would run it."""

    load_seconds = 0.0

    def __init__(self, config: PrecomputeConfig) -> None:
        super().__init__(min_batch_size=PLAIN_BATCH, max_batch_size=PLAIN_BATCH)
        self._config = config

    def load_model(self) -> Any:
        started = time.perf_counter()
        tokenizer = transformers.AutoTokenizer.from_pretrained(self._config.teacher.path)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = open_model(self._config)
        PlainHandler.load_seconds += time.perf_counter() - started
        model.tokenizer = tokenizer
        return model

    @torch.inference_mode()
    def run_inference(
        self, batch: Sequence[str], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Mapping[str, Any]]:
        inputs = model.tokenizer(
            list(batch),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self._config.max_length,
        )
        if self._config.features:
            yield from self._classified(model, inputs)
            return
        logprobs = model(**inputs).logits.float().log_softmax(-1)
        values, ids = logprobs.topk(PLAIN_K)
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            yield {"ids": ids[row][mask].tolist(), "logprobs": values[row][mask].tolist()}

    def _classified(self, model: Any, inputs: Any) -> Iterable[Mapping[str, Any]]:
        output = model(**inputs, output_hidden_states=True)
        mask = inputs["attention_mask"][:, :, None].float()
        features = (output.hidden_states[-1] * mask).sum(1) / mask.sum(1)
        for logits, feature in zip(output.logits.tolist(), features.tolist(), strict=True):
            yield {"logits": logits, "features": feature}


def write_every(step: int, corpus: Path) -> Path:
    """Every `step`-th document of the corpus in a file of its own."""
    part = corpus.with_name("part.jsonl")
    with corpus.open(encoding="utf-8") as lines:
        part.write_text("".join(itertools.islice(lines, 0, None, step)), encoding="utf-8")
    return part


def time_plain(corpus: Path, config: PrecomputeConfig, out: Path) -> tuple[float, float]:
    lists = {"ids": pa.list_(pa.list_(pa.int32())), "logprobs": pa.list_(pa.list_(pa.float32()))}
    if config.features:
        lists = {"logits": pa.list_(pa.float32()), "features": pa.list_(pa.float32())}

    def run() -> None:
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            _ = (
                pipeline
                | beam.io.ReadFromText(str(corpus))
                | beam.Map(lambda line: json.loads(line)["text"])
                | RunInference(PlainHandler(config))
                | WriteToParquet(str(out), pa.schema(list(lists.items())), codec="zstd")
            )

    seconds = timed(run)
    return seconds - PlainHandler.load_seconds, PlainHandler.load_seconds


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
