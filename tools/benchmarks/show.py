"""What a section found, for people: tables on the screen, Markdown for a page, figures.

A section is a dict in JSON's own types: ``title``; ``tables``, each with ``title``, ``columns``, ``rows`` of texts and
a ``note`` or none; ``claims`` from `measure.Claim.judge`; ``samples``, a `measure.summary` by variant; for figures,
``bars`` or ``curves``; and ``other_load``, the cores that other processes kept busy meanwhile.
"""

import pathlib

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from kd_keras.run.report import figures as drawing

# Cores that others may keep busy before a section's figures are marked.
_IDLE = 0.05
_CLAIM_COLUMNS = ["claim", "ratio", "IQR", "holds"]


def tables(section: dict) -> list[dict]:
    """The section's tables, that of its claims last."""
    found = list(section["tables"])
    if section.get("claims"):
        rows = [_claim_row(claim) for claim in section["claims"]]
        found.append({"title": "Claims", "columns": _CLAIM_COLUMNS, "rows": rows, "note": None})
    load = section.get("other_load")
    if section["samples"] and load is not None and load > _IDLE:
        note = f"Not idle: other processes kept {load:.2f} cores busy meanwhile."
        found[-1] = {**found[-1], "note": " ".join(filter(None, [found[-1]["note"], note]))}
    return found


def _claim_row(claim):
    if claim["holds"] is None:
        return [claim["claim"], "", "", f"not judged: {claim['void']}"]
    found = claim["ratio"]
    return [claim["claim"], f"{found['median']:.3f}", f"{found['iqr']:.3f}", "yes" if claim["holds"] else "NO"]


def _text_columns(table):
    """How many of the first columns hold words; numbers are set to the right."""
    count = 1
    while count < len(table["columns"]) and not any(row[count][:1].isdigit() for row in table["rows"]):
        count += 1
    return count


def on_screen(section: dict, console) -> None:
    """Prints the tables."""
    for table in tables(section):
        drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
        console.print(Text(table["title"], style="bold"))
        for i, heading in enumerate(table["columns"]):
            justify = "left" if i < _text_columns(table) else "right"
            drawn.add_column(Text(heading), justify=justify, overflow="fold")
        for row in table["rows"]:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)
        if table["note"]:
            console.print(Text(table["note"], style="dim"))
        console.print()


def markdown(section: dict) -> str:
    """The tables as Markdown."""
    parts = []
    for table in tables(section):
        words = _text_columns(table)
        rule = ["---" if i < words else "---:" for i in range(len(table["columns"]))]
        lines = [_line(table["columns"]), _line(rule), *map(_line, table["rows"])]
        parts.append("\n".join([f"**{table['title']}**\n", *lines, *([f"\n{table['note']}"] if table["note"] else [])]))
    return "\n\n".join(parts)


def _line(cells):
    # A pipe would end the cell.
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def machine_markdown(machine: dict) -> str:
    """The machine and the versions, a line each."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"- {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}",
        f"- accelerators: {', '.join(machine['gpus']) or 'none'}; bfloat16: {', '.join(machine['bfloat16']) or 'none'}",
        f"- {versions}",
        f"- load average at the start: {machine['load_at_start']}",
    ]
    return "\n".join(lines)


def figures(sections: dict[str, dict], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws ``SECTION.png`` for every section that has bars or curves."""
    written = []
    for name, section in sections.items():
        path = folder / f"{name}.png"
        if section.get("bars"):
            _bars(section, path)
        elif section.get("curves"):
            _curves(section["curves"], path)
        else:
            continue
        written.append(path)
    return written


def _bars(section, path):
    import matplotlib
    from matplotlib.patches import Patch

    bars = section["bars"]
    groups = list(dict.fromkeys(bar["group"] for bar in bars))
    colours = dict(zip(groups, matplotlib.colormaps["tab10"].colors, strict=False))
    figure = drawing.new_figure(9, 1.2 + 0.32 * len(bars))
    axes = figure.subplots()
    places = np.arange(len(bars))
    medians = 1e3 * np.array([bar["median"] for bar in bars])
    spread = 1e3 * np.array([bar["iqr"] for bar in bars]) / 2
    axes.barh(places, medians, xerr=spread, color=[colours[bar["group"]] for bar in bars], ecolor="black", capsize=2)
    axes.set_yticks(places, [bar["name"] for bar in bars])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds, median and interquartile range")
    axes.set_title(section["title"])
    axes.grid(alpha=0.3, axis="x")
    axes.legend(handles=[Patch(color=colours[group], label=group) for group in groups], frameon=False)
    drawing.save_figure(figure, path)


def _curves(curves, path):
    columns = 2
    figure = drawing.new_figure(10, 3.2 * -(-len(curves) // columns))
    all_axes = figure.subplots(-(-len(curves) // columns), columns, squeeze=False).ravel()
    for curve, axes in zip(curves, all_axes, strict=False):
        axes.plot(curve["x"], curve["y"], "o-", linewidth=1.6)
        axes.set(xlabel=curve["xlabel"], ylabel=curve["ylabel"], xscale="log", ylim=(0, 1.1 * max(curve["y"])))
        axes.set_xticks(curve["x"], [f"{value:g}" for value in curve["x"]], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    for axes in all_axes[len(curves) :]:
        axes.set_visible(False)
    drawing.save_figure(figure, path)
