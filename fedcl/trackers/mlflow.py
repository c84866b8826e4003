"""MLflow: a SQLite store in RUN/tracking, or where MLFLOW_TRACKING_URI points.

`mlflow ui --backend-store-uri sqlite:///RUN/tracking/mlflow.db` shows it.
"""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Mapping

from fedcl.contracts import Tracked, Tracker

_BATCH = 1000  # figures that MLflow takes at once
_STATES = {"finished": "FINISHED", "failed": "FAILED"}  # anything else can go on


class MLflow(Tracker):
    """One MLflow run for the whole run, over all its sittings.

    Args:
        run: what is tracked.
        experiment: name of the MLflow experiment.
    """

    needs = "mlflow"

    def __init__(self, run: Tracked, experiment: str = "fedcl") -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when it is imported
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what MLflow itself uses
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param

            logging.getLogger("mlflow").setLevel(logging.WARNING)
            home = run.folder.resolve()
            given = os.environ.get("MLFLOW_TRACKING_URI", "")
            self._client = MlflowClient(tracking_uri=given or f"sqlite:///{home / 'mlflow.db'}")
            self._metric = Metric
            self.id = run.id
            if run.id:
                self._client.update_run(run.id, status="RUNNING")
                return
            found = self._client.get_experiment_by_name(experiment)
            place = None if given else (home / "mlflow").as_uri()
            number = found.experiment_id if found else self._client.create_experiment(experiment, place)
            self.id = self._client.create_run(number, run_name=run.name).info.run_id
            params = [Param(_allowed(name), value[:6000]) for name, value in run.settings.items()]
            for start in range(0, len(params), 100):
                self._client.log_batch(self.id, params=params[start : start + 100])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Metrics of these names."""
        now = int(1000 * time.time())
        metrics = [self._metric(_allowed(name), value, now, step) for name, value in figures.items()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for start in range(0, len(metrics), _BATCH):
                self._client.log_batch(self.id, metrics=metrics[start : start + _BATCH])

    def end(self, state: str) -> None:
        """Close the MLflow run."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._client.set_terminated(self.id, _STATES.get(state, "KILLED"))


def _allowed(name: str) -> str:
    """A name as MLflow takes it: letters, digits, `_`, `-`, `.`, `/` and spaces."""
    return re.sub(r"[^\w\-./ ]", "_", name)
