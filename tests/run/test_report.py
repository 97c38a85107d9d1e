import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kd_keras.run.report import figures, tables
from tests.run.columns import COLUMNS

FULL = {
    "train_accuracy": 1.0,
    "val_accuracy": 0.98124,
    "test_accuracy": 0.97451,
    "precision": 0.9701,
    "recall": 0.9711,
    "f1": 0.9705,
    "ece": 0.01239,
    "teacher_agreement": 0.9876,
    "float_agreement": 0.9999,
    "parameters": 23_534_592,
    "macs": 4_089_184_256,
    "bytes": 94_213_944,
    "latency_ms_median": 31.234,
    "latency_ms_iqr": 1.2,
}
NUMBERS = [
    *("100.00", "98.12", "97.45", "97.01", "97.11", "97.05", "1.24", "98.76", "99.99"),
    *("23.5 M", "4.09 G", "94.2 MB", "31.23 ± 1.20"),
]


def rows():
    return [
        tables.row("teacher", "resnet(depth=50, width=2.0, dropout=0.25)", **FULL),
        tables.row("TFLite [int8]", "cnn", test_accuracy=0.5, bytes=482, latency_ms_median=0.1234),
    ]


def printed(table, width, **settings):
    out = io.StringIO()
    tables.print_table(table, Console(file=out, width=width, color_system=None), **settings)
    return out.getvalue()


def test_columns_are_those_every_study_reports():
    assert tables.COLUMNS == COLUMNS


def test_row_fills_what_is_absent_and_refuses_what_is_unknown():
    row = tables.row("teacher", "cnn", f1=0.5)
    assert tuple(row) == tables.COLUMNS
    assert row["f1"] == 0.5 and row["ece"] is None
    with pytest.raises(ValueError, match="no column accuracy; known: stage, role"):
        tables.row("teacher", "cnn", accuracy=0.5)


def test_write_table_gives_null_for_what_is_no_number(tmp_path):
    table = [tables.row("a", "b", f1=np.float32(0.5), parameters=np.int64(7), ece=float("nan"), macs=float("inf"))]
    tables.write_table(table, tmp_path / "out", runtime_note="LiteRT, 1 thread")
    read = json.loads((tmp_path / "out" / "results.json").read_text())
    assert read == [tables.row("a", "b", f1=0.5, parameters=7)]
    assert isinstance(read[0]["parameters"], int)
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert tuple(line) == tables.COLUMNS
    assert (line["f1"], line["parameters"], line["ece"], line["macs"]) == ("0.5", "7", "", "")
    assert "LiteRT, 1 thread" in (tmp_path / "out" / "results.txt").read_text()
    for file in (tmp_path / "out").iterdir():
        assert not re.search(r"\b(nan|inf)", file.read_text(), re.IGNORECASE)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["results.csv", "results.json", "results.txt"]


def test_write_json_takes_numpy(tmp_path):
    path = tmp_path / "x.json"
    tables.write_json({"a": np.arange(3), 2: (np.float64("nan"), np.bool_(True)), "é": None}, path)
    assert json.loads(path.read_text()) == {"a": [0, 1, 2], "2": [None, True], "é": None}


@pytest.mark.parametrize("width", [80, 120, 200])
def test_print_table_breaks_a_spec_at_its_spaces(width):
    spec = "cnn(filters=(32, 64), convs=2, dense=(128,), dropout=0.25)"
    words = printed([{**row, "architecture": spec} for row in rows()], width).split()
    lines = len(rows()) * words.count("architecture")
    assert {word: words.count(word) for word in spec.split()} == dict.fromkeys(spec.split(), lines)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 200])
def test_print_table_never_cuts_a_number(width):
    text = printed(rows(), width)
    assert max(map(len, text.splitlines())) <= width
    for number in [*NUMBERS, "50.00", "482 B", "0.123"]:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", text), number
    assert "…" not in text
    assert ("architecture" in text) and ("[int8]" in re.sub(r"\s", "", text))


def test_print_table_is_one_table_where_there_is_room_and_parts_by_meaning_where_not():
    assert printed(rows(), 180).count("architecture") == 1
    assert printed(rows(), 110).count("architecture") == 2
    qualities, costs = printed(rows(), 110).split("\n\n")
    assert "float" in qualities and "params" not in qualities
    assert "params" in costs and "median" in costs


def test_print_table_leaves_out_columns_that_hold_nothing():
    text = printed([tables.row("a", "b", test_accuracy=0.25, ece=float("nan"))], 80, title="Title", caption="Caption")
    assert "ECE" not in text and "params" not in text and "25.00" in text
    assert text.splitlines()[0] == "Title" and text.splitlines()[-1] == "Caption"


def test_print_table_of_a_pipe_is_120_wide(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    tables.print_table(rows())
    assert max(map(len, capsys.readouterr().out.splitlines())) in range(90, 121)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (482, "482"), (999, "999"), (1000, "1.00 k"), (9_994, "9.99 k"), (9_996, "10.0 k")),
        *((99_960, "100 k"), (123_456, "123 k"), (999_600, "1.00 M"), (23_534_592, "23.5 M"), (4.089e9, "4.09 G")),
    ],
)
def test_counts_have_three_digits(value, text):
    assert tables.count_text(value) == text


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were when saved."""
    saved = []
    save = figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: (saved.append(figure), save(figure, path)))
    return saved


def assert_nothing_is_clipped(path):
    """A picture whose outermost pixels are all background has cut nothing off."""
    pixels = np.asarray(Image.open(path).convert("L"))
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert edge.min() == 255


def test_curves_draw_the_hard_label_term_where_there_is_one(tmp_path, drawn):
    histories = {
        "teacher": {"loss": [3.0, 2.0], "val_loss": [3.5, 2.5], "accuracy": [0.1, 0.2], "val_accuracy": [0.1, 0.3]},
        "distilled": {"loss": [90.0, 80.0], "ce": [1.5, 1.0], "val_loss": [None, 1.2], "val_accuracy": []},
    }
    figures.curves(histories, tmp_path / "curves.png")
    loss, accuracy = drawn[0].axes
    lines = {(line.get_color(), line.get_linestyle()): line for line in loss.lines}
    assert len(loss.lines) == len(lines) == 4 and len(accuracy.lines) == 2
    first, second = [line.get_color() for line in loss.lines if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(lines[first, "--"].get_ydata(), [3, 2])
    np.testing.assert_array_equal(lines[second, "--"].get_ydata(), [1.5, 1.0])
    np.testing.assert_array_equal(lines[first, "-"].get_ydata(), [3.5, 2.5])
    np.testing.assert_array_equal(lines[first, "-"].get_xdata(), [1, 2])
    np.testing.assert_array_equal(lines[second, "-"].get_ydata(), [np.nan, 1.2])
    assert "hard-label" in loss.get_title() and loss.get_ylabel() == "cross-entropy on hard labels"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        *("teacher", "distilled", "train", "validation")
    ]
    assert_nothing_is_clipped(tmp_path / "curves.png")


@pytest.mark.parametrize("count", [0, 1, 10, 14])
def test_curves_give_every_model_a_colour_and_a_place_in_the_legend(tmp_path, drawn, count):
    figures.curves({f"model number {i}": {"val_loss": [1.0]} for i in range(count)}, tmp_path / "curves.png")
    assert len({line.get_color() for line in drawn[0].axes[0].lines}) == count
    assert len(drawn[0].legends[0].get_texts()) == count + 2
    assert_nothing_is_clipped(tmp_path / "curves.png")


@pytest.mark.parametrize(("count", "numbers", "named"), [(2, 4, 2), (20, 400, 20), (40, 0, 40), (100, 0, None)])
def test_confusion_figure(tmp_path, drawn, count, numbers, named):
    matrix = np.eye(count, dtype=int) * 300 + 100
    names = [f"class {i} " + "long " * i for i in range(count)]
    figures.confusion_figure(matrix, names, tmp_path / "confusion.png", "student distilled, " + "title " * 20)
    axes = drawn[0].axes[0]
    assert len(axes.texts) == numbers
    # The colour is the share of the row, the number the count.
    assert axes.images[0].get_array()[0, 0] == pytest.approx(400 / (300 + 100 * count))
    if numbers:
        assert (axes.texts[0].get_text(), axes.texts[1].get_text()) == ("400", "100")
    if named:
        assert [text.get_text() for text in axes.get_yticklabels()][:2] == [names[0], names[1]]
        assert len(axes.get_yticklabels()) == named
    assert_nothing_is_clipped(tmp_path / "confusion.png")


def test_confusion_figure_of_a_class_without_samples(tmp_path, drawn):
    figures.confusion_figure(np.array([[3, 1], [0, 0]]), ["a", "b"], tmp_path / "confusion.png", "t")
    np.testing.assert_allclose(drawn[0].axes[0].images[0].get_array(), [[0.75, 0.25], [0, 0]])


@pytest.mark.parametrize(("count", "shown"), [(2, 2), (40, 40), (100, 100), (130, 100)])
def test_class_report_figure(tmp_path, drawn, count, shown):
    of_class = {"precision": 0.25, "recall": 0.5, "support": 17}
    names = [f"class {i}" for i in range(count)]
    by_class = {name: {**of_class, "f1-score": 1 - i / 1000} for i, name in enumerate(names)}
    by_class |= {"accuracy": 0.5, "macro avg": {**of_class, "f1-score": 0.4}}
    figures.class_report_figure(by_class, names, tmp_path / "tables.png", "title")
    axes = drawn[0].axes
    cells = [text.get_text() for one in axes for text in one.texts]
    assert len(cells) == 4 * (shown + 1)
    labels = [text.get_text() for one in axes for text in one.get_yticklabels()]
    # Beyond 100 classes, the worst ones.
    assert labels[0] == ("class 0" if count <= 100 else f"class {count - 1}") and labels[-1] == "macro avg"
    assert cells[:4] == ["0.250", "0.500", f"{1 - (0 if count <= 100 else count - 1) / 1000:.3f}", "17"]
    assert_nothing_is_clipped(tmp_path / "tables.png")
