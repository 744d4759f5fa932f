"""The page holds what it says, asks nobody for anything, and shows foreign texts without obeying them."""

import html.parser
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import teachonce
from schemas import Cache
from schemas.errors import UsageError
from schemas.printable import printable
from schemas.reports.differences import differing
from schemas.reports.evaluations import EVALUATION_NAME, Evaluation
from schemas.reports.markup import data, shown
from schemas.reports.plots.calibration import expected_calibration_error
from schemas.reports.plots.plots import CACHE_PLOTS, RUN_PLOTS
from schemas.reports.runs import read_runs
from schemas.versions.commits import base_version
from tests.schemas.reports.browser import opened, widths
from tests.schemas.reports.folders import evaluation, write_run
from tests.synthetic import add, begin, causal_spec, random_rows

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "' \" & <!-- \u202e turned \x1b]0;x\x07 \u05e9\u05dc\u05d5\u05dd \u2028 {{7*7}}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache of two versions with rejects, and three students; the last one has no evaluation."""
    place = tmp_path_factory.mktemp("report")
    rows = random_rows(causal_spec(), 40).rows
    storage = begin(place / "cache", rows.spec)
    add(storage, None, [rows.take(np.arange(20))], run="one", rejects={"empty": 2})
    second = {"rejects": {"too_long": 1}, "provenance": {"device": "cpu"}}
    add(storage, base_version(storage), [rows.take(np.arange(20, 40))], run="two", **second)
    for name, settings in (("a", {}), ("b", {"learning_rate": 0.1}), ("c", {})):
        write_run(place / name, settings=settings)
    for name in "ab":
        evaluation().save(place / name)
    return place


def report(folder, *names, out="report.html", flags=()):
    places = [str(folder / name) for name in names]
    assert teachonce.main(["report", *places, "--out", str(folder / out), *flags]) == 0
    return (folder / out).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(folder):
    return report(folder, "cache", "a", "b", "c")


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, and all text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._inside = [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag

    def handle_data(self, text):
        self.text += text if self._inside not in ("script", "style") else ""


def charts_of(page):
    return json.loads(re.search(r'id="charts">(.*?)</script>', page)[1])


def test_every_plot_is_there(page):
    places = {name.rpartition("-")[0] for name in charts_of(page)}
    wanted = {f"cache-0-{plot.name}" for plot in CACHE_PLOTS} | {f"students-{p.name}" for p in RUN_PLOTS}
    assert places == wanted
    ids = [told["id"] for tag, told in Parsed(page).tags if told.get("class") == "chart"]
    assert ids == [*charts_of(page)]


def test_the_page_asks_nobody_for_anything(page):
    tags = Parsed(page).tags
    assert not [told for _, told in tags if {"src", "href", "data", "action"} & told.keys()]
    assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object", "base", "form")]
    policy = next(told["content"] for tag, told in tags if told.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "'unsafe-inline'" not in policy.partition("style-src")[0]
    assert page.count("vegaEmbed=") == 1, "one bundle for all charts"


def test_what_is_missing_is_told_with_its_command(page, folder):
    text = Parsed(page).text
    assert "an evaluation of c, as it was not evaluated" in text
    assert "evaluate --cache CACHE --student STUDENT --save" in text
    alone = Parsed(report(folder, "c", out="alone.html")).text
    assert alone.count("evaluate --cache CACHE --student STUDENT --save") == 4
    assert "nothing to compare it with" in alone


def test_an_evaluation_of_other_weights_is_not_shown(tmp_path):
    write_run(tmp_path / "s", seal="6" * 64)
    evaluation().save(tmp_path / "s")
    (run,) = read_runs([str(tmp_path / "s")])
    assert run.evaluation is None
    assert "of other weights" in run.no_evaluation


def test_numbers_are_those_of_the_folder(folder, page):
    a, b, _ = read_runs([str(folder / name) for name in "abc"])
    assert (a.parameters, a.weight_bytes) == (15, (folder / "a" / "model.safetensors").stat().st_size)
    assert a.tokens_per_second == 1000
    assert differing([a, b]) == [("learning_rate", ["0.003", "0.1"])]
    assert expected_calibration_error(a.evaluation.closer[0].student) == pytest.approx(
        (10 * 0.1 + 20 * 0.2) / 30
    )
    ce = charts_of(page)["students-losses-2"]
    (points,) = ce["datasets"].values() if "datasets" in ce else (ce["data"]["values"],)
    mine = [(p["side"], p["step"], p["value"]) for p in points if p["run"] == "a"]
    assert mine == [("training", s, 9 / s) for s in (10, 20, 30, 40)] + [
        ("held out", s, 10 / s) for s in (10, 20, 30, 40)
    ]


def test_foreign_texts_are_shown_and_not_obeyed(tmp_path):
    place = write_run(tmp_path / "<img src=x onerror=alert(1)>", student=HOSTILE, losses={HOSTILE: 1.0})
    other = write_run(tmp_path / "other", student="plain")
    evaluation(text=HOSTILE, cache=HOSTILE).save(place)
    page = report(tmp_path, place.name, other.name)
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.tags if tag in ("img", "iframe")] == []
    assert len(re.findall(r"<script", page)) == 3
    assert not [told for _, told in parsed.tags if any(name.startswith("on") for name in told)]
    assert HOSTILE.partition(" \u202e")[0] in parsed.text
    assert not set("\u202e\x1b\x07\u2028") & set(page)
    assert "\\u202e turned \\x1b]0;x\\x07 \u05e9\u05dc\u05d5\u05dd" in parsed.text
    found = opened(tmp_path / "report.html")
    assert "<title>teachonce report</title>" in found.dom
    assert found.complaints == []


@pytest.mark.parametrize("text", ["</script>", "<!--", "a & b", "\u2028", "\ud800"])
def test_data_holds_no_tag(text):
    (inner,) = re.findall(r">(.*)</script>", data("x", {"t": text}))
    assert not set("<>&\u2028") & set(inner)
    assert json.loads(inner) == {"t": printable(text)}


def test_attributes_are_closed():
    assert shown("\"'><b>") == "&quot;&#x27;&gt;&lt;b&gt;"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_every_chart(folder, page, dark):
    found = opened(folder / "report.html", dark=dark)
    assert found.complaints == []
    assert found.charts.keys() == charts_of(page).keys()
    empty = [name for name, inner in found.charts.items() if not re.search(r"<svg[^>]*>.*<path", inner, re.S)]
    assert empty == []
    assert f'data-drawn="{len(found.charts)}"' in found.dom


def test_a_page_fits_a_phone(folder, page):
    content, window = widths(folder / "report.html", 360)
    assert content <= window <= 360
    (folder / "wide.html").write_text('<!DOCTYPE html><p style="width:500px">wide')
    content, window = widths(folder / "wide.html", 360)
    assert content > window


def test_light_and_dark_are_as_the_system_is(folder, page):
    pictures = {}
    for name, dark in (("light", False), ("dark", True)):
        opened(folder / "report.html", dark=dark, shot=folder / f"{name}.png")
        pictures[name] = Image.open(folder / f"{name}.png").convert("L")
    assert pictures["light"].getpixel((3, 3)) > 230
    assert pictures["dark"].getpixel((3, 3)) < 40


WRONG = {
    "an evaluation of another form": (EVALUATION_NAME, '{"format": 1}'),
    "a number for a text": (EVALUATION_NAME, json.dumps({"format": 1, "seal": 5})),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_strange_evaluation_is_told_on_the_page(tmp_path, name):
    place = write_run(tmp_path / "s")
    file, text = WRONG[name]
    (place / file).write_text(text)
    assert "a saved evaluation cannot be read" in Parsed(report(tmp_path, "s")).text


@pytest.mark.parametrize("file", ["teachonce.json", "trainer_state.json", "model.safetensors"])
@pytest.mark.parametrize("text", ["", "[]", "[" * 10**5, "null", '{"log_history": 3}'])
def test_a_damaged_folder_is_one_line(tmp_path, capsys, file, text):
    place = write_run(tmp_path / "s")
    (place / file).write_text(text)
    status = teachonce.main(["report", str(place), "--out", str(tmp_path / "r.html")])
    out, err = capsys.readouterr()
    if file == "teachonce.json" and text.startswith("{"):
        assert status == 0  # a record without fields: nothing is known of it
        return
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert file in err
    assert not (tmp_path / "r.html").exists()


def test_a_run_without_a_log(tmp_path):
    (write_run(tmp_path / "s") / "trainer_state.json").unlink()
    text = Parsed(report(tmp_path, "s")).text
    assert "the log of s: its folder has no trainer_state.json" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{a}", "{a}", "--out", "{out}"], "named twice"),
        (["{a}", "--out", "{a}"], "--out must be a file"),
        (["{a}", "--out", "{out}", "--version", "0"], "--version is that of one cache"),
        (["{out}x", "--out", "{out}"], "no cache"),
    ],
)
def test_wrong_calls_are_one_line(tmp_path, capsys, arguments, told):
    here = {"a": write_run(tmp_path / "a"), "out": tmp_path / "r.html"}
    assert teachonce.main(["report", *(word.format(**here) for word in arguments)]) != 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert told in err.lower()


def test_what_was_drawn_as_json(folder, capsys):
    out = folder / "told.html"
    assert teachonce.main(["report", str(folder / "cache"), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "out": str(out),
        "caches": [str(folder / "cache")],
        "students": [],
        "bytes": len(out.read_bytes()),
    }


def test_a_missing_package_names_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['altair'] = None\n"
        "import teachonce; sys.exit(teachonce.main(['report', 'x', '--out', 'y']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(teachonce.__file__).parent,
    )
    assert done.returncode == 2
    assert "report needs the package altair" in done.stderr
    assert "pip install 'teachonce[report]'" in done.stderr


def test_what_is_no_number_is_nothing_in_an_evaluation(tmp_path):
    told = evaluation(evaluated={"metrics": {"roc_auc": float("nan")}})
    told.save(tmp_path)
    assert Evaluation.load(tmp_path).evaluated == {"metrics": {"roc_auc": None}}
    replace(told, format=2).save(tmp_path)
    with pytest.raises(UsageError, match="another release"):
        Evaluation.load(tmp_path)


def test_a_cache_is_never_read_whole_by_default(folder, monkeypatch):
    monkeypatch.setattr(Cache, "footers", property(lambda _: pytest.fail("every footer was opened")))
    monkeypatch.setattr("schemas.cli.report._SAMPLE_TOKENS", 30)
    page = report(folder, "cache", out="part.html")
    assert "A sample: 1 row groups" in Parsed(page).text
