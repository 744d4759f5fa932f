"""No footer ends the process, whatever it says of sizes: Arrow 25 does where levels are counted that are not there."""

import pytest

from schemas.errors import TeachonceError
from schemas.shards.reader import open_footer
from tests.schemas.hostile import resealed, victim
from tests.synthetic import SPECS, begin


@pytest.mark.parametrize("name", ["words", "threshold"])
def test_each_byte_of_a_footer_may_count_other_levels(tmp_path, name):
    """A short list of numbers begins with how many it holds, and a 6: each byte that may be that says one more or less.
    All that opens says all that it has of every column."""
    good, storage = victim(SPECS[name]), begin(tmp_path / name, SPECS[name])
    refused = opened = 0
    for place in [p for p in range(good.ends[-1], len(good.data) - 8) if good.data[p] & 15 == 6]:
        data = bytearray(good.data)
        data[place] ^= 0x10
        shard, sealed = resealed(good, bytes(data))
        storage.put(shard, sealed)
        try:
            metadata = open_footer(storage, shard).metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            assert all(group.column(i).path_in_schema for group in groups for i in range(group.num_columns))
        except TeachonceError:
            refused += 1
        except (OSError, UnicodeDecodeError):  # of Arrow, as an exception: of which no reader of ours asks
            refused += 1
        else:
            opened += 1
        storage.delete([shard])
    assert refused > 30
    assert opened > 5
