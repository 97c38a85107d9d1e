"""What each loss costs, by itself and with a live teacher, relative to ``kd``: time, weights, memory."""

import warnings

import numpy as np

from benchmarks import measure, nets

TITLE = "Losses"
_REFERENCE = "kd"


def _trained(model) -> int:
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def run(options, done) -> dict:
    """Measures a step with every loss that can be built from its defaults, interleaved; the others are named."""
    distillers, skipped = nets.each_loss(options)
    data = nets.numbered(options)
    # A loss may change the student too: sim_kd puts its projector into it.
    own = _trained(nets.model(options.loss_student, options))
    extra = {name: _trained(distiller) - own for name, distiller in distillers.items()}
    calls = {name: nets.train_call(distiller, data) for name, distiller in distillers.items()}
    with warnings.catch_warnings():
        # A loss on features alone trains no last layer.
        warnings.filterwarnings("ignore", "Gradients do not exist")
        samples = measure.interleave(calls, options.loss_rounds)
    memory = {
        name: measure.child("benchmarks.point", {**nets.point(options), "loss": name})["peak_bytes"]
        for name in [_REFERENCE, *(name for name in distillers if name != _REFERENCE)][: options.memory_losses]
    }
    rows = []
    for name in sorted(samples, key=lambda name: np.median(samples[name])):
        found, share = measure.summary(samples[name]), measure.ratio(samples, [name], [_REFERENCE])
        cells = [f"{1e3 * found['median']:.2f}", f"{1e3 * found['iqr']:.2f}", f"{share['median']:.3f}"]
        above = f"{(memory[name] - memory[_REFERENCE]) / 1e6:+,.0f}" if name in memory else "–"
        rows.append([name, *cells, f"{extra[name]:,}", above])
    rows += [[name, f"skipped: {reason}", "", "", "", ""] for name, reason in skipped.items()]
    note = (
        f"One loss alone with its defaults, {options.loss_teacher} to {options.loss_student}, batch {options.batch},"
        f" {options.loss_rounds} rounds; `ce` and `teacher_free` run no teacher. Memory is the peak of a process of"
        f" its own, less that of {_REFERENCE}: {memory[_REFERENCE] / 1e6:,.0f} MB, with Python, TensorFlow and Keras;"
        f" `crd` keeps two banks for {nets.SAMPLES:,} samples."
    )
    columns = ["loss", "ms", "IQR", f"× {_REFERENCE}", "more trained parameters", f"MB over {_REFERENCE}"]
    return {
        "title": TITLE,
        "tables": [{"title": TITLE, "columns": columns, "rows": rows, "note": note}],
        "claims": [],
        "samples": {name: measure.summary(values) for name, values in samples.items()},
        "peak_bytes": memory,
    }
