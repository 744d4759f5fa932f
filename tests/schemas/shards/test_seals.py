"""Seals: whatever happens to a shard's bytes is seen, and before Arrow parses them."""

import gc
import hashlib
import itertools
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import schemas.shards.reader
from schemas import Cache
from schemas.errors import CorruptionError, TeachonceError
from schemas.shards.reader import group_end, open_footer, read_group, read_identities
from schemas.shards.seal import Shard, parse_name, ranking_of, seal_shard
from schemas.versions.commits import commit, record_after
from tests.schemas.damage import flips
from tests.synthetic import begin, causal_spec, header_of, random_rows, seal

FLIPS = 2_000


@pytest.fixture
def shard(own_cache):
    return own_cache.shards[0]


def path_of(cache, shard):
    return Path(cache.storage.root) / shard.name


def open_or_read(cache, name, opened, group):
    """The footer, where `group` is None; else that row group, by a footer that is whole."""
    if group is None:
        return open_footer(cache.storage, name)
    return read_group(cache.storage, name, opened, group, cache.spec)


def test_every_flipped_bit_is_seen_before_arrow_parses(own_cache, shard, monkeypatch):
    path, opened, parsed = path_of(own_cache, shard), own_cache.open_shard(shard), []
    for name in ("read_metadata", "ParquetFile"):
        real = getattr(pq, name)
        monkeypatch.setattr(
            schemas.shards.reader.pq, name, lambda *a, real=real, **k: parsed.append(1) or real(*a, **k)
        )
    halves = (flips(path, FLIPS // 2), flips(path, FLIPS // 2, start=group_end(opened)))
    for place in itertools.chain(*halves):
        group = next((g for g, group in enumerate(opened.footer.row_groups) if place < group.end), None)
        parsed.clear()
        with pytest.raises(CorruptionError, match=shard.name):
            open_or_read(own_cache, shard.name, opened, group)
        assert parsed == []


def test_every_byte_is_covered(own_cache, shard):
    """Row groups lie end to end from byte 0, and the seal covers the rest."""
    opened = own_cache.open_shard(shard)
    groups = opened.footer.row_groups
    assert len(groups) == 2
    assert [0, *(group.end for group in groups)] == [*(group.start for group in groups), group_end(opened)]
    data = path_of(own_cache, shard).read_bytes()
    assert opened.data == data[group_end(opened) :]
    assert hashlib.blake2b(opened.data, digest_size=16).hexdigest() == parse_name(shard.name)[1]


def test_flips_among_ids_read_alone_are_seen(own_cache, shard):
    """These bytes are parsed before their values are checked: whatever Arrow says, wrong ids never come out."""
    path, opened = path_of(own_cache, shard), own_cache.open_shard(shard)
    right = own_cache.identities(shard)
    for _ in flips(path, 300, end=group_end(opened)):
        try:
            read = read_identities(own_cache.storage, shard.name, opened, own_cache.spec)
        except CorruptionError:
            continue
        assert all((read.array(name) == right.array(name)).all() for name in read.data)


@pytest.mark.parametrize("end", [0, 1, 7, 8, 100, -1, -8, -1000])
def test_truncation_is_seen(own_cache, shard, end):
    path = path_of(own_cache, shard)
    path.write_bytes(path.read_bytes()[:end])
    for size in (None, shard.size_bytes):
        with pytest.raises(CorruptionError, match=shard.name):
            open_footer(own_cache.storage, shard.name, size=size)
    with pytest.raises(CorruptionError, match="1 of 2 shards"):
        own_cache.verify()


def test_bytes_added_are_seen(own_cache, shard):
    path = path_of(own_cache, shard)
    path.write_bytes(path.read_bytes() + b"PAR1")
    with pytest.raises(CorruptionError, match=shard.name):
        open_footer(own_cache.storage, shard.name)


def test_removal_is_seen(own_cache, shard):
    path_of(own_cache, shard).unlink()
    with pytest.raises(CorruptionError, match=f"missing.*{shard.name}"):
        own_cache.footers  # noqa: B018
    with pytest.raises(CorruptionError, match=r"1 of 2 shards are broken.*missing"):
        own_cache.verify()


def test_a_shard_that_goes_after_its_footer_was_read(own_cache, shard):
    opened = own_cache.open_shard(shard)
    path_of(own_cache, shard).unlink()
    with pytest.raises(CorruptionError, match="missing"):
        read_group(own_cache.storage, shard.name, opened, 0, own_cache.spec)
    with pytest.raises(CorruptionError, match="ids cannot be read"):
        read_identities(own_cache.storage, shard.name, opened, own_cache.spec)


def test_shards_that_change_places_are_seen(own_cache):
    one, two = (path_of(own_cache, shard) for shard in own_cache.shards)
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    with pytest.raises(CorruptionError, match="2 of 2 shards"):
        own_cache.verify()


def test_a_shard_of_another_cache_is_seen(tmp_path, own_cache):
    """Even one whose seal holds: its footer tells its spec, its teacher and its unit."""
    other = seal(random_rows(causal_spec(max_length=31), 12).rows)
    storage, spec = begin(tmp_path / "other", own_cache.spec), own_cache.spec
    storage.put(other.name, other.data)
    found = [Shard(other.name, len(other.data), 12)]
    record = record_after(
        None, found, other.footer.totals, run="r", header_hash=header_of(spec).to_json()["hash"]
    )
    commit(storage, spec, None, found, record)
    with pytest.raises(CorruptionError, match="spec is not the cache's"):
        Cache.open(tmp_path / "other").row_groups  # noqa: B018


def test_a_renamed_unit_is_seen(own_cache, shard):
    _, seal_of = parse_name(shard.name)
    renamed = Shard(f"{'0' * 32}-{seal_of}.parquet", *shard[1:])
    path_of(own_cache, shard).rename(path_of(own_cache, renamed))
    with pytest.raises(CorruptionError, match="unit is not the cache's"):
        own_cache.open_shard(renamed)


def test_verify_sees_flips(own_cache, shard):
    for _ in flips(path_of(own_cache, shard), 40, seed=1):
        with pytest.raises(CorruptionError, match=f"1 of 2 shards.*{shard.name}"):
            own_cache.verify()
    assert own_cache.verify().shards == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates/tool.jinja"])
def test_tokenizer_files_are_checked(own_cache, tmp_path, name):
    path = Path(own_cache.storage.root) / "_teachonce" / "tokenizer" / name
    data = path.read_bytes()
    assert (own_cache.save_tokenizer(tmp_path / "out") / name).read_bytes() == data
    path.write_bytes(data[:-1] + b"?")
    for act in (lambda: own_cache.save_tokenizer(tmp_path / "out"), own_cache.verify):
        with pytest.raises(CorruptionError, match="tokenizer"):
            act()
    path.unlink()
    with pytest.raises(CorruptionError, match="missing"):
        own_cache.verify()


def test_sealing_is_a_function_of_its_input():
    rows = random_rows(causal_spec(), 10).rows
    assert seal(rows).name == seal(rows).name
    assert bytes(seal(rows).data) == bytes(seal(rows).data)
    assert seal(rows).name != seal(rows, groups=1).name


@pytest.mark.parametrize("groups", [[], [0]])
def test_nothing_cannot_be_sealed(groups):
    rows = random_rows(causal_spec(), 3).rows
    parts = [rows.take(rows.position_offsets[:0]) for _ in groups]
    named = {"spec": rows.spec, "fingerprint_hash": "", "unit": "0" * 32, "totals": seal(rows).footer.totals}
    with pytest.raises(ValueError, match="empty"):
        seal_shard(parts, **named, ranking=ranking_of([rows]))


@pytest.mark.parametrize(
    "name",
    ["x.parquet", "../" + "0" * 32 + "-" + "0" * 32 + ".parquet", "0" * 32 + "-" + "G" * 32 + ".parquet", ""],
)
def test_only_names_that_a_writer_gives_are_opened(name):
    with pytest.raises(CorruptionError, match="no shard"):
        parse_name(name)


def test_long_footers_take_a_second_read(own_cache, monkeypatch):
    monkeypatch.setattr(schemas.shards.reader, "_GUESS_BYTES", 64)
    assert own_cache.verify().shards == 2


def test_errors_of_a_broken_cache_are_one_line(own_cache, shard):
    path_of(own_cache, shard).write_bytes(b"nonsense")
    with pytest.raises(TeachonceError) as caught:
        own_cache.verify()
    assert "\n" not in str(caught.value)


def test_what_was_read_is_freed_without_the_collector(own_cache, shard):
    """Arrow's metadata and its schema would hold each other, of which Python's collector sees two small objects."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        opened = own_cache.open_shard(shard)
        read_group(own_cache.storage, shard.name, opened, 0, own_cache.spec)
        read_identities(own_cache.storage, shard.name, opened, own_cache.spec)
        del opened
        gc.collect()
        assert not [each for each in gc.garbage if isinstance(each, pq.FileMetaData)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
