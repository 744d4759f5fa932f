"""One model class from its random weights to a student that is reloaded: what works, and what is refused, and why.

The product's own path, without Beam: the teacher is opened with all its checks, texts are tokenised, batched, answered,
encoded, sealed and committed, and the student is opened, trained for a step and saved. The truth is plain transformers:
a fresh copy of the model, asked for one text at a time, in float32. What is no `TeachonceError` goes through.
"""

import copy
import inspect
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from tokenizers import processors

from pipelines.config import CorpusConfig, PrecomputeConfig, TeacherConfig
from pipelines.corpus.documents import Document
from pipelines.corpus.tokenization import Tokeniser
from pipelines.fingerprint.fingerprint import make_header, resolve
from pipelines.scoring.handler import TeacherJob, open_scorer
from pipelines.scoring.units import ShardLine
from schemas import Cache
from schemas.errors import TeachonceError
from schemas.identity import document_hash, unit_name
from schemas.policies import KeepAll
from schemas.rows.rows import Rows
from schemas.shards.seal import Shard, Totals
from schemas.spec import Header
from schemas.storage.storage import Storage
from schemas.versions.commits import NO_VERSION, commit, record_after
from schemas.versions.header import create_header
from tests.architectures.tiny_models import AUTO, CAUSAL, CLS, MASK, MASKED, SEP, Unbuilt, tiny_model
from tests.pipelines.families import louder, tokenizer
from tests.pipelines.helpers import decoded
from tests.pipelines.models import TEXT, byte_tokenizer, save
from trainer.losses.objective import Objective
from trainer.students.student import Student
from trainer.students.students import open_student
from trainer.training.training import make_distiller

TASKS: dict[str, dict[str, Any]] = {CAUSAL: {}, MASKED: {}}
"""The tasks that are tried, each with what a run of it is told besides: one task more is one entry more."""

TEXTS = ("A b", TEXT[0], "Nothing <pad> is lost", TEXT[2], TEXT[1][:30])
MAX_LENGTH = 96
HALF_STEP = 1 / 32 + 1e-3
"""What rounding to codes costs a score, in nats, with what float32 sums in another order do."""
HALF_SCALAR_STEP = 1 / 64 + 1e-3
LIKELY = math.log(1e-6)
"""Scores below reach the end of the codes."""


RESET = {"youtu": [0]}
"""Ids whose weights transformers itself sets to zero whenever it loads a class, those of a tied head too."""


class Outcome(NamedTuple):
    """What a class comes to: `yes`, `refused: ...` or, of both sides, `skipped: ...`."""

    teacher: str
    student: str = ""


class Refusal(NamedTuple):
    """One side's error: its whole line, and the part of it that is the same wherever it is raised."""

    line: str
    reason: str


class Trial(NamedTuple):
    """An outcome, with the refusals in full."""

    outcome: Outcome
    refusals: tuple[Refusal, ...] = ()


def tried(task: str, model_type: str, folder: Path) -> Trial:
    """Tries a class as a teacher, and then as a student of itself."""
    try:
        model = tiny_model(task, model_type)
    except Unbuilt as error:
        return Trial(Outcome(f"skipped: {error}"))
    louder(model)
    path = save(model, words(task), folder / model_type)
    try:
        cache = scored(task, path, folder / "cache")
    except TeachonceError as error:
        refusal = refused(error, folder)
        return Trial(Outcome(f"refused: {refusal.reason}", "-"), (refusal,))
    check_truth(task, path, cache)
    try:
        student = opened_student(cache, path)
        check_step(student, cache)
        check_reload(task, student, folder / "student", RESET.get(model_type, []))
    except TeachonceError as error:
        refusal = refused(error, folder)
        return Trial(Outcome("yes", f"refused: {refusal.reason}"), (refusal,))
    return Trial(Outcome("yes", "yes"))


def words(task: str) -> Any:
    """The tests' tokenizer; for a masked language model one that has a mask, and puts a text between two tokens."""
    if task == CAUSAL:
        return tokenizer(special=False)
    made = copy.deepcopy(byte_tokenizer(MASK))
    made.add_special_tokens({"mask_token": "<mask>"})
    around = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    made.backend_tokenizer.post_processor = around
    return made


def refused(error: TeachonceError, folder: Path) -> Refusal:
    """An error's words; of measurements and folders only that they were."""
    got = "" if error.got is None else str(error.got).replace(str(folder), "")
    measured = re.search(r"\d\.\d|\de[+-]?\d|0x", got)
    reason = f"{error.what}: {got}" if got and not measured else error.what
    return Refusal(error.line(), " ".join(reason.split())[:200])


def scored(task: str, path: Path, root: Path) -> Cache:
    """A committed cache of what the teacher says of the texts: every score of every position."""
    config = config_of(task, path, root)
    teacher = resolve(config.teacher)
    header = make_header(config, teacher)
    storage = Storage.at(root)
    create_header(storage, header, dict(teacher.tokenizer_files))
    scorer, _ = open_scorer(job_of(config, header))
    tokeniser = Tokeniser.of(teacher.tokenizer, header.spec, "text", header.fingerprint.tokenizer)
    examples = [example for text in TEXTS for example in tokeniser.examples(document(text))]
    line = scorer.score(unit_name((example.id for example in examples), header.spec.hash), examples)
    assert not line.rejects
    committed(storage, header, line)
    return Cache.open(root)


def config_of(task: str, path: Path, root: Path) -> PrecomputeConfig:
    return PrecomputeConfig(
        corpus=CorpusConfig(files=("-",)),
        teacher=TeacherConfig(path=str(path), task=task, device="cpu"),
        cache=str(root),
        keep=KeepAll(),
        max_length=MAX_LENGTH,
        **TASKS[task],
    )


def job_of(config: PrecomputeConfig, header: Header) -> TeacherJob:
    return TeacherJob(
        config=config.teacher,
        header=header,
        root=config.cache,
        run="run",
        base=NO_VERSION,
        batch_tokens=None,
        row_group_tokens=config.row_group_tokens,
    )


def committed(storage: Storage, header: Header, line: ShardLine) -> None:
    totals = Totals(**line.totals)
    shards = [Shard(line.name, line.size_bytes, totals.examples)]
    record = record_after(None, shards, totals, run="run", header_hash=header.to_json()["hash"])
    commit(storage, header.spec, None, shards, record)


def document(text: str) -> Document:
    return Document(document_hash({"text": text}, key="", label=None), None, text, None, None, "-", 0)


@torch.inference_mode()
def check_truth(task: str, path: Path, cache: Cache) -> None:
    """Every text is there, and every score of it is that of a model as anybody opens it."""
    model = AUTO[task].from_pretrained(path, dtype=torch.float32).eval()
    found = []
    for rows in cache.read_all():
        for index in range(len(rows)):
            row = decoded(rows.take(np.array([index])))
            ids = torch.from_numpy(row["input_ids"].astype(np.int64))[None]
            fresh = copy.deepcopy(model)
            logits = fresh(**as_tokenised(fresh, ids)).logits[0].double()
            check_scores(row, logits.log_softmax(1).numpy()[row["positions"]])
            found.append(original(row).tolist())
    given = transformers.AutoTokenizer.from_pretrained(path)(list(TEXTS))["input_ids"]
    assert sorted(found) == sorted(given)


def as_tokenised(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a tokenizer gives of one text: XLM takes its mark of padding for padding where no mask says otherwise."""
    masked = "attention_mask" in inspect.signature(model.forward).parameters
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if masked else {"input_ids": ids}


def original(row: dict[str, Any]) -> np.ndarray:
    """A text before anything of it was masked: the labels, where a row has some, are what stood at its positions."""
    ids = row["input_ids"].copy()
    if len(row["labels"]):
        ids[row["positions"]] = row["labels"]
    return ids


def check_scores(row: dict[str, Any], truth: np.ndarray) -> None:
    width = truth.shape[1]
    assert row["kept_offsets"].tolist() == [width * place for place in range(len(truth) + 1)]
    ids, kept = (row[name].reshape(-1, width) for name in ("kept_ids", "logprobs"))
    exact = np.take_along_axis(truth, ids, 1)
    assert (np.sort(ids, 1) == np.arange(width)).all()
    assert np.abs(kept - exact)[exact > LIKELY].max() <= HALF_STEP
    gold = row["labels"] if len(row["labels"]) else row["input_ids"][row["positions"] + 1]
    assert np.abs(row["label_logprob"] - truth[np.arange(len(truth)), gold]).max() <= HALF_SCALAR_STEP


def opened_student(cache: Cache, path: Path) -> Student:
    """The student with the fewest layers that the teacher's kinds of layers allow."""
    try:
        return open_student("shrink:layers=1", cache, teacher=str(path))
    except TeachonceError as error:
        fewest = re.fullmatch(r"at least (\d+)", str(error.expected))
        if fewest is None:
            raise
    return open_student(f"shrink:layers={fewest[1]}", cache, teacher=str(path))


def check_step(student: Student, cache: Cache) -> None:
    """One optimizer step on all rows: its loss is a number, and the weights are others."""
    distiller = make_distiller(student, cache, Objective.parse(["kl=1.0", "ce=0.5"])).train()
    before = [weight.detach().clone() for weight in student.model.parameters()]
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
    batch = student.collation().batch(Rows.concatenate(list(cache.read_all())))
    loss = distiller(batch)["loss"]
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    after = student.model.parameters()
    changed = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert sum(changed) > len(changed) // 2


@torch.inference_mode()
def check_reload(task: str, student: Student, folder: Path, reset: Sequence[int]) -> None:
    """What was saved is opened by plain transformers, whole, and says the same."""
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    again, told = AUTO[task].from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    ids = torch.tensor([transformers.AutoTokenizer.from_pretrained(folder)(TEXT[0])["input_ids"]])
    ours, theirs = (model.eval()(input_ids=ids).logits for model in (student.model, again))
    known = sorted(set(range(ours.shape[-1])) - set(reset))
    torch.testing.assert_close(theirs[..., known], ours[..., known])
