"""Two releases of transformers, both installed: a cache that was made under one is appended to under the other.

The other release runs in a process of its own, with its folder first on the path; the lock's runs here.
"""

import json
import os
import subprocess
import sys

import pytest
import transformers

import teachonce
from schemas import Cache
from tests.engines.fetch import TRANSFORMERS
from tests.engines.servers import engine
from tests.pipelines.helpers import documents, read, write_jsonl

UNDER_THE_OTHER = """
import json, sys
import transformers
import teachonce
report, ours, theirs, few, more, teacher, saved = sys.argv[1:]
flags = ["--task=causal-lm", "--max_length=24", "--no_progress"]
model = transformers.AutoModelForCausalLM.from_pretrained(teacher)
model.save_pretrained(saved)
transformers.AutoTokenizer.from_pretrained(teacher).save_pretrained(saved)
done = {"version": transformers.__version__}
for name, folder, cache, corpus in (
    ("made", teacher, theirs, few), ("appended", teacher, ours, more), ("saved again", saved, ours, more)
):
    call = [f"--teacher={folder}", f"--cache={cache}", f"--corpus={corpus}", f"--report={report}"]
    status = teachonce.main(["precompute", *flags, *call])
    done[name] = json.load(open(report)) | {"status": status}
done["verified"] = teachonce.main(["verify", ours, f"--teacher={teacher}", "--sample=4"])
json.dump(done, open(report, "w"))
"""


@pytest.fixture(scope="module")
def other():
    """The folder of the other release."""
    return engine(TRANSFORMERS)


def precompute(corpus, teacher, cache, report):
    flags = ["--task=causal-lm", "--max_length=24", "--no_progress", f"--report={report}"]
    status = teachonce.main(
        ["precompute", *flags, f"--teacher={teacher}", f"--cache={cache}", f"--corpus={corpus}"]
    )
    return {**json.loads(report.read_text()), "status": status}


def numbers(report):
    return [report[name] for name in ("status", "known_documents", "new_documents", "committed")]


def test_each_goes_on_with_the_others_cache(tmp_path, teacher, other):
    few, more = (write_jsonl(tmp_path / f"{n}.jsonl", documents(n)) for n in (12, 15))
    report, ours, theirs, saved = (tmp_path / name for name in ("report.json", "ours", "theirs", "saved"))
    assert numbers(precompute(few, teacher, ours, report)) == [0, 0, 12, True]
    done = subprocess.run(
        [sys.executable, "-c", UNDER_THE_OTHER, *map(str, (report, ours, theirs, few, more, teacher, saved))],
        env=os.environ | {"PYTHONPATH": str(other), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text())
    assert told["version"] not in ("", transformers.__version__)
    assert numbers(told["made"]) == [0, 0, 12, True]
    assert numbers(told["appended"]) == [0, 12, 3, True]
    assert numbers(told["saved again"]) == [0, 15, 0, False]
    assert told["verified"] == 0
    assert numbers(precompute(more, teacher, theirs, report)) == [0, 12, 3, True]
    assert numbers(precompute(more, saved, theirs, report)) == [0, 15, 0, False]
    for cache in (ours, theirs):
        assert teachonce.main(["verify", str(cache), f"--teacher={teacher}", "--sample=4"]) == 0
        made_by = [Cache.open(cache, version).record.provenance["transformers"] for version in (0, 1)]
        assert sorted(made_by) == sorted([told["version"], transformers.__version__])
    assert read(ours).keys() == read(theirs).keys()
    assert Cache.open(ours).fingerprint == Cache.open(theirs).fingerprint
