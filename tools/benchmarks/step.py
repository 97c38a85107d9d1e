"""One training step: ours, the plain student's, and those of what one would use instead."""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile

import keras
import numpy as np
from keras import distillation

from benchmarks import measure, nets
from kd_keras import losses
from kd_keras.distillation.fast_teacher import fast_copy
from kd_keras.errors import InputError
from kd_keras.evaluate import cost

TITLE = "A training step"
FULL, BF16, OTHER = "float32", "bfloat16 teacher", "further settings"
# In the order of the table: rows of equal precision come first.
GROUPS = (FULL, BF16, OTHER)
STEPS_PER_EXECUTION = 8


def run(options, done) -> dict:
    """Measures every variant of a step in one interleaved run; see `benchmarks.show` for what is returned."""
    with contextlib.ExitStack() as stack:
        calls, precision, skipped = {}, {}, {}
        for name, group, build in sorted(variants(options, stack), key=lambda one: GROUPS.index(one[1])):
            precision[name] = group
            try:
                calls[name] = build()
            except measure.Skip as skip:
                skipped[name] = str(skip)
        samples = measure.interleave(calls, options.rounds)
    found = result(options, samples, precision, skipped, measure.machine()["bfloat16"])
    # What the plan's rates are taken from.
    macs = {role: cost.macs(nets.model(getattr(options, role), options)) for role in ("teacher", "student")}
    return {**found, "macs": macs}


def result(options, samples, precision, skipped, bfloat16_units) -> dict:
    """Tables, claims and figure of the samples."""
    rows = []
    for name, group in precision.items():
        if name in skipped:
            rows.append([name, group, f"skipped: {skipped[name]}", "", ""])
            continue
        found = measure.summary(samples[name])
        share = measure.ratio(samples, [name], ["plain student"])
        rows.append(
            [name, group, f"{1e3 * found['median']:.2f}", f"{1e3 * found['iqr']:.2f}", f"{share['median']:.3f}"]
        )
    note = (
        f"{options.teacher} teaches {options.student}, batch {options.batch},"
        f" {options.image_size}×{options.image_size}×3, {options.classes} classes, {options.rounds} rounds."
    )
    columns = ["step", "precision", "ms", "IQR", "× plain student"]
    return {
        "title": TITLE,
        "tables": [{"title": TITLE, "columns": columns, "rows": rows, "note": note}],
        "claims": [claim.judge(samples, skipped) for claim in claims(bfloat16_units)],
        "samples": {name: measure.summary(values) for name, values in samples.items()},
        "batch": options.batch,
        "bars": [
            {"name": name, "group": precision[name], **measure.summary(values)} for name, values in samples.items()
        ],
    }


def claims(bfloat16_units) -> list[measure.Claim]:
    void = None if bfloat16_units else "this machine computes no bfloat16"
    return [
        measure.Claim(("kd, cached",), 1.05, ("plain student",)),
        measure.Claim(("kd, cached on disk, whole pipeline",), 1.05, ("plain student, whole pipeline",)),
        measure.Claim(("kd",), 1.02, ("plain student", "teacher forward")),
        measure.Claim(("kd",), 1.0, ("keras.distillation",)),
        measure.Claim(("kd, folded teacher",), 1.0, ("keras.distillation",)),
        measure.Claim(("kd + features",), 0.70, ("keras.distillation + features",)),
        measure.Claim(("kd, bfloat16 teacher",), 0.9, ("keras.distillation",), void),
        measure.Claim(("kd + features, bfloat16 teacher",), 0.65, ("keras.distillation + features",), void),
        measure.Claim(("kd, bfloat16 teacher",), 1.0, ("PyTorch, channels-last",), void),
    ]


def variants(options, stack):
    """(name, group, build) of every variant; ``build()`` gives the call to be timed, or raises `measure.Skip`.

    Args:
        options: of the command.
        stack: what closes the PyTorch process.
    """
    images, labels = data = nets.batch(options)
    teacher = nets.model(options.teacher, options)
    stages = nets.stages(teacher, nets.model(options.student, options))

    def student(policy="float32"):
        return nets.model(options.student, options, policy)

    def plain(policy="float32", batch=data):
        made = student(policy)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile(nets.optimizer(), loss, metrics=["accuracy"])
        return nets.train_call(made, batch)

    def ours(terms, policy="float32", batch=data, **settings):
        return nets.train_call(nets.distiller(student(policy), teacher, terms(), **settings), batch)

    def cached():
        taps = {"logits": teacher.predict(images, options.batch, verbose=0)}
        return {"image": images, "label": labels, "teacher": taps}

    def from_disk():
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        return ours(nets.hinton, batch=nets.stream(options, teacher, folder))

    def with_features():
        return [*nets.hinton(), losses.Hint(pairs=",".join(f"{name}:{name}" for name in stages))]

    def theirs(*terms):
        made = distillation.Distiller(
            teacher=teacher, student=student(), distillation_losses=list(terms), student_loss_weight=1 - nets.WEIGHT
        )
        made.compile(
            nets.optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
        )
        return nets.train_call(made, data)

    def their_logits():
        return distillation.LogitsDistillation(temperature=nets.TEMPERATURE)

    def their_features():
        if any(teacher.get_layer(name).output.shape != student().get_layer(name).output.shape for name in stages):
            raise measure.Skip("keras.distillation has no projector, and the stages' shapes differ")
        return theirs(
            their_logits(),
            *(
                distillation.FeatureDistillation(loss="mse", teacher_layer_name=name, student_layer_name=name)
                for name in stages
            ),
        )

    torch = Torch(options, teacher, student(), stages, data, stack)
    # Keras compiles with XLA by default where there is an accelerator: the row shows the other choice.
    xla = not nets.distiller(student(), teacher, nets.hinton()).jit_compile
    yield "plain student", FULL, plain
    yield "teacher forward", FULL, lambda: nets.forward_call(teacher, images)
    yield "kd, cached", FULL, lambda: ours(nets.hinton, batch=cached())
    yield "plain student, whole pipeline", FULL, lambda: plain(batch=nets.stream(options))
    yield "kd, cached on disk, whole pipeline", FULL, from_disk
    yield "kd", FULL, lambda: ours(nets.hinton)
    yield "kd, folded teacher", FULL, lambda: ours(nets.hinton, teacher_dtype="float32")
    yield "keras.distillation", FULL, lambda: theirs(their_logits())
    yield "PyTorch", FULL, lambda: torch.call("kd")
    yield "PyTorch, channels-last", FULL, lambda: torch.call("kd channels_last")
    yield "kd + features", FULL, lambda: ours(with_features)
    yield "keras.distillation + features", FULL, their_features
    yield "PyTorch, channels-last + features", FULL, lambda: torch.call("features channels_last")
    yield "kd, bfloat16 teacher", BF16, lambda: ours(nets.hinton, teacher_dtype="bfloat16")
    yield "kd + features, bfloat16 teacher", BF16, lambda: ours(with_features, teacher_dtype="bfloat16")
    if options.quick:
        return
    yield "ce", FULL, lambda: ours(lambda: [losses.CE()])
    for dtype, group in (("float32", FULL), ("bfloat16", BF16)):
        copy = fast_copy(teacher, dtype)
        yield f"teacher forward, folded, {dtype}", group, lambda copy=copy: nets.forward_call(copy, images)
    name = f"kd, steps_per_execution={STEPS_PER_EXECUTION}"
    yield name, OTHER, lambda: ours(nets.hinton, steps_per_execution=STEPS_PER_EXECUTION)
    yield f"kd, jit_compile={xla}", OTHER, lambda: ours(nets.hinton, jit_compile=xla)
    yield "plain student, mixed_bfloat16", OTHER, lambda: plain("mixed_bfloat16")
    name = "kd, mixed_bfloat16, bfloat16 teacher"
    yield name, OTHER, lambda: ours(nets.hinton, "mixed_bfloat16", teacher_dtype="bfloat16")


class Torch:
    """PyTorch in a process of its own, whose threads can't disturb ours; it runs a step when told and tells its time.

    Args:
        options: of the command; ``torch_python`` is the interpreter that has PyTorch.
        teacher: Keras model, which is rebuilt there with its weights.
        student: likewise.
        stages: taps of the feature losses.
        data: images and labels.
        stack: closes the process.
    """

    def __init__(self, options, teacher, student, stages, data, stack):
        self.missing = None
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arrays, nets_described = {"images": data[0], "labels": data[1]}, {}
        for role, network in (("teacher", teacher), ("student", student)):
            nets_described[role] = describe(network)
            for layer in network.layers:
                arrays |= {f"{role}/{layer.name}/{i}": value for i, value in enumerate(layer.get_weights())}
        settings = {
            "nets": nets_described,
            "stages": stages,
            "rate": nets.RATE,
            "momentum": nets.MOMENTUM,
            "temperature": nets.TEMPERATURE,
            "weight": nets.WEIGHT,
        }
        np.savez(folder / "arrays.npz", **arrays)
        (folder / "settings.json").write_text(json.dumps(settings))
        line = [options.torch_python, os.fspath(pathlib.Path(__file__).with_name("torch_worker.py")), os.fspath(folder)]
        try:
            self.process = stack.enter_context(
                subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
        except OSError as error:
            raise InputError(
                f"--torch_python={options.torch_python} can't be run ({error.strerror}): give a Python that has PyTorch"
            ) from error
        # Its end of input is its sign to stop; Popen's own exit then waits for it.
        stack.callback(self.process.stdin.close)
        self.missing = self._answer().get("missing")

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the PyTorch process ended; its message stands above")
        return json.loads(line)

    def ask(self, command: str) -> dict:
        """Sends a command; see ``torch_worker.py``."""
        self.process.stdin.write(command + "\n")
        return self._answer()

    def call(self, command: str):
        """A call that runs one step there, and gives its seconds.

        Raises:
            Skip: PyTorch is not installed, or a layer has no counterpart there.
        """
        if self.missing:
            raise measure.Skip(self.missing)
        return lambda: self.ask(command)["seconds"]


def describe(network) -> list[dict]:
    """A functional model's layers in order, each with its kind, its settings and the names of its inputs."""
    found = []
    for layer in network.get_config()["layers"]:
        inputs = []
        for node in layer["inbound_nodes"]:
            inputs += [name for name, *_ in _histories(node["args"])]
        found.append({"name": layer["name"], "kind": layer["class_name"], "inputs": inputs})
        # Only what the other side can read: initialisers and the like are left out.
        plain = (int, float, str, bool, list, tuple, type(None))
        found[-1]["config"] = {key: value for key, value in layer["config"].items() if isinstance(value, plain)}
    return found


def _histories(value):
    if isinstance(value, dict):
        if "keras_history" in value:
            return [value["keras_history"]]
        value = list(value.values())
    return [one for part in value for one in _histories(part)] if isinstance(value, (list, tuple)) else []
