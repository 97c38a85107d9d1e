"""The page: complete, in one file, nothing from elsewhere, and everything that came from outside is escaped."""

import html.parser
import re
import subprocess
import sys

import pytest

from kd_keras.run import commands
from kd_keras.run.page import charts, folders, report
from tests.conftest import ROOT
from tests.run.page.made import make

EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b'c")


class Page(html.parser.HTMLParser):
    """Reads a page: its tags, what is nested in what, and its text."""

    VOID = {"meta", "img", "path", "line", "circle", "polyline", "link", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.unclosed, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unclosed.append((tag, self.getpos()))

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A run whose names all try to break out of the page."""
    folder = tmp_path_factory.mktemp("evil") / "<b>run&"
    make(folder, f"--teacher=saved(path='{EVIL[0]}')", classes=EVIL, warnings=(EVIL[0],))
    return folder


def test_the_page_is_well_formed_and_loads_nothing(evil):
    text = report.page([folders.Run(evil)])
    page = Page(text)
    assert page.unclosed == [] and page.open == []
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"} == set()
    assert [name for _, attrs in page.tags for name in attrs if name.startswith("on")] == []
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("src"))
    assert all(target.startswith("#") for target in page.attributes("href"))
    assert not re.search(r"url\(|@import|https?://", text)


def test_links_and_labels_have_their_targets(evil):
    page = Page(report.page([folders.Run(evil)]))
    names = page.attributes("id")
    assert len(set(names)) == len(names)
    assert {target[1:] for target in page.attributes("href")} <= set(names)
    assert set(page.attributes("aria-labelledby")) <= set(names)
    for tag, attrs in page.tags:
        assert tag != "img" or attrs["alt"]
        assert tag != "svg" or (attrs["role"] == "img" and attrs["aria-label"])
        assert tag != "th" or attrs["scope"] in ("row", "col")


def test_names_from_outside_are_shown_as_they_are(evil):
    page = Page(report.page([folders.Run(evil)]))
    text = " ".join(page.text)
    assert "Distillation report: <b>run&" in text
    assert all(name in text for name in EVIL[::2])
    assert "saved(path='<script>alert(1)</script>')" in text


def test_the_page_has_every_part_and_the_tables_numbers(evil):
    run = folders.Run(evil)
    text = " ".join(" ".join(Page(report.page([run])).text).split())
    for part in ("Results", "Warnings", "Accuracy, size and latency", "Curves", "Confusion matrices", "Calibration"):
        assert part in text
    for part in ("Gain by class", "Images on which the models differ", "Files", "What was run"):
        assert part in text
    for row in run.rows.values():
        assert f"{100 * row['test_accuracy']:.2f}" in text
    assert "student minus baseline" in text and "Missing" not in text


def test_files_of_models_without_a_row_are_listed(tmp_path):
    """A student that is pretrained by features, and a teacher without classes, are measured by nobody."""
    make(tmp_path / "run", images=20, models={"baseline": 0.6, "student": 0.7})
    for name in ("teacher.keras", "pretrained.keras"):
        (tmp_path / "run" / name).write_bytes(bytes(1000))
    text = " ".join(Page(report.page([folders.Run(tmp_path / "run")])).text)
    assert "pretrained.keras – 1" in " ".join(text.split())


def test_an_older_run_says_what_is_missing(tmp_path):
    make(tmp_path / "run", images=20)
    for name in ("summary.json", "predictions.npz", "environment.json"):
        (tmp_path / "run" / name).unlink()
    text = " ".join(Page(report.page([folders.Run(tmp_path / "run")])).text)
    assert text.count("Missing, as it is not stored by older versions: give the run's command again") == 3
    assert "Its interval is missing" in text and "The warnings of an older run are not stored" in text


def test_many_classes_and_photographs_stay_below_two_megabytes(tmp_path):
    names = tuple(f"a class with a rather long name {i}" for i in range(200))
    make(tmp_path / "run", classes=names, images=1000, shape=(224, 200, 3))
    text = report.page([folders.Run(tmp_path / "run")])
    assert len(text.encode()) < 2_000_000
    page = Page(text)
    images = [attrs.get("class") for tag, attrs in page.tags if tag == "img"]
    assert page.unclosed == [] and images.count("heat") == 4 and len(images) > 20
    assert "170 in between are not listed." in " ".join(page.text)


def test_the_command_writes_the_page_of_a_sweep_and_says_where(tmp_path, capsys, monkeypatch):
    for seed in range(2):
        make(tmp_path / "sweep" / f"seed={seed}", images=50, seed=seed)
    monkeypatch.chdir(tmp_path)
    assert commands.main(["report", "sweep"]) == 0
    assert capsys.readouterr().out == "sweep/report.html: 2 runs\n"
    assert "95 % interval over 2 seeds" in (tmp_path / "sweep" / "report.html").read_text("utf-8")
    assert commands.main(["report", "sweep/seed=0", "sweep/seed=1"]) == 0
    assert (tmp_path / "report.html").read_text("utf-8") == (tmp_path / "sweep" / "report.html").read_text("utf-8")
    assert commands.main(["report", "sweep/seed=0", "--output=one.html"]) == 0
    assert "95 % interval over the 50 test images" in (tmp_path / "one.html").read_text("utf-8")
    capsys.readouterr()
    for arguments, message in {
        ("report",): "the following arguments are required: RUN",
        ("report", "nothing"): "nothing is no folder",
        ("report", "sweep", "--output=sweep"): "sweep can't be written",
        ("compare", "sweep/seed=0"): "the following arguments are required: B",
        ("compare", "sweep/seed=0", "sweep"): "is named twice",
    }.items():
        assert commands.main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_of_many_settings_the_best_on_validation_data_are_drawn(tmp_path):
    for i in range(10):
        models = {"teacher": 0.9, "baseline": 0.5, "student": 0.1 * (10 - i if i else 1)}
        make(tmp_path / str(i), f"--epochs={i + 1}", models=models)
    text = report.page(folders.find([tmp_path])[0])
    assert "This is line B, the best of 10 settings on validation data: epochs=2." in text
    assert "The 2 settings with the lowest validation score are not drawn." in text
    drawn = [name for name in "ABCDEFGHIJ" if f"{name} · student distilled" in text]
    runs = {"ABCDEFGHIJ"[int(run.name)]: run.row("student")["val_accuracy"] for run in folders.find([tmp_path])[0]}
    assert drawn == sorted(sorted(runs, key=runs.get)[2:])


def test_a_report_needs_no_tensorflow(tmp_path):
    make(tmp_path / "run", images=50)
    code = (
        "import sys; from kd_keras.run.commands import main; code = main(sys.argv[1:]);"
        "print(code, {'tensorflow', 'keras', 'matplotlib', 'sklearn'} & set(sys.modules))"
    )
    line = [sys.executable, "-c", code, "report", str(tmp_path / "run")]
    ended = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stdout.splitlines()[-1] == "0 set()"


def test_compare_prints_what_differs(tmp_path, capsys, monkeypatch):
    a = make(tmp_path / "a", "--epochs=3", images=100)
    b = make(tmp_path / "b", "--epochs=4", images=100, models={"teacher": 0.9, "baseline": 0.6, "student": 0.95})
    monkeypatch.setenv("COLUMNS", "200")
    assert commands.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert [line.split() for line in text.splitlines() if line.startswith("epochs")] == [["epochs", "3", "4"]]
    assert "learning_rate" not in text and "teacher " not in text and "data, code and machine: the same" in text
    one, other = ((made["student"].argmax(-1) == made["labels"]).mean() * 100 for made in (a, b))
    (line,) = [line.split() for line in text.splitlines() if "test accuracy %" in line]
    assert line[-3:] == [f"{one:.2f}", f"{other:.2f}", f"{other - one:+.2f}"]
    assert f"The student of b is {other - one:+.2f} points of test accuracy from that of a (95 % interval" in text


def test_the_frontier_is_of_the_points_that_no_other_one_beats():
    points = [(1, 5), (2, 4), (2, 6), (3, 6), (3, 7), (1, 5)]
    assert charts.pareto(points) == [0, 5, 2, 4]


@pytest.mark.parametrize("values", [[0.0], [1.0], [1e-3, 1e-3], [98.1, 98.2], [-3.0, 1e6]])
def test_axes_hold_their_values_and_have_ticks(values):
    axis = charts.linear("x", values)
    assert all(axis.start <= axis.at(value) <= axis.end for value in values) and axis.ticks
    positive = [abs(value) or 7.3 for value in values]
    axis = charts.logarithmic("x", positive, str)
    assert all(axis.start <= axis.at(value) <= axis.end for value in positive) and 1 <= len(axis.ticks) <= 9


def test_a_curve_is_interrupted_where_it_is_not_finite():
    axis = charts.fixed("x", [0, 1, 2, 3, 4, 5], False, str)
    chart = charts.Chart("c", "t", axis, charts.fixed("y", [0, 1], True, str))
    chart.line(range(6), [0.0, 1.0, None, 0.5, float("nan"), 1.0], 0)
    assert len(chart.lines) == 1 and len(chart.lines[0][0].split()) == 2 and len(chart.dots) == 2
