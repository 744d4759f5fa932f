"""The example of a detector runs as it is written, with a hundredth of its steps."""

import json
import sys

from examples import detected_digits


def test_every_student_is_trained_and_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["detected_digits", str(tmp_path / "d"), "--scale", "0.005"])
    monkeypatch.setattr(detected_digits, "TAUGHT", 50)
    monkeypatch.setattr(detected_digits, "CANVASES", 60)
    monkeypatch.setattr(detected_digits, "SEEDS", (0,))
    detected_digits.main()
    found = json.loads((tmp_path / "d" / "results.json").read_text())
    assert [*found] == ["teacher", *detected_digits.RUNS]
    assert all(one["labelled"] == one["images"] > 10 for runs in found.values() for one in runs)
    said = capsys.readouterr().out
    assert all(f"\n{run} " in said for run in detected_digits.RUNS)
