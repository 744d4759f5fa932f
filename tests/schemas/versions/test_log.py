"""A damaged log is seen: no flipped letter and no missing line hides a shard."""

from collections import Counter
from pathlib import Path

import pytest
from deltalake import DeltaTable

from schemas import Cache
from schemas.errors import CorruptionError, FormatError
from schemas.shards.parquet_limits import check_file
from schemas.versions.commits import base_version, read_version
from tests.schemas.battered import make_battered, outcome
from tests.schemas.damage import flips
from tests.synthetic import add, causal_spec, header_of


def log_of(storage, version=0):
    return Path(storage.root) / "_delta_log" / f"{version:020d}.json"


def test_any_flipped_bit_of_the_log_is_seen(own_cache):
    """Either it is an error, or shards and record are what they were; a size is checked when the shard is opened."""
    storage, good = own_cache.storage, read_version(own_cache.storage)
    for _ in flips(log_of(storage), 1_000):
        try:
            found = read_version(storage)
        except CorruptionError:
            continue
        assert found.record == good.record
        assert [shard._replace(size_bytes=0) for shard in found.shards] == [
            shard._replace(size_bytes=0) for shard in good.shards
        ]


@pytest.mark.parametrize("part", ["unit", "seal", "numRecords", "size"])
def test_a_flipped_entry_is_named(own_cache, part):
    log, shard = log_of(own_cache.storage), own_cache.shards[0]
    old, new = {
        "unit": (shard.name[:8], "0" * 8),
        "seal": (shard.name[-20:], "0" * 12 + ".parquet"),
        "numRecords": (f'numRecords\\": {shard.examples}', 'numRecords\\": 1'),
        "size": (f'"size":{shard.size_bytes}', f'"size":{shard.size_bytes + 1}'),
    }[part]
    text = log.read_text()
    assert old in text
    log.write_text(text.replace(old, new))
    with pytest.raises(CorruptionError):
        Cache.open(own_cache.storage.root).row_groups  # noqa: B018


def test_a_removed_log_line_is_seen(own_cache):
    log = log_of(own_cache.storage)
    lines = log.read_text().splitlines(keepends=True)
    adds = [line for line in lines if line.startswith('{"add"')]
    assert len(adds) == 2
    log.write_text("".join(line for line in lines if line != adds[0]))
    with pytest.raises(CorruptionError, match="does not add the shards that its commit did"):
        Cache.open(own_cache.storage.root)
    log.write_text("".join(line for line in lines if "commitInfo" not in line))
    with pytest.raises(CorruptionError, match="not what teachonce committed"):
        Cache.open(own_cache.storage.root)


def test_an_entry_without_a_count_or_of_a_strange_name(own_cache):
    log, shard = log_of(own_cache.storage), own_cache.shards[0]
    text = log.read_text()
    stats = '"stats":"{\\"numRecords\\": 12}"'
    assert stats in text
    for old, new, message in (
        (stats, '"stats":null', "counts no rows"),
        (shard.name, "../../x.parquet", "no shard"),
    ):
        log.write_text(text.replace(old, new))
        with pytest.raises(CorruptionError, match=message):
            Cache.open(own_cache.storage.root)


def test_a_removed_log_file_is_seen(new_cache, batches):
    for number in range(3):
        add(new_cache, base_version(new_cache), [batches[number]], run=str(number))
    for number in range(2):
        log = log_of(new_cache, number)
        data = log.read_bytes()
        log.unlink()
        with pytest.raises(CorruptionError):
            Cache.open(new_cache.root)
        log.write_bytes(data)
    assert Cache.open(new_cache.root).verify().shards == 3


def test_another_spec_than_the_committed_one_is_seen(own_cache):
    path = Path(own_cache.storage.root) / "_teachonce" / "spec.json"
    path.write_bytes(header_of(causal_spec(max_length=99)).to_bytes())
    with pytest.raises(CorruptionError, match="committed with"):
        Cache.open(own_cache.storage.root)
    path.unlink()
    with pytest.raises(CorruptionError, match=r"spec\.json is lost"):
        Cache.open(own_cache.storage.root)


def test_a_newer_format_is_told_before_its_log_is_read(own_cache):
    path = Path(own_cache.storage.root) / "_teachonce" / "spec.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 9'))
    log_of(own_cache.storage).write_text("a log that only version 9 can read")
    with pytest.raises(FormatError, match="expected 1, got 9"):
        Cache.open(own_cache.storage.root)


def test_another_tools_commit_is_not_taken_for_ours(own_cache):
    table = DeltaTable(own_cache.storage.root)
    table.alter.set_table_properties({"delta.appendOnly": "true"})
    with pytest.raises(CorruptionError, match="not what teachonce committed"):
        Cache.open(own_cache.storage.root)
    assert Cache.open(own_cache.storage.root, 0).verify().shards == 2


def test_a_checkpoint_whose_statistics_are_of_another_length_ends_no_process(tmp_path):
    """Arrow aborts on such a one: a list of them is as long as its head's upper bits say. So every ninth byte of
    the footer is changed there, and nothing but an error of ours comes out."""
    file = make_battered(tmp_path / "cache") / "_delta_log/00000000000000000001.checkpoint.parquet"
    data = file.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    found = Counter()
    for place in range(footer, len(data), 9):
        for bits in (0x10, 0x01):
            changed = data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]
            found[type(outcome(check_file, changed, str(file)))] += 1
    assert set(found) == {type(None), CorruptionError}
    assert min(found.values()) > 100
