"""What the pages' blocks find in their folder: the corpora, teachers and students that they name, small."""

import json
import re
import shutil

from tests.detectors import detected
from tests.docs.blocks import ROOT
from tests.images import image_teacher, images, write_parquet
from tests.pipelines import models
from tests.pipelines.helpers import compress, documents, write_jsonl
from tests.several import make_caches


def language_model(here, *names):
    """A causal LM as `teacher`, its corpus, and a student's config."""
    teacher = models.causal_teacher(here / "teacher")
    records = [{"id": f"user-{i}", **one} for i, one in enumerate(documents(40))]
    compress(write_jsonl(here / "corpus" / "a.jsonl", records), ".zst")
    (here / "corpus" / "a.jsonl").unlink()
    write_jsonl(here / "corpus.jsonl", documents(40))
    for name in ("student.json", *names):
        shutil.copy(teacher / "config.json", here / name)


def cached(here, *names):
    """The same, and a cache of it."""
    language_model(here, *names)
    (here / "before.sh").write_text(
        "teachonce precompute --corpus 'corpus/*.jsonl.zst' --id_field id --teacher ./teacher --task causal-lm "
        "--temperatures 1 2 --cache ./cache"
    )


def classes(here, file="texts.jsonl", **changes):
    """Labelled texts and a classifier."""
    models.classifier(here / "teacher", **changes)
    records = [{**one, "label": f"label{i % 3}"} for i, one in enumerate(documents(40))]
    write_jsonl(here / file, records)
    student = json.loads((here / "teacher" / "config.json").read_text())
    (here / "student.json").write_text(json.dumps(student))


def tables(here):
    models.classifier(here / "teacher")
    (here / "reviews").mkdir()
    lines = ["id,body,stars", *(f'r{i},"{one["text"][:60]}",{i % 3}' for i, one in enumerate(documents(30)))]
    compress(_text(here / "reviews" / "one.csv", lines), ".gz")


def _text(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def questions(here):
    teacher = models.causal_teacher(here / "teacher")
    shutil.copytree(teacher, here / "student")
    write_jsonl(here / "prompts" / "a.jsonl", [{"question": f"Who is {i}?"} for i in range(12)])


def written_and_read(here):
    """A student's texts beside prompts."""
    questions(here)
    write_jsonl(here / "prompts.jsonl", [{"question": f"Who is {i}?"} for i in range(12)])
    told = [{"question": f"Who is {i}?", "answer": f"Nobody {i}."} for i in range(12)]
    write_jsonl(here / "students.jsonl", told)


def other_tokenizer(here):
    language_model(here)
    shutil.copytree(here / "teacher", here / "other")


def two_students(here):
    """What the report is of."""
    cached(here)
    train = "teachonce train --cache ./cache --student student.json --losses kl=1 --output_dir"
    with (here / "before.sh").open("a") as file:
        file.write(f"\n{train} ./a\n{train} ./b --seed 2")


def several(here):
    """Three classifiers: an ensemble is made of these."""
    classes(here)
    train = "teachonce train --cache ./cache --student student.json --losses kl=1 --output_dir"
    (here / "before.sh").write_text(
        "teachonce precompute --corpus texts.jsonl --label_field label --teacher ./teacher "
        "--task sequence-classification --cache ./cache"
        + "".join(f"\n{train} ./{name} --seed {n}" for n, name in enumerate("abc"))
    )


def glosses(here):
    classes(here, "glosses.jsonl")


def two_teachers(here):
    language_model(here)
    shutil.copytree(here / "teacher", here / "one")
    models.causal_teacher(here / "two", seed=1)


def to_merge(here):
    """Two caches that keep all, and two of the default policy."""
    two_teachers(here)
    call = "teachonce precompute --corpus corpus.jsonl --task causal-lm"
    lines = [
        f"{call} --teacher ./{own} --cache ./{name} --keep all" for own, name in (("one", "a"), ("two", "b"))
    ]
    lines += [f"{call} --teacher ./teachers/{name} --cache ./{name}" for name in ("one", "two")]
    (here / "teachers").mkdir()
    for name in ("one", "two"):
        shutil.copytree(here / name, here / "teachers" / name)
    (here / "before.sh").write_text("\n".join(lines))


def several_tasks(here):
    """Three caches of one tokenizer, and the page's own file."""
    make_caches(here)
    (here / "words").rename(here / "entities")
    models.encoder(here / "encoder")
    (here / "tasks.yaml").write_text(yaml_of("docs/several.md"))


def yaml_of(page):
    """A page's first block in YAML."""
    return re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)[0]


def of_yaml(page, name):
    """A page's own block in YAML, as the file that its commands name."""

    def made(here):
        cached(here, "small.json")
        (here / name).write_text(yaml_of(page).replace("layers=6", "layers=1"))

    return made


def training(here):
    of_yaml("docs/training.md", "students.yaml")(here)
    shutil.copytree(here / "teacher", here / "large")
    for name in ("code", "prose"):
        with (here / "before.sh").open("a") as file:
            file.write(
                f"\nteachonce precompute --corpus corpus.jsonl --teacher ./teacher --task causal-lm --cache ./{name}"
            )


def readme(here):
    """As if in the repository's folder."""
    (here / "examples").mkdir()
    teacher = models.causal_teacher(here / "examples" / "teacher")
    compress(write_jsonl(here / "examples" / "corpus.jsonl", documents(40)), ".zst")
    shutil.copy(teacher / "config.json", here / "examples" / "student.json")


def spans(here):
    models.token_classifier(here / "ner-teacher", ("O", "B-PER"))
    names = ("Ada", "Tom", "Mia", "Leo")
    told = [{"tokens": [names[i % 4], "met", f"him{i}"], "tags": ["B-PER", "O", "O"]} for i in range(40)]
    write_jsonl(here / "ner.jsonl", told)


def answers(here):
    models.answerer(here / "qa-teacher")
    told = [
        {
            "id": f"q{i}",
            "question": "Who?",
            "context": f"Ada is {i}.",
            "answers": [{"text": "Ada", "answer_start": 0}],
        }
        for i in range(40)
    ]
    write_jsonl(here / "squad.jsonl", told)


def translations(here):
    teacher = models.seq2seq_teacher(here / "mt-teacher")
    write_jsonl(here / "wmt.jsonl", [{"de": f"Das ist {i}.", "en": f"This is {i}."} for i in range(40)])
    write_jsonl(here / "sources.jsonl", [{"de": f"Wer ist {i}?"} for i in range(12)])
    shutil.copy(teacher / "config.json", here / "student.json")


def rankings(here):
    models.classifier(here / "reranker", num_labels=1)
    told = [
        {"text": f"Who is {i}?", "docs": [f"one {i}", f"another {i}", f"third {i}"], "label": [1.0, 0.0, 0.0]}
        for i in range(40)
    ]
    write_jsonl(here / "lists.jsonl", told)


def embeddings(here):
    models.embedder(here / "embedder")
    write_jsonl(here / "texts.jsonl", documents(40))


def pictures(here):
    image_teacher(here / "teacher")
    write_parquet(here / "digits.parquet", images(24), field="image")
    shutil.copy(here / "teacher" / "config.json", here / "student.json")


def pictures_narrow(here):
    """With a student that is not as wide as its teacher."""
    pictures(here)
    config = json.loads((here / "student.json").read_text())
    (here / "student.json").write_text(json.dumps({**config, "hidden_size": 8}))


def detections(here):
    detected(here, 24)
    shutil.copy(here / "detector" / "config.json", here / "student.json")


PAGES = {
    "README.md": (None, readme),
    "docs/another-tokenizer.md": (other_tokenizer,),
    "docs/cost.md": (language_model,),
    "docs/generate.md": (questions, written_and_read),
    "docs/nightly.md": (None, cached),
    "docs/policies.md": (language_model,),
    "docs/report.md": (two_students,),
    "docs/several.md": (several, None, glosses, None, two_teachers, to_merge, several_tasks),
    "docs/sweep.md": (of_yaml("docs/sweep.md", "space.yaml"),),
    "docs/tables.md": (tables,),
    "docs/tasks/causal-lm.md": (language_model,),
    "docs/tasks/feature-extraction.md": (embeddings,),
    "docs/tasks/image-classification.md": (pictures,),
    "docs/tasks/image-feature-extraction.md": (pictures_narrow, None),
    "docs/tasks/object-detection.md": (detections, None),
    "docs/tasks/pair-score.md": (rankings,),
    "docs/tasks/question-answering.md": (answers,),
    "docs/tasks/seq2seq-lm.md": (translations,),
    "docs/tasks/sequence-classification.md": (classes,),
    "docs/tasks/token-classification.md": (spans,),
    "docs/thin.md": (cached,),
    "docs/training.md": (training, None, None, training),
}
"""Pages of which blocks are run, and what makes the folder that their first, second, ... block begins, if it does."""
