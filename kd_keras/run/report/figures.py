"""The figures of a run: curves, confusion matrices, per-class tables."""

import io
import math

import numpy as np

from kd_keras import files


def new_figure(width, height):
    """A matplotlib figure of that size in inches, which belongs to no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it keeps every figure alive and picks a screen.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path):
    """Writes a figure as PNG, cropped to what is drawn."""
    content = io.BytesIO()
    # Tight: next to axes of fixed aspect the layout leaves too little room for long class names.
    figure.savefig(content, format="png", dpi=120, bbox_inches="tight", pad_inches=0.12)
    files.write(path, content.getvalue())


def curves(histories, path):
    """Writes the figure of `curves_figure` as PNG."""
    save_figure(curves_figure(histories), path)


def curves_figure(histories):
    """Draws loss and accuracy over the epochs, training dashed and validation solid.

    What a distilled student minimises is a weighted sum of terms that no other model has; where a history holds ``ce``
    or ``bce``, its hard-label term, that is drawn for training in place of ``loss``.

    Args:
        histories: model name to Keras history: ``loss``, ``ce`` or ``bce``, ``val_loss``, ``accuracy``,
            ``val_accuracy``, or ``map`` and ``val_map``, each a value for each epoch. Any may be missing.

    Returns:
        The matplotlib figure.
    """
    import matplotlib
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    palette = matplotlib.colormaps["tab10" if len(histories) <= 10 else "turbo"]
    if len(histories) <= 10:
        colours = [palette(i) for i in range(len(histories))]
    else:
        colours = [palette(x) for x in np.linspace(0, 1, len(histories))]
    figure = new_figure(10, 4.2 + 0.22 * math.ceil((len(histories) + 2) / 3))
    panels = figure.subplots(1, 2)
    is_multilabel = any("val_map" in history for history in histories.values())
    score, score_name = ("map", "mean average precision") if is_multilabel else ("accuracy", "accuracy")
    for (_, history), colour in zip(histories.items(), colours, strict=True):
        train_loss = next((name for name in ("ce", "bce") if len(history.get(name, ()))), "loss")
        for panel, train, val in ((panels[0], train_loss, "val_loss"), (panels[1], score, f"val_{score}")):
            for name, style in ((train, "--"), (val, "-")):
                values = np.array([np.nan if value is None else value for value in history.get(name, ())], float)
                # A line with a single point is invisible.
                marker = "o" if np.isfinite(values).sum() == 1 else None
                epochs = np.arange(1, len(values) + 1)
                if len(values):
                    panel.plot(epochs, values, style, color=colour, marker=marker, linewidth=1.6)
    longest = max((len(values) for history in histories.values() for values in history.values()), default=0)
    for panel, label in zip(panels, ("cross-entropy on hard labels", score_name), strict=True):
        panel.set_xlabel("epoch")
        panel.set_ylabel(label)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlim(*((0, 2) if longest <= 1 else (None, None)))
        panel.grid(alpha=0.3)
    panels[0].set_title("Loss (hard-label term alone)")
    panels[1].set_title(score_name[:1].upper() + score_name[1:])
    keys = [
        Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in zip(histories, colours, strict=True)
    ]
    keys += [
        Line2D([], [], color="black", linestyle=style, label=name)
        for style, name in (("--", "train"), ("-", "validation"))
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(3, len(keys)), frameon=False)
    return figure


def confusion_figure(matrix, class_names, path, title):
    """Draws a confusion matrix, coloured by the share of each true class.

    Up to 20 classes the counts are written in the cells; beyond 40 the classes are not named.

    Args:
        matrix: (K, K) counts; rows are true classes.
        class_names: K names.
        path: PNG file.
        title: line above.
    """
    matrix = np.asarray(matrix)
    count = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [_short(name, 18) for name in class_names]
    side = float(np.clip(2.6 + 0.42 * count, 4.5, 11))
    figure = new_figure(side + 0.9, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046, pad=0.03)
    axes.set(xlabel="predicted class", ylabel="true class")
    # To the figure's width, not the axes': a long title would be cut by the edge.
    figure.suptitle(title, fontsize=12, wrap=True)
    if count <= 40:
        size = 9 if count <= 20 else 7
        axes.set_xticks(range(count), names, rotation=0 if max(map(len, names)) <= 3 else 90, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
    if count <= 20:
        longest = len(str(matrix.max()))
        size = 9 if longest <= 3 else 36 / longest
        for (i, j), value in np.ndenumerate(matrix):
            axes.text(
                j, i, value, ha="center", va="center", fontsize=size, color="white" if shares[i, j] > 0.5 else "black"
            )
    save_figure(figure, path)


def class_report_figure(report, class_names, path, title):
    """Draws precision, recall, F1 and support of every class, or label, as a coloured table.

    Beyond 100 classes, the 100 with the lowest F1 are shown. Independent labels also have average precision and AUC.

    Args:
        report: from `quality.class_report`, or rows of `multilabel.label_report` by name.
        class_names: K names, in the order to show them.
        path: PNG file.
        title: line above.
    """
    names = [str(name) for name in class_names]
    columns = {"average_precision": "AP", "auc": "AUC", "precision": "precision", "recall": "recall"}
    columns |= {"f1": "F1", "f1-score": "F1"}
    columns = {name: heading for name, heading in columns.items() if name in report[names[0]]}
    (f1,) = columns.keys() & {"f1", "f1-score"}
    if len(names) > 100:
        title = f"{title}: the 100 of {len(names)} classes with the lowest F1"
        names = sorted(names, key=lambda name: report[name][f1] or 0)[:100]
    names += [name for name in ("macro avg", "weighted avg") if name in report]
    blocks = math.ceil(len(names) / 36)
    per_block = math.ceil(len(names) / blocks)
    width = len(columns)
    figure = new_figure(max(5.5, (1.6 + width) * blocks), 1.3 + 0.24 * per_block)
    all_axes = figure.subplots(1, blocks, squeeze=False)[0]
    for block, axes in enumerate(all_axes):
        shown = names[block * per_block : (block + 1) * per_block]
        values = np.array([[report[name][column] for column in columns] for name in shown], float)
        # The support has no share to be coloured by; rows that the last block lacks stay blank.
        colours = np.full((per_block, width + 1), np.nan)
        colours[: len(shown), :width] = values
        axes.imshow(colours, cmap="RdYlBu", vmin=0, vmax=1, aspect="auto", alpha=0.6)
        for i, name in enumerate(shown):
            for j in range(width):
                text = f"{values[i, j]:.3f}" if np.isfinite(values[i, j]) else "–"
                axes.text(j, i, text, ha="center", va="center", fontsize=8)
            axes.text(width, i, f"{report[name]['support']:.0f}", ha="center", va="center", fontsize=8)
        axes.set_xticks(range(width + 1), [*columns.values(), "support"], fontsize=8)
        axes.set_yticks(range(len(shown)), [_short(name, 22) for name in shown], fontsize=8)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.suptitle(title, fontsize=12, wrap=True)
    save_figure(figure, path)


def _short(name, length):
    name = str(name)
    return name if len(name) <= length else name[: length - 1] + "…"
