"""Caches that a later release may write: one that this release cannot read is left alone by every verb, whatever it
asks for; one that only holds more than it knows is read, and what is unknown stays out of the way."""

import io
import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import teachonce
from schemas import Cache
from schemas.errors import FormatError
from schemas.identity import canonical_json, digest
from schemas.rows.columns import write_options
from schemas.shards.seal import FOOTER_KEY, LISTED_KEY, Shard, ShardFooter, Totals, bytes_hash
from schemas.versions.commits import commit, read_version, record_after
from tests.pipelines.helpers import same_columns
from tests.trainer.outputs import same
from tests.trainer.tiny import STUDENT

NEWER = {
    "version": ({"format_version": 2}, "another format version", "expected 1, got 2. Install the"),
    "feature": (
        {"required_features": ["keep:top_p", "score:softmax", "keep:min_p"]},
        "does not know",
        "keep:min_p",
    ),
}


@pytest.fixture(params=NEWER)
def newer(request, whole, tmp_path):
    """A copy of a real cache whose spec is a later release's, with its hash as it must be; and the words to expect."""
    changes, *words = NEWER[request.param]
    cache = shutil.copytree(whole[0], tmp_path / "cache")
    spec = cache / "_teachonce" / "spec.json"
    body = json.loads(spec.read_text()) | changes
    del body["hash"]
    spec.write_text(json.dumps({**body, "hash": digest(canonical_json(body), "header").hex()}))
    return cache, words


def calls(cache, corpus, teacher, folder):
    """Each verb with flags that would work, by name; of some verbs several ways."""
    (folder / "ids.txt").write_text("a\n")
    (folder / "student.json").write_text(json.dumps(STUDENT))
    space = {"student": str(folder / "student.json"), "max_steps": [1, 2], "use_cpu": True}
    (folder / "space.yaml").write_text(json.dumps(space))
    given = {"corpus": corpus, "teacher": teacher, "task": "causal-lm", "cache": cache, "max_length": 24}
    flags = [f"--{name}={value}" for name, value in given.items()]
    student = [f"--cache={cache}", f"--student={folder / 'student.json'}"]
    return {
        "precompute": [[*flags, "--no_progress"]],
        "plan": [flags],
        "inspect": [[cache]],
        "verify": [[cache], [cache, "--repair"], [cache, f"--teacher={teacher}"]],
        "export": [[cache, f"--out={folder / 'plain'}"]],
        "compact": [[cache]],
        "thin": [[cache, "--keep=top_k:3", f"--out={folder / 'small'}"]],
        "merge": [[cache, cache.parent / "other", f"--out={folder / 'both'}", "--pick=entropy"]],
        "forget": [[cache, f"--ids={folder / 'ids.txt'}"]],
        "vacuum": [[cache, "--older_than=0d"]],
        "train": [[*student, f"--output_dir={folder / 'out'}", "--max_steps=1", "--use_cpu"]],
        "sweep": [[cache, f"--space={folder / 'space.yaml'}", f"--study={folder / 'study'}"]],
        "evaluate": [student],
        "report": [[cache, f"--out={folder / 'report.html'}"]],
    }


def contents(cache):
    return {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_every_verb_leaves_alone_what_it_cannot_read(newer, whole, corpus, teacher, tmp_path, capfd):
    cache, words = newer
    before = contents(cache)
    with pytest.raises(FormatError, match=words[1]):
        Cache.open(cache)
    every = calls(cache, corpus, teacher, tmp_path)
    assert every.keys() == teachonce.VERBS.keys()
    every["thin"].append([whole[0], "--keep=top_k:3", f"--out={cache}"])
    for verb, ways in every.items():
        for way in ways:
            capfd.readouterr()
            status = teachonce.main([verb, *map(str, way)])
            out, err = capfd.readouterr()
            assert (status, out, err.count("\n")) == (1, "", 1), (verb, way, out, err)
            assert err.startswith(f"teachonce {verb}: "), err
            assert all(word in err for word in (*words, f"{cache}/_teachonce/spec.json", "or a newer one")), (
                err
            )
            assert contents(cache) == before, verb
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "ids.txt", "student.json", "space.yaml"}


def with_more(shard, cache):
    """A sealed shard of the same row groups, with two columns more than its spec has."""
    file = pq.ParquetFile(f"{cache.storage.root}/{shard.name}")
    stored = file.metadata.metadata
    moods, notes = pa.field("mood", pa.list_(pa.float64())), pa.field("a_note", pa.string())
    schema = file.schema_arrow.remove_metadata().append(moods).insert(0, notes)
    sink, groups = io.BytesIO(), []
    footer = ShardFooter.from_bytes(stored[FOOTER_KEY])
    with pq.ParquetWriter(sink, schema, **write_options(cache.spec)) as writer:
        for place, group in enumerate(footer.row_groups):
            table = file.read_row_group(place)
            more = [[0.5] * (row % 3) for row in range(len(table))]
            table = table.append_column(moods, pa.array(more, moods.type))
            table = table.add_column(0, notes, pa.array(["said"] * len(table)))
            writer.write_table(table.cast(schema), row_group_size=len(table))
            start = groups[-1].end if groups else 0
            data = sink.getvalue()[start:]
            groups.append(replace(group, start=start, end=start + len(data), hash=bytes_hash(data)))
        footer = replace(footer, row_groups=tuple(groups))
        writer.add_key_value_metadata({FOOTER_KEY: footer.to_bytes(), LISTED_KEY: stored[LISTED_KEY]})
    data = sink.getvalue()
    name = f"{footer.unit}-{bytes_hash(data[groups[-1].end :])}.parquet"
    return Shard(name, len(data), shard.examples), data


@pytest.fixture
def larger(whole, tmp_path):
    """A copy of a real cache, all of whose shards hold more than their spec says; it is the cache's second version."""
    cache = Cache.open(shutil.copytree(whole[0], tmp_path / "cache"))
    added = []
    for shard in cache.shards:
        new, data = with_more(shard, cache)
        cache.storage.put(new.name, data)
        added.append(new)
    base = read_version(cache.storage)
    hashed = {"run": "later", "header_hash": base.record.header_hash}
    record = record_after(base, added, Totals(), list(cache.shards), **hashed)
    commit(cache.storage, cache.spec, base, added, record, removed=list(cache.shards))
    return Cache.open(cache.storage.root)


def test_unknown_columns_are_ignored_and_go_no_further(larger, whole, tmp_path):
    """By a reader, a student, and every verb that writes rows again."""
    known = Cache.open(whole[0])
    assert larger.version == 1
    names = pq.read_schema(f"{larger.storage.root}/{larger.shards[0].name}").names
    assert {"mood", "a_note"} <= set(names)
    assert larger.verify().examples == known.totals.examples
    same_columns(larger, known)
    root = larger.storage.root
    (tmp_path / "student.json").write_text(json.dumps(STUDENT))
    for name, cache in (("from_more", root), ("from_known", whole[0])):
        flags = [f"--cache={cache}", f"--student={tmp_path / 'student.json'}", "--use_cpu", "--max_steps=3"]
        assert teachonce.main(["train", *flags, f"--output_dir={tmp_path / name}", "--save_strategy=no"]) == 0
    assert same(tmp_path / "from_more", tmp_path / "from_known")
    thinned = [tmp_path / "thin_more", tmp_path / "thin_known"]
    for path, out in zip((root, whole[0]), thinned, strict=True):
        assert teachonce.main(["thin", str(path), "--keep=top_p:0.8,k=4", f"--out={out}"]) == 0
    names = [[shard.name for shard in Cache.open(out).shards] for out in thinned]
    assert names[0] == names[1]
    assert teachonce.main(["compact", root]) == 0
    merged = Cache.open(root)
    assert (merged.version, merged.verify().shards) == (2, 1)
    same_columns(merged, known)
    written = pq.read_schema(f"{root}/{merged.shards[0].name}")
    assert written.names == pq.read_schema(whole[0] / known.shards[0].name).names
