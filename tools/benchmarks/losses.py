"""What each loss costs, by itself and with a live teacher, relative to ``kd``."""

import warnings

import numpy as np

from benchmarks import measure, nets

TITLE = "Losses"
_REFERENCE = "kd"


def run(options, done) -> dict:
    """Measures a step with every loss that can be built from its defaults, interleaved; the others are named."""
    distillers, skipped = nets.each_loss(options)
    data = nets.batch(options)
    extra = {
        name: sum(int(np.prod(variable.shape)) for variable in distiller.terms[0].trainable_variables)
        for name, distiller in distillers.items()
    }
    calls = {name: nets.train_call(distiller, data) for name, distiller in distillers.items()}
    with warnings.catch_warnings():
        # A loss on features alone trains no last layer.
        warnings.filterwarnings("ignore", "Gradients do not exist")
        samples = measure.interleave(calls, options.loss_rounds)
    rows = []
    for name in sorted(samples, key=lambda name: np.median(samples[name])):
        found, share = measure.summary(samples[name]), measure.ratio(samples, [name], [_REFERENCE])
        cells = [f"{1e3 * found['median']:.2f}", f"{1e3 * found['iqr']:.2f}", f"{share['median']:.3f}"]
        rows.append([name, *cells, f"{extra[name]:,}"])
    rows += [[name, f"skipped: {reason}", "", "", ""] for name, reason in skipped.items()]
    note = (
        f"One loss alone with its defaults, {options.loss_teacher} to {options.loss_student}, batch {options.batch},"
        f" {options.loss_rounds} rounds; `ce` runs no teacher."
    )
    columns = ["loss", "ms", "IQR", f"× {_REFERENCE}", "trained parameters"]
    return {
        "title": TITLE,
        "tables": [{"title": TITLE, "columns": columns, "rows": rows, "note": note}],
        "claims": [],
        "samples": {name: measure.summary(values) for name, values in samples.items()},
    }
