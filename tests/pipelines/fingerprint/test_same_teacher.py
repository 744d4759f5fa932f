"""A cache outlives its libraries: files that another release wrote anew are the same teacher, other content is not."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers

import teachonce
from pipelines import TeacherConfig
from pipelines.fingerprint import fingerprint
from pipelines.fingerprint.fingerprint import make_fingerprint, resolve
from pipelines.fingerprint.same_teacher import other_ids
from pipelines.fingerprint.teacher_files import config_text, former_hash, hash_weights, weight_files
from pipelines.job import outcome
from schemas import Cache
from schemas.errors import MismatchError, UsageError
from tests.pipelines.helpers import read, run


@pytest.fixture
def copy(tmp_path, teacher):
    """A teacher's folder, to be changed."""
    return shutil.copytree(teacher, tmp_path / "teacher")


def edit(path, change):
    """Changes a JSON file in place, with other blanks and another order than before."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(dict(reversed(list(value.items()))), indent=7))


def hashes(folder):
    found = TeacherConfig(path=str(folder), task="causal-lm")
    return make_fingerprint(found, str(folder), resolve(found).tokenizer)


def former(monkeypatch, folder, corpus, cache, **fields):
    """A cache as an earlier release made it: its hashes of these fields are none that this release takes."""
    honest = fingerprint.make_fingerprint
    other = lambda *given: replace(honest(*given), **fields)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "make_fingerprint", other)
        patch.setattr("pipelines.scoring.handler.make_fingerprint", other)
        return run(corpus, folder, cache)


PADDING = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0}
PADDING |= {"pad_type_id": 0, "pad_token": "<pad>"}
WRITTEN_BY_ANOTHER = {
    "a key more": ("tokenizer_config.json", lambda v: v.update(local_files_only=False, is_local=True)),
    "where it lay": ("tokenizer_config.json", lambda v: v.update(name_or_path="/old/place", backend="rust")),
    "who wrote it": (
        "tokenizer_config.json",
        lambda v: v.update(transformers_version="9.1", processor_class="P"),
    ),
    "padding": ("tokenizer.json", lambda v: v.update(padding=PADDING, truncation=None)),
    "the config's writer": (
        "config.json",
        lambda v: v.update(transformers_version="9.1", torch_dtype="float32"),
    ),
}


@pytest.mark.parametrize("name", WRITTEN_BY_ANOTHER)
def test_what_decides_nothing_changes_no_hash(teacher, copy, name):
    file, change = WRITTEN_BY_ANOTHER[name]
    edit(copy / file, change)
    assert hashes(copy) == hashes(teacher)


def lower(value):
    value["normalizer"] = {"type": "Lowercase"}


DECIDES = {
    "normalizer": ("tokenizer.json", lower, "tokenizer"),
    "a special token": ("tokenizer_config.json", lambda v: v.update(eos_token="<pad>"), "tokenizer"),
    "the model": ("config.json", lambda v: v.update(rms_norm_eps=0.5), "config"),
}


@pytest.mark.parametrize("name", DECIDES)
def test_what_decides_something_changes_its_hash_and_is_refused_by_name(
    tmp_path, whole, corpus, copy, name, capsys
):
    file, change, field = DECIDES[name]
    edit(copy / file, change)
    cache = shutil.copytree(whole[0], tmp_path / "c")
    with pytest.raises(MismatchError, match=rf"--teacher, its {field}: cache .* {field}: "):
        run(corpus, copy, cache)


def test_a_cache_of_an_earlier_release_is_appended_to_when_its_tokenizer_gives_equal_ids(
    tmp_path, teacher, corpus, monkeypatch
):
    cache = tmp_path / "c"
    first = former(monkeypatch, teacher, corpus, cache, tokenizer="0" * 64)
    again = run(corpus, teacher, cache)
    assert (first.committed, again.committed, again.known_documents) == (True, False, 24)
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"text": "a document of tonight"}) + "\n")
    added = run(more, teacher, cache)
    assert (added.committed, added.new_documents) == (True, 1)
    opened = Cache.open(cache)
    assert opened.fingerprint.tokenizer == "0" * 64, "the header stays as it was made"
    opened.verify()
    assert len(read(cache)) == opened.totals.examples


def test_a_cache_of_an_earlier_release_is_refused_another_tokenizer(
    tmp_path, teacher, corpus, copy, monkeypatch
):
    former(monkeypatch, teacher, corpus, tmp_path / "c", tokenizer="0" * 64)
    edit(copy / "tokenizer.json", lower)
    with pytest.raises(MismatchError, match=r"tokenizer: the ids of '.*': cache \[\["):
        run(corpus, copy, tmp_path / "c")


def test_another_chat_template_is_no_matter_of_ids_and_is_refused(tmp_path, whole, corpus, copy):
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(MismatchError, match="--teacher, its chat template"):
        run(corpus, copy, shutil.copytree(whole[0], tmp_path / "c"))


def test_what_tells_two_tokenizers_apart(teacher):
    ours = transformers.AutoTokenizer.from_pretrained(teacher)
    assert other_ids(ours, transformers.AutoTokenizer.from_pretrained(teacher)) == []
    more = transformers.AutoTokenizer.from_pretrained(teacher)
    more.add_tokens(["teacher"])
    assert [line.split(":")[0] for line in other_ids(ours, more)] == ["vocabulary", "added tokens"]
    stripped = transformers.AutoTokenizer.from_pretrained(teacher)
    stripped.add_special_tokens({"eos_token": transformers.AddedToken("</s>", lstrip=True)})
    assert other_ids(ours, stripped)[0].startswith("added tokens")


def test_a_config_that_another_release_saved_again_is_the_same_where_all_that_decides_is_equal(
    tmp_path, whole, corpus, copy
):
    edit(
        copy / "config.json",
        lambda v: v.update(transformers_version="9.9", a_new_default=None, use_cache=False),
    )
    edit(copy / "config.json", lambda v: v.pop("a_new_default"))
    cache = shutil.copytree(whole[0], tmp_path / "c")
    assert hashes(copy).config != Cache.open(cache).fingerprint.config
    assert run(corpus, copy, cache).known_documents == 24
    edit(copy / "config.json", lambda v: v.update(rms_norm_eps=0.5))
    with pytest.raises(MismatchError, match=r"config: rms_norm_eps: cache 1e-06, teacher 0\.5"):
        run(corpus, copy, cache)


def test_weights_of_an_earlier_release_count_where_every_file_is_equal(tmp_path, copy, corpus, monkeypatch):
    shutil.copy(copy / "model.safetensors", copy / "consolidated.safetensors")
    old = former_hash(str(copy))
    assert old != hash_weights(str(copy))
    former(monkeypatch, copy, corpus, tmp_path / "c", weights=old)
    assert run(corpus, copy, tmp_path / "c").known_documents == 24
    assert teachonce.main(["verify", str(tmp_path / "c"), "--teacher", str(copy), "--sample", "2"]) == 0
    (copy / "consolidated.safetensors").unlink()
    with pytest.raises(MismatchError, match="weights: other files or other bytes"):
        run(corpus, copy, tmp_path / "c")


def test_only_files_that_are_opened_are_the_teachers(teacher, copy):
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "training_args.bin", "x.gguf"):
        (copy / name).write_bytes(b"something else")
    assert [path.name for path in weight_files(str(copy))] == ["model.safetensors"]
    assert hashes(copy) == hashes(teacher)


def test_shards_are_those_of_the_index(tmp_path, teacher, copy):
    model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="20KB")
    before = [path.name for path in weight_files(str(copy))]
    assert len(before) > 1
    (copy / "model-00009-of-00009.safetensors").write_bytes(b"stray")
    assert [path.name for path in weight_files(str(copy))] == before
    (copy / before[0]).unlink()
    with pytest.raises(UsageError, match="the teacher's weights are not all there"):
        weight_files(str(copy))
    (copy / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UsageError, match="the index of the teacher's weights is broken"):
        weight_files(str(copy))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("verb", ["precompute", "plan", "verify"])
def test_an_adapter_beside_the_weights_is_refused_before_anything_is_read(
    tmp_path, whole, corpus, copy, name, verb, capsys
):
    (copy / name).write_text("{}")
    flags = [f"--corpus={corpus}", "--task=causal-lm", f"--cache={tmp_path / 'c'}"]
    flags = [str(whole[0])] if verb == "verify" else flags
    assert teachonce.main([verb, *flags, f"--teacher={copy}"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), "holds an adapter" in err, "merge_and_unload" in err) == ("", 1, True, True)
    assert not (tmp_path / "c").exists()


def test_code_in_another_repository_is_refused(copy):
    edit(copy / "config.json", lambda v: v.update(auto_map={"AutoConfig": "other/repo--configuration.C"}))
    trusting = TeacherConfig(path=str(copy), task="causal-lm", trust_remote_code=True)
    opened = transformers.AutoTokenizer.from_pretrained(copy, trust_remote_code=False)
    with pytest.raises(UsageError, match="the teacher's code lies in another repository"):
        make_fingerprint(trusting, str(copy), opened)


@pytest.mark.parametrize("written", ["Infinity", '{"__float__": "Infinity"}'])
def test_a_config_with_infinity_has_one_hash_however_it_is_written(copy, written):
    text = (copy / "config.json").read_text().rstrip().removesuffix("}")
    (copy / "config.json").write_text(
        f'{text}, "time_step_limit": [0.0, {written}], "nan": [NaN, -Infinity]}}'
    )
    found = json.loads(config_text(str(copy)))
    infinite = [{"__float__": text} for text in ("NaN", "-Infinity")]
    assert (found["time_step_limit"], found["nan"]) == ([0.0, {"__float__": "Infinity"}], infinite)


def test_a_mamba_whose_config_holds_infinity_makes_a_cache(tmp_path, teacher, corpus):
    config = transformers.Mamba2Config(
        vocab_size=300, hidden_size=16, num_heads=4, head_dim=8, state_size=8, num_hidden_layers=1, n_groups=1
    )
    assert float("inf") in config.time_step_limit
    torch.manual_seed(0)
    folder = shutil.copytree(teacher, tmp_path / "mamba")
    transformers.Mamba2ForCausalLM(config).save_pretrained(folder)
    asked = TeacherConfig(path=str(folder), task="causal-lm")
    assert make_fingerprint(asked, str(folder), resolve(asked).tokenizer).config == hashes(folder).config


def test_a_worker_whose_library_writes_other_tokenizer_files_leaves_a_whole_cache(
    tmp_path, teacher, corpus, monkeypatch
):
    honest = outcome.resolve

    def newer(config):
        found = honest(config)
        files = dict(found.tokenizer_files)
        files["tokenizer_config.json"] += b"\n"
        return replace(found, tokenizer_files=files)

    monkeypatch.setattr(outcome, "resolve", newer)
    assert run(corpus, teacher, tmp_path / "c").committed
    opened = Cache.open(tmp_path / "c")
    opened.verify()
    assert opened.tokenizer_file("tokenizer_config.json").endswith(b"\n")
    assert run(corpus, teacher, tmp_path / "c").known_documents == 24
