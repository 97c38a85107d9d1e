"""The model card of a run's student: what it is, how it was made, what it can do and what it can't."""

import datetime
import shlex

from kd_keras import files
from kd_keras.evaluate import quality
from kd_keras.export import arena, metadata
from kd_keras.run.report import tables
from kd_keras.schemes.plan import Export, Train

NAME = "MODEL_CARD.md"
_PACKAGES = ("kd_keras", "tensorflow", "keras", "tensorflow-model-optimization")


def write(results, rows: list[dict], environment: dict) -> None:
    """Writes the card beside the student, where that was trained or compressed.

    Args:
        results: a `Results`.
        rows: its table.
        environment: what `tracking.environment` says of the machine.

    Reference: Mitchell et al., "Model Cards for Model Reporting", arXiv:1810.03993, whose sections it has.
    """
    card = _Card(results, {row["stage"]: row for row in rows}, environment)
    files.update(results.session.config.run.workdir / NAME, card.text())


class _Card:
    def __init__(self, results, rows, environment):
        self.results, self.rows, self.environment = results, rows, environment
        self.session, self.plan = results.session, results.plan
        self.config, self.splits = self.session.config, self.session.splits
        self.folder, self.student = self.config.run.workdir, self.plan.students[0]
        self.score, self.score_name = tables.score(rows[self.student.name])

    def text(self) -> str:
        parts = [f"# {self.student.architecture} for {self.config.data.source}", self._what()]
        for heading, lines in (
            ("How it is used", self._use()),
            ("Files", self._files()),
            ("Results", self._numbers()),
            ("Results by class", self._by_class()),
            ("How it was trained", self._training()),
            ("Limits", self._limits()),
            (
                "Licence",
                [self.config.export.licence or "Not stated. That of the images may bind what was learned of them."],
            ),
        ):
            parts.append(f"## {heading}")
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def _what(self) -> str:
        row, names = self.rows[self.student.name], list(map(str, self.splits.class_names))
        kind = "labels, of which an image may have several" if self.splits.multi_label else "classes"
        listed = ", ".join(names[:20]) + (f" … ({len(names)} in all)" if len(names) > 20 else "")
        return (
            f"An image classifier of {len(names)} {kind}: {listed}. {row['parameters']:,} parameters, {row['macs']:,} "
            f"multiply-accumulates for an image of {'×'.join(map(str, self.splits.image_shape))}."
        )

    def _use(self) -> list[str]:
        by = "a sigmoid makes each a probability" if self.splits.multi_label else "softmax makes them probabilities"
        shape = ", ".join(map(str, self.splits.image_shape))
        lines = [
            f"- Input: pixels from 0 to 255, (1, {shape}), RGB or grey as the last side says. Whatever scaling the "
            "model needs is inside it.",
            f"- Output: logits (1, {self.splits.num_classes}) in the order of `labels.txt`; {by}.",
        ]
        for stage in self._exports():
            record = metadata.read(self.folder / f"{stage.name}.tflite")
            ends = [self._tensor(end, record[end]) for end in ("input", "output")]
            lines.append(f"- `{stage.name}.tflite`: {'; '.join(ends)}.")
        return lines

    @staticmethod
    def _tensor(end: str, record: dict) -> str:
        scale = record.get("scale")
        if scale is None:
            return f"{end} {record['dtype']}"
        return f"{end} {record['dtype']}, of which q stands for {scale:.6g} · (q {-record['zero_point']:+d})"

    def _exports(self):
        return [
            row.stage for row in self.plan.rows if isinstance(row.stage, Export) and not self.results.is_refused(row)
        ]

    def _files(self) -> list[str]:
        lines = ["| file | bytes | activations, bytes | operators |", "|---|---|---|---|"]
        for path in sorted(self.folder.glob("*.keras")):
            if path.stem not in ("teacher", "baseline"):
                lines.append(f"| `{path.name}` | {path.stat().st_size:,} | – | – |")
        for stage in self._exports():
            path = self.folder / f"{stage.name}.tflite"
            operators = ", ".join(metadata.read(path)["operators"])
            alive = arena.activation_bytes(path.read_bytes())
            lines.append(f"| `{path.name}` | {path.stat().st_size:,} | {alive:,} | {operators} |")
        return [
            *lines,
            "",
            "*Activations* are those alive at once, for one image: a microcontroller's tensor arena is larger by the "
            "interpreter's own structures and its kernels' scratch buffers.",
        ]

    def _numbers(self) -> list[str]:
        score = self.score_name
        lines = [f"| model or file | validation {score} % | test {score} % | macro F1 % | ECE % | latency, ms |"]
        lines.append("|---|---|---|---|---|---|")
        for row in self.rows.values():
            cells = [row.get(name) for name in (f"val_{self.score}", f"test_{self.score}", "f1", "ece")]
            cells = ["–" if cell is None else f"{100 * cell:.2f}" for cell in cells]
            time = row["latency_ms_median"]
            cells.append("–" if time is None else f"{time:.3g} ± {row['latency_ms_iqr']:.2g}")
            lines.append(f"| {row['role']}: `{row['stage']}` | {' | '.join(cells)} |")
        machine = f"{self.environment['platform']}, {self.environment['cpus']} CPUs"
        notes = (f"- {note}" for note in self.results.notes(list(self.rows.values())))
        return [
            *lines,
            "",
            f"{len(self.splits.test)} test images, read once, at the end; one training (seed "
            f"{self.config.training.seed}), so that the spread over trainings is not in these figures. Latency: "
            f"median ± interquartile range at batch 1 on {machine}.",
            "",
            *notes,
        ]

    def _by_class(self) -> list[str]:
        if self.splits.multi_label:
            return [f"See `{self.student.name}_report.json`."]
        stage = next((stage for stage in self._exports() if stage.variant.startswith("int8")), self.student)
        report = quality.class_report(self.results.logits(stage), self.results.labels, self.splits.class_names)
        lines = [
            f"Of `{stage.name}`, on the test images.",
            "",
            "| class | precision % | recall % | F1 % | images |",
            "|---|---|---|---|---|",
        ]
        for name in map(str, self.splits.class_names):
            figures = (f"{100 * report[name][key]:.1f}" for key in ("precision", "recall", "f1-score"))
            lines.append(f"| {name.replace('|', '&#124;')} | {' | '.join(figures)} | {report[name]['support']:.0f} |")
        return lines

    def _training(self) -> list[str]:
        student, packages = self.student, self.environment["packages"]
        lines = []
        if isinstance(student, Train):
            samples = student.samples
            seen = f"{samples.labelled:,} images with labels"
            seen += f" and {samples.unlabelled:,} without" if samples.unlabelled else ""
            taught = "without a teacher" if student.teacher is None else f"taught by {student.teacher.architecture}"
            losses = " + ".join(dict.fromkeys(str(term.loss) for term in student.terms))
            lines.append(f"- Trained on {seen}, {student.recipe.epochs} epochs, {taught}, with `{losses}`.")
        for stage in self.plan.compressed:
            lines.append(f"- Compressed: {stage.role}.")
        command = shlex.join(["python", "-m", "kd_keras.run", *self.config.command_line()])
        revision = self.environment["git_revision"] or "not known"
        revision += " with changes" * bool(self.environment["git_dirty"])
        data, record = self.session.facts.data(), self.results.store.folder(student) / "record.json"
        made = datetime.datetime.fromtimestamp(record.stat().st_mtime, datetime.UTC)
        versions = ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)
        return [
            *lines,
            f"- Content hashes of the data: training `{data.train[:16]}`, validation `{data.val[:16]}`, test "
            f"`{data.test[:16]}`.",
            f"- {versions}; {', '.join(self.environment['devices'])}; git revision {revision}; {made:%Y-%m-%d}.",
            "",
            "```",
            command,
            "```",
        ]

    def _limits(self) -> list[str]:
        lines = [
            "- The figures hold for images like those of the test split. Other cameras, other light or another crop "
            "may cost any number of points: score the file on your own images first (`tools/edge_demo.py`).",
            "- An image of something else gets one of the classes, or labels, all the same.",
            "- Nothing was measured of how errors fall on groups of people, or under attack.",
        ]
        reference = self.plan.reference
        if reference is not None:
            lines.append(f"- It has learned the mistakes of its teacher too ({reference.architecture}).")
        return lines
