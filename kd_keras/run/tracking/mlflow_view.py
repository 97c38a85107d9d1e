"""A view of an experiment for MLflow's page of runs: the figures that matter, and the settings in which runs differ.

MLflow keeps a shared view as a tag of the experiment, which its page reads by ``viewStateShareKey``.
"""

import base64
import json
import zlib

from kd_keras.run.config import Config
from kd_keras.run.settings import declared

#: What an experiment is, for MLflow's pages: without it they show what is for language models.
TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "compare/gain_over_baseline",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
}
_KEY = "kd_keras"
_TAG = f"mlflow.sharedViewState.{_KEY}"
# Runs whose settings are compared; an experiment's latest ones.
_RUNS = 200
_MOST_SETTINGS = 12
# Pixels of a column, and of the runs' names.
_WIDTH, _DATE_WIDTH, _NAME_WIDTH = 225, 150, 260
# Where a run is and who teaches by which folder: they differ in every run and say nothing.
_PLACES = {flag for flag, setting in declared(Config).items() if setting.section in ("run", "tracking")}


def link(writer) -> str:
    """The view's place on an MLflow server; of a writer without a run nothing."""
    return "" if writer.experiment_id is None else f"experiments/{writer.experiment_id}/runs?viewStateShareKey={_KEY}"


def write(client, experiment_id: str, metrics: list[str], changed: list[str]) -> None:
    """Makes the view, or writes it anew after a further run.

    Args:
        client: an `mlflow.MlflowClient`.
        experiment_id: the experiment.
        metrics: names of metrics, the first one first.
        changed: parameters that are not at their default in the run that has just ended, for an experiment of one run.
    """
    runs = client.search_runs([experiment_id], "tags.study != ''", max_results=_RUNS)
    params = [run.data.params for run in runs]
    names = sorted({name for values in params for name in values} - _PLACES)
    differing = [name for name in names if len({values.get(name) for values in params}) > 1]
    shown = (differing if len(params) > 1 else changed)[:_MOST_SETTINGS]
    columns = [f"metrics.`{name}`" for name in metrics] + [f"params.`{name}`" for name in shown]
    fixed = ["attributes.`Run Name`", "runDateAndNestInfo"]
    widths = {**dict.fromkeys(columns, _WIDTH), fixed[0]: _NAME_WIDTH, fixed[1]: _DATE_WIDTH}
    state = {"selectedColumns": columns, "columnOrder": [*fixed, *columns], "columnWidths": widths}
    state["runsHiddenMode"] = "FIRST_20_RUNS"
    text = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    client.set_experiment_tag(experiment_id, _TAG, f"deflate;{text}")
