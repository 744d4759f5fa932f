"""Opening a student: a model folder or hub name, a config to start from scratch, or a teacher with fewer layers.

Whether it fits the cache is checked from configs and tokenizers, before any weight is read; then it is tried. A student
is held in float32 (`--bf16` computes in bfloat16 all the same), and its weights are seeded, so two students of one
config and seed begin identical.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import set_seed

from schemas.cache import Cache
from schemas.errors import UsageError
from schemas.images import Pictures
from schemas.spec import Spec
from trainer.losses.objective import Objective
from trainer.models.embeddings import Embedder
from trainer.models.heads import check_head
from trainer.models.shrink import embedding_rows, parse_shrink, shrunk
from trainer.reading.reader import Reader
from trainer.students.adapter_folders import is_adapter, merged, read_adapter
from trainer.students.adapters import attach, loading_options, speaking, trained_whole
from trainer.students.compatibility import (
    check_config,
    check_embedding,
    check_labels,
    check_padding,
    check_trainable,
    fit_tokenizer,
)
from trainer.students.fitting import filled, fit_config, freeze_unused, is_unused, refuse_missing
from trainer.students.given import check_given
from trainer.students.image_students import open_image_model, open_images, open_trained_images
from trainer.students.lora import Lora
from trainer.students.on_features import (
    begin_on_features,
    is_on_features,
    open_on_features,
    parse_on_features,
)
from trainer.students.opening import cached_tokenizer, hub_commit, open_config, open_tokenizer, open_weights
from trainer.students.other_tokenizers import reader_of
from trainer.students.packed_trial import check_packs, find_packing
from trainer.students.scratch import model_of, scratch_config
from trainer.students.static_students import begin_static, is_static, open_static, parse_static
from trainer.students.student import Student
from trainer.students.trial import try_student
from trainer.tasks.tasks import STUDENT_TASKS

USUAL = Objective(weights={"kl": 1.0})
"""What a student is taken to learn by where nobody says it."""


def open_student(
    name: str,
    cache: Cache,
    *,
    teacher: str | None = None,
    seed: int = 42,
    alone: bool = False,
    lora: Lora | None = None,
    packs: bool = False,
    objective: Objective | None = None,
    given: Any = None,
    own_tokenizer: Any = None,
) -> Student:
    """Opens `name`: a folder or hub name, a config `.json`, `shrink:layers=3` of the `teacher`, `linear`, `mlp:256`
    or `static:256`.

    `alone` says that each batch will hold one row; a model that cannot be padded is refused else. With `lora` its
    weights are frozen, and adapters stand beside them. `packs` says that a row will hold several texts; a model that
    does not keep them apart is refused then. What the `objective` asks decides whether its tokenizer may be another.
    A model that is `given` is the student itself, with its own tokenizer or the cache's; `name` is what errors call it.

    Raises:
        UsageError: it cannot be opened, or a package is missing.
        StudentError: it does not fit the cache, or cannot be trained.
    """
    if packs:
        check_packs(cache.spec.kind)
    if given is not None:
        check_given(given, cache.spec, name)
    if cache.spec.kind.reads_images:
        pictures = open_images(cache)
        model = open_image_model(name, cache, pictures, seed=seed, lora=lora, alone=alone, given=given)
        is_saved = given is None and not name.endswith(".json")
        return _of_images(model, pictures, cache.spec, _begun(cache.spec, name if is_saved else None))
    if given is None and (found := _without_backbone(name, cache, seed, lora)) is not None:
        return found
    layers = parse_shrink(name)
    source = name if layers is None else _needed_teacher(teacher, name)
    from_scratch = layers is None and name.endswith(".json")
    cached = cached_tokenizer(cache)
    own = None if given is None else (given.config, own_tokenizer or cached)
    config, tokenizer = own or _read(source, cache.spec, cached, from_scratch=from_scratch)
    reader = reader_of(tokenizer, config, cached, cache, where=source, objective=objective or USUAL)
    check_trainable(config, cache.spec.kind, source)
    fit_config(config, cache.spec, tokenizer)
    check_config(config, cache.spec, tokenizer.get_vocab(), source, reads_again=reader is not None)
    set_seed(seed)
    loading = None if lora is None else _loading(lora, source)
    if given is not None or from_scratch:
        model, missing = given or model_of(STUDENT_TASKS[cache.spec.task].auto, source, config), list[str]()
    else:
        model, missing = filled(cache.spec, source, config, loading)
    if layers is not None:
        model = _shrunk(model, layers, cache.spec)
    freeze_unused(model, cache.spec)
    adapter = None if lora is None else _adapted(model, lora, cache.spec, missing, loading, base=source)
    with speaking(model):
        student = _tried(model, tokenizer, cache, alone=alone, where=source, adapter=adapter, reader=reader)
        student = replace(student, embedder=_begun(cache.spec, None if from_scratch or given else source))
        return _with_packing(student, cache.spec) if packs else student


def _shrunk(model: Any, layers: Any, spec: Spec) -> Any:
    task = STUDENT_TASKS[spec.task]
    return shrunk(model, layers, task.auto, task.scores, has_halves=spec.kind.has_source)


def _read(source: str, spec: Spec, cached: Any, *, from_scratch: bool) -> tuple[Any, Any]:
    """Config and tokenizer of a name."""
    if from_scratch:
        return scratch_config(source, spec, cached), cached
    return open_config(source), open_tokenizer(source)


def _adapted(
    model: Any, lora: Lora, spec: Spec, missing: list[str], loading: dict[str, Any] | None, *, base: str
) -> Any:
    """Adapters beside the frozen weights of `base`; what it had no weights for is trained whole."""
    whole = trained_whole(model, missing, classifies=not spec.kind.has_vocabulary)
    revision, task_type = (loading or {}).get("revision"), STUDENT_TASKS[spec.task].peft_task
    return attach(model, lora, base=base, revision=revision, task_type=task_type, whole=whole)


def open_trained(folder: str, cache: Cache, *, alone: bool = False) -> Student:
    """Opens a finished student, or the teacher, for evaluation.

    Raises:
        UsageError: it cannot be opened.
        StudentError: it does not fit the cache, or has weights missing.
    """
    if cache.spec.kind.reads_images:
        pictures = open_images(cache)
        model = open_trained_images(folder, cache, pictures, alone=alone)
        return _of_images(model, pictures, cache.spec, Embedder.of(cache.spec, folder))
    if is_adapter(folder):
        return _open_adapted(folder, cache, alone=alone)
    if is_on_features(folder):
        model, tokenizer = open_on_features(folder, cache)
        return _reader(model.eval(), tokenizer, cache)
    if is_static(folder):
        return _of_table(*open_static(folder, cache), cache, folder, trained=False)
    config, tokenizer = open_config(folder), open_tokenizer(folder)
    reader = reader_of(tokenizer, config, cached_tokenizer(cache), cache, where=folder)
    check_labels(config, cache.spec, folder)
    check_config(config, cache.spec, tokenizer.get_vocab(), folder, reads_again=reader is not None)
    model, missing = open_weights(STUDENT_TASKS[cache.spec.task].auto, folder, config)
    refuse_missing(model, [name for name in missing if not is_unused(name, cache.spec)], folder)
    student = _tried(model.eval(), tokenizer, cache, alone=alone, where=folder, trained=False, reader=reader)
    return replace(student, embedder=Embedder.of(cache.spec, folder))


def _loading(lora: Lora, source: str) -> dict[str, Any]:
    """How the weights below adapters are loaded: those of one commit, which the adapters will name."""
    commit = hub_commit(source)
    return loading_options(lora) | ({} if commit is None else {"revision": commit})


def _without_backbone(name: str, cache: Cache, seed: int, lora: Lora | None) -> Student | None:
    return _on_features(name, cache, seed, lora) or _static(name, cache, seed, lora)


def _on_features(name: str, cache: Cache, seed: int, lora: Lora | None) -> Student | None:
    if (hidden := parse_on_features(name)) is not None:
        return _reader(*begin_on_features(hidden, cache, seed), cache)
    if not is_on_features(name):
        return None
    if lora is not None:
        raise UsageError("--lora has no effect on a student without a backbone", where=name)
    return _reader(*open_on_features(name, cache), cache)


def _static(name: str, cache: Cache, seed: int, lora: Lora | None) -> Student | None:
    if (width := parse_static(name)) is not None:
        return _of_table(*begin_static(width, cache, seed), cache, None)
    if not is_static(name):
        return None
    if lora is not None:
        raise UsageError("--lora has no effect on a static student", where=name)
    return _of_table(*open_static(name, cache), cache, name)


def _of_table(
    model: Any, tokenizer: Any, cache: Cache, folder: str | None, *, trained: bool = True
) -> Student:
    """A static student, new or of a folder, which goes on from its map."""
    model = model.train(trained)
    student = _tried(model, tokenizer, cache, alone=False, where=folder or "static", trained=trained)
    new, before = (Embedder.of(cache.spec, one, is_static=True) for one in (None, folder))
    assert new is not None
    assert before is not None
    return replace(student, embedder=replace(new, dense=before.dense) if trained else before)


def _reader(model: Any, tokenizer: Any, cache: Cache) -> Student:
    """A student that reads the cache's features."""
    spec = cache.spec
    return Student(
        model=model, tokenizer=tokenizer, task=spec.kind, longest=spec.max_length, features=spec.features
    )


def _of_images(model: Any, pictures: Pictures, spec: Spec, embedder: Embedder | None) -> Student:
    student = Student(model=model, tokenizer=pictures.processor, task=spec.kind, longest=spec.max_length)
    return replace(student, pictures=pictures, embedder=embedder, classes=spec.vocab_size)


def _open_adapted(folder: str, cache: Cache, *, alone: bool) -> Student:
    """A base with its adapters merged into it."""
    saved, spec = read_adapter(folder), cache.spec
    try:
        config = open_config(saved.base, saved.revision)
    except UsageError as error:
        raise saved.without_base(error) from error
    own = any((saved.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = open_tokenizer(folder, of_adapter=True) if own else open_tokenizer(saved.base, saved.revision)
    reader = reader_of(tokenizer, config, cached_tokenizer(cache), cache, where=folder)
    fit_config(config, spec, tokenizer)
    check_config(config, spec, tokenizer.get_vocab(), saved.base, reads_again=reader is not None)
    loading = None if saved.revision is None else {"revision": saved.revision}
    model, missing = filled(spec, saved.base, config, loading)
    model = merged(model, missing, saved, spec)
    student = _tried(model.eval(), tokenizer, cache, alone=alone, where=folder, trained=False, reader=reader)
    return replace(student, embedder=Embedder.of(spec, folder))


def _tried(
    model: Any,
    tokenizer: Any,
    cache: Cache,
    *,
    alone: bool,
    where: str,
    trained: bool = True,
    adapter: Any = None,
    reader: Reader | None = None,
) -> Student:
    spec = cache.spec
    alone = alone and not spec.kind.holds_texts
    check_embedding(embedding_rows(model), spec, tokenizer.get_vocab(), where, reads_again=reader is not None)
    fit_tokenizer(tokenizer, model)
    student = Student(
        model=model,
        tokenizer=tokenizer,
        task=spec.kind,
        adapter=adapter,
        longest=spec.max_length,
        reader=reader,
    )
    if spec.kind.has_named_classes and not spec.kind.predicts_tokens and not alone:
        check_padding(model, student.pad_id, where)
    try_student(
        model,
        task=spec.kind,
        scores=STUDENT_TASKS[spec.task].scores,
        generates=trained and STUDENT_TASKS[spec.task].generates,
        pad_id=student.pad_id,
        max_length=spec.max_length if reader is None else reader.limit,
        alone=alone,
        trained=trained,
    )
    if spec.kind.has_vocabulary:
        check_head(model, STUDENT_TASKS[spec.task].run, has_source=spec.kind.has_source)
    return student


def _with_packing(student: Student, spec: Spec) -> Student:
    run = STUDENT_TASKS[spec.task].run
    packing = find_packing(student.model, task=spec.kind, run=run, max_length=spec.max_length)
    return replace(student, packing=packing)


def _begun(spec: Spec, source: str | None) -> Embedder | None:
    """How a student will embed that is going to be trained: as the cache has it, from its folder's map on."""
    new = Embedder.of(spec)
    if new is None or source is None:
        return new
    before = Embedder.of(spec, source)
    return replace(new, dense=None if before is None else before.dense)


def _needed_teacher(teacher: str | None, name: str) -> str:
    if teacher is None:
        raise UsageError(f"--student {name} takes its weights from the teacher", do="Add --teacher FOLDER")
    return teacher
