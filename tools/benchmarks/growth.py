"""How time and memory grow with the batch, the classes, the replicas, and the files of a data set."""

import json
import pathlib
import tempfile

from benchmarks import measure, nets, pipeline

TITLE = "How cost grows"
_FOLDER_SIDE, _FLAT = 32, 1.05


def run(options, done) -> dict:
    """Measures each point in a process of its own."""
    base = nets.point(options)
    tables, curves, kept, answers = [], [], {}, {}

    def measured(point):
        """A point that lies on several curves is measured once."""
        whole = {**base, **point}
        key = json.dumps(whole, sort_keys=True)
        if key not in answers:
            answers[key] = measure.child("benchmarks.point", whole)
        return answers[key]

    def sweep(title, key, points, unit):
        found = {}
        for value, point in points.items():
            answer = measured(point)
            found[value] = {**measure.summary(answer["seconds"]), "peak_bytes": answer["peak_bytes"]}
            kept[f"{key}={value}"] = found[value]
        rows = [
            [str(value), f"{1e3 * one['median']:.1f}", f"{1e3 * one['iqr']:.1f}", f"{one['peak_bytes'] / 1e6:,.0f}"]
            for value, one in found.items()
        ]
        tables.append({"title": title, "columns": [unit, "ms a step", "IQR", "peak MB"], "rows": rows, "note": None})
        times = [1e3 * one["median"] for one in found.values()]
        peaks = [one["peak_bytes"] / 1e6 for one in found.values()]
        curves.append({"xlabel": unit, "ylabel": "ms a step", "x": list(found), "y": times})
        curves.append({"xlabel": unit, "ylabel": "peak memory, MB", "x": list(found), "y": peaks})
        return found

    for title, key, values, unit in (
        ("Batch size", "batch", options.batches, "images a batch"),
        ("Classes", "classes", options.class_counts, "classes"),
        ("Replicas, same global batch, virtual CPUs", "replicas", options.replicas, "replicas"),
    ):
        sweep(title, key, {value: {key: value} for value in values}, unit)
    with tempfile.TemporaryDirectory() as folder:
        trees = {count: pathlib.Path(folder) / str(count) for count in options.trees}
        for count, tree in trees.items():
            pipeline.jpegs(tree, count, 10, _FOLDER_SIDE)
        points = {count: {"folder": str(tree)} for count, tree in trees.items()}
        found = sweep("A run over a folder, one epoch", "files", points, "files of the folder")
    tables[0]["note"] = (
        f"ce + kd, {options.loss_teacher} to {options.loss_student}, batch {options.batch} unless it says otherwise;"
        " each row is a process of its own, whose memory holds Python, TensorFlow and Keras too."
    )
    memory = {f"memory with {count:,} files": [one["peak_bytes"]] for count, one in found.items()}
    fewest, most = min(options.trees), max(options.trees)
    few, many = (f"memory with {count:,} files" for count in (fewest, most))
    return {
        "title": TITLE,
        "tables": tables,
        "claims": [measure.Claim((many,), _FLAT, (few,)).judge(memory, {})],
        "samples": kept,
        "curves": curves,
    }
