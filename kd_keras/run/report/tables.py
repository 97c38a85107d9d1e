"""The table of a run, for people and for programs."""

import csv
import io
import json
import math
import os
import pathlib
import re
import statistics

import numpy as np

from kd_keras import files

COLUMNS = (
    "stage",
    "role",
    "architecture",
    "labelled_images",
    "unlabelled_images",
    "updates",
    "train_accuracy",
    "val_accuracy",
    "test_accuracy",
    "precision",
    "recall",
    "f1",
    "ece",
    "teacher_agreement",
    "float_agreement",
    "accuracy_change",
    "accuracy_change_low",
    "accuracy_change_high",
    "worst_class_drop",
    "marked",
    "parameters",
    "macs",
    "bytes",
    "zip_bytes",
    "memory_bytes",
    "latency_ms_median",
    "latency_ms_iqr",
    "latency_all_threads_ms_median",
    "latency_all_threads_ms_iqr",
)
#: Further columns, of data with several labels for an image; other tables are without them.
LABEL_COLUMNS = (
    "train_map",
    "val_map",
    "test_map",
    "auc",
    "f1_micro",
    "subset_accuracy",
    "map_change",
    "map_change_low",
    "map_change_high",
    "worst_label_drop",
)
# The role of the baseline in version 0.1, and the stages whose names are not in their roles.
_OLD_BASELINE, _BASELINE = "student without KD", "baseline (no teacher)"
_STAGES = {
    _BASELINE: "baseline",
    "student distilled": "student",
    "student distilled directly": "direct",
    "teacher ensemble": "ensemble",
    "ensemble of generations": "ensemble",
    "peers together": "peers",
}
#: The width of a console that goes to a pipe or a file, in columns.
PIPED_WIDTH = 120
# A word of a role or an architecture is not broken, unless it is longer than this.
_WORD_WIDTH = 20


def row(role, architecture, **figures):
    """One line of the table.

    Args:
        role: what the table calls it, such as "student distilled" or "TFLite int8".
        architecture: the model's spec.
        **figures: others of `COLUMNS`, or of `LABEL_COLUMNS`: ``stage``, the name that programs read (``teacher``,
            ``student``); accuracies, precision, recall, f1, ece and agreements in [0, 1], counts, bytes, milliseconds;
            ``marked`` is true of a row that lost too much.

    Returns:
        dict with every one of `COLUMNS`, None where no figure was given; and those of `LABEL_COLUMNS` that were given.

    Raises:
        ValueError: a figure is no column of the table.
    """
    unknown = sorted(set(figures) - {*COLUMNS, *LABEL_COLUMNS})
    if unknown:
        raise ValueError(f"no column {', '.join(unknown)}; known: {', '.join(COLUMNS)}")
    return {**dict.fromkeys(COLUMNS), "role": role, "architecture": architecture, **figures}


def write_table(rows, folder, runtime_note=None):
    """Writes the table as results.csv, results.json and, for people, results.txt.

    Args:
        rows: from `row`.
        folder: made where it is missing.
        runtime_note: what the latencies were measured with; goes below results.txt.
    """
    folder = pathlib.Path(folder)
    names = (*COLUMNS, *(name for name in LABEL_COLUMNS if any(name in row for row in rows)))
    rows = _plain([{name: row.get(name) for name in names} for row in rows])
    write_csv(rows, folder / "results.csv")
    write_json(rows, folder / "results.json")

    from rich.console import Console

    page = io.StringIO()
    print_table(rows, Console(file=page, width=200, color_system=None), caption=runtime_note)
    files.update(folder / "results.txt", page.getvalue())


def read_table(path: pathlib.Path) -> dict[str, dict]:
    """Reads a results.json, one of version 0.1 too.

    Returns:
        The rows by stage: ``teacher``, ``baseline``, ``student``, ``student_int8`` …
    """
    rows = {}
    for stored in json.loads(path.read_text(encoding="utf-8")):
        role = current_role(stored["role"])
        stage = stored.get("stage") or _stage_of(role)
        rows[stage] = {**stored, "stage": stage, "role": role}
    return rows


def score(row: dict) -> tuple[str, str]:
    """What the models of a table are compared by: the column's name without its split, and its name for people.

    Accuracy, or of several labels for an image the mean average precision.
    """
    return ("accuracy", "accuracy") if row.get("test_map") is None else ("map", "mAP")


def current_role(role: str) -> str:
    """Returns a role as the table calls it now; version 0.1 had another text for the baseline."""
    return role.replace(_OLD_BASELINE, _BASELINE)


def _stage_of(role: str) -> str:
    """The stage of a row of version 0.1, whose tables have no such column; of a compressed student its role."""
    model, is_file, variant = role.rpartition("TFLite ")
    model = (model.rstrip(", ") or "student distilled") if is_file else role
    # "teacher 2" is stage teacher2.
    stage = _STAGES.get(model) or re.sub(r"^(\w+) (\d+)$", r"\1\2", model)
    return f"{stage}_{variant}" if is_file else stage


def spread(values: list[float], sign: str = "") -> str:
    """Mean ± sample standard deviation; ``sign="+"`` shows the mean's also where it is above 0."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def write_csv(rows, path):
    """Writes dicts of equal keys as CSV with a header; at least one row is needed."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.update(path, text.getvalue())


def write_json(obj, path):
    """Writes JSON so that a reader never meets half a file.

    Args:
        obj: dicts, lists, NumPy values; a number that is not finite becomes null, as JSON has no NaN.
        path: file; its folder is made where it is missing.
    """
    files.update(path, json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(obj):
    """The object in JSON's own types."""
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, np.ndarray):
        return _plain(obj.tolist())
    if isinstance(obj, np.generic):
        obj = obj.item()
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    return obj


# ---- the table on a screen ----


def print_table(rows, console=None, title=None, caption=None):
    """Prints the table.

    Columns that hold nothing are left out. Where the console is too narrow for the rest, the table is printed in
    parts, each with role and architecture, so that no number is ever cut.

    Args:
        rows: from `row`.
        console: rich.console.Console; one of its own if None.
        title: line above.
        caption: line below, such as the runtime of the latencies.
    """
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(width=PIPED_WIDTH)
    texts, quality, cost = columns(rows)
    room = console.width - sum(_word_width(column) + 2 for column in texts)
    parts = _pack(quality + cost, room)
    if len(parts) > 1:
        # A table that must be parted is parted by meaning first.
        parts = [part for group in (quality, cost) if group for part in _pack(group, room)]
    if title:
        console.print(Text(title, style="bold"))
    for i, part in enumerate(parts or [[]]):
        if i:
            console.print()
        console.print(_table(texts, part, room))
    if caption:
        console.print(Text(caption, style="dim"))


def columns(rows) -> tuple[list[tuple[str, list[str]]], ...]:
    """The table's columns, (heading, cells), in three groups: what a row is, its quality, its cost.

    Columns that hold nothing are left out.
    """
    groups = (_TEXTS, _QUALITY, _COST)
    return tuple(
        [_column(rows, *column) for column in group if group is _TEXTS or _filled(rows, column)] for group in groups
    )


def _table(texts, numbers, room):
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # No rules and little air between columns: what `_pack` reckons with.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), collapse_padding=True, pad_edge=False)
    widths = [_word_width(column) for column in texts]
    # Each column is reckoned with two spaces, and the last has none.
    spare = room + 2 - sum(_width(column) + 2 for column in numbers)
    for i, column in enumerate(texts):
        widened = min(_width(column) - widths[i], spare)
        widths[i], spare = widths[i] + widened, spare - widened
        table.add_column(Text(column[0]), overflow="fold", vertical="top", width=widths[i])
    for heading, _ in numbers:
        table.add_column(Text(heading, justify="right"), justify="right", no_wrap=True)
    for cells in zip(*(cells for _, cells in texts + numbers), strict=True):
        # Text, as a string would be read as markup: "[int8]" would vanish.
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _pack(columns, room):
    """Parts the columns, in order, so that each part is as wide as there is room."""
    parts, used = [], 0
    for column in columns:
        # The cell's padding, and the divider that rich puts between columns.
        width = _width(column) + 2
        if not parts or used + width > room:
            parts.append([])
            used = 0
        parts[-1].append(column)
        used += width
    return parts


def _width(column):
    heading, cells = column
    return max(len(line) for text in (heading, *cells) for line in text.split("\n"))


def _word_width(column):
    heading, cells = column
    return min(max(len(word) for text in (heading, *cells) for word in text.split()), _WORD_WIDTH)


def _column(rows, heading, form, *names):
    return heading, [_cell(form, *(row.get(name) for name in names)) for row in rows]


def _filled(rows, column):
    return any(_number(row.get(column[2])) is not None for row in rows)


def _cell(form, *values):
    if form in (str, _role):
        return form(*values)
    values = [_number(value) for value in values]
    return "–" if values[0] is None else form(*values)


def _number(value):
    return None if value is None or not math.isfinite(value) else value


def _percent(value):
    return f"{100 * value:.2f}"


def _whole(value):
    return f"{value:.0f}"


def count_text(value):
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999 950 would print as 1000.0 k.
        if value >= 0.9995 * unit:
            scaled = value / unit
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {name}"
    return f"{value:.0f}"


def size_text(value):
    text = count_text(value)
    return f"{text}B" if " " in text else f"{text} B"


def _role(role, marked):
    return f"{role} ‡" if marked else str(role)


def _change(mean, low, high):
    return f"{100 * mean:+.2f} ± {50 * (high - low):.2f}"


def _drop(value):
    # Not -0.00.
    return f"{0.0 - 100 * value:+.2f}"


def _milliseconds(median, spread):
    digits = 3 if median < 1 else 2 if median < 100 else 1
    return f"{median:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


# heading, how a value is written, column(s)
_TEXTS = (("role", _role, "role", "marked"), ("architecture", str, "architecture"))
_QUALITY = (
    ("images\nlabelled", _whole, "labelled_images"),
    ("un-\nlabelled", _whole, "unlabelled_images"),
    ("updates", _whole, "updates"),
    ("train\nacc %", _percent, "train_accuracy"),
    ("val\nacc %", _percent, "val_accuracy"),
    ("test\nacc %", _percent, "test_accuracy"),
    ("train\nmAP %", _percent, "train_map"),
    ("val\nmAP %", _percent, "val_map"),
    ("test\nmAP %", _percent, "test_map"),
    ("AUC\n%", _percent, "auc"),
    ("prec.\n%", _percent, "precision"),
    ("recall\n%", _percent, "recall"),
    ("F1\n%", _percent, "f1"),
    ("F1\nmicro", _percent, "f1_micro"),
    ("all labels\nright %", _percent, "subset_accuracy"),
    ("ECE\n%", _percent, "ece"),
    ("agree %\nteacher", _percent, "teacher_agreement"),
    ("agree %\nfloat", _percent, "float_agreement"),
    ("to float\n± 95 %", _change, "accuracy_change", "accuracy_change_low", "accuracy_change_high"),
    ("worst\nclass", _drop, "worst_class_drop"),
    ("to float\n± 95 %", _change, "map_change", "map_change_low", "map_change_high"),
    ("worst\nlabel", _drop, "worst_label_drop"),
)
_COST = (
    ("params", count_text, "parameters"),
    ("MACs", count_text, "macs"),
    ("size", size_text, "bytes"),
    ("zipped", size_text, "zip_bytes"),
    ("peak\nmemory", size_text, "memory_bytes"),
    ("latency ms\nmedian ± IQR", _milliseconds, "latency_ms_median", "latency_ms_iqr"),
    ("all threads\nms", _milliseconds, "latency_all_threads_ms_median", "latency_all_threads_ms_iqr"),
)
