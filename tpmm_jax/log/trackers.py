"""Metric rows for Weights & Biases and MLflow, through their own clients.

Each client is set up as its own documentation says (WANDB_PROJECT, WANDB_MODE,
MLFLOW_TRACKING_URI, ...); projects and experiments that are not named are called
tpmm_jax. tracking.json in the run's folder holds which run of theirs is this one, and
how many rows it was sent, so that a run that is continued goes on there too.
"""

import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from tpmm_jax.config import Config, RewardConfig, flatten, to_dict
from tpmm_jax.config.fields import ReportTo
from tpmm_jax.errors import BadInput
from tpmm_jax.hosts import once
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import MetricsLog
from tpmm_jax.log.points import Numbering, Points
from tpmm_jax.log.tensorboard import TensorBoard
from tpmm_jax.store.files import read_json, write_json

RECORD, PROJECT = "tracking.json", "tpmm_jax"
# Sent along at the end, where they are there.
ATTACHED = ("config.json", "report.html")
_SECONDS = 15.0
# That the end of a run waits for what was not sent.
FINISH_SECONDS = 120.0


@runtime_checkable
class Client(Protocol):
    """A run of a tracking service."""

    run_id: str
    # Where a person finds it.
    place: str

    def send(self, points: Points, number: int, when: float) -> None:
        """Takes a row's numbers; they may wait for ``flush``.

        Args:
          number: of the row, larger than that of any before.
          when: seconds since the epoch.
        """

    def flush(self) -> None:
        """Sends what waits."""

    def attach(self, path: pathlib.Path) -> None:
        """Stores a file with the run."""

    def finish(self, failed: bool) -> None:
        """Ends the run, which may go on later."""


class WandbClient:
    """A run of Weights & Biases.

    Args:
      workdir: the run's folder, which names the run and holds the client's own files.
      config: of the run, flat.
      run_id: of the run to go on with; None: a new one.
    """

    def __init__(
        self, workdir: pathlib.Path, config: Mapping[str, Any], run_id: str | None
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", workdir.name),
            dir=workdir,
            id=run_id,
            resume="allow",
            config=dict(config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self.run_id = self._run.id
        offline = f"offline, in {workdir}/wandb: wandb sync"
        self.place = offline if self._run.offline else self._run.url
        self._axes: set[str] = set()

    @staticmethod
    def check() -> None:
        """Raises an error of the client's unless it can start."""
        import wandb

        if wandb.setup().settings.mode in ("offline", "dryrun"):
            return
        if not wandb.login(prompt=False):
            raise RuntimeError(
                "it is not logged in: run `wandb login`, or set WANDB_MODE=offline"
            )

    def send(self, points: Points, number: int, when: float) -> None:
        axis = f"{points.tag}/step"
        if axis not in self._axes:
            self._axes.add(axis)
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{points.tag}/*", step_metric=axis)
        values = {f"{points.tag}/{name}": x for name, x in points.values.items()}
        self._run.log({**values, axis: points.step}, step=number)

    def flush(self) -> None:
        """Its own process sends as it can."""

    def attach(self, path: pathlib.Path) -> None:
        # Its own copy: it would link to what the run still changes.
        copy = shutil.copy(path, self._run.dir)
        self._run.save(copy, base_path=self._run.dir, policy="now")

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


class MlflowClient:
    """A run of MLflow.

    Args:
      workdir: the run's folder, which names the run.
      config: of the run, flat.
      run_id: of the run to go on with; None: a new one.
    """

    def __init__(
        self, workdir: pathlib.Path, config: Mapping[str, Any], run_id: str | None
    ) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        # Training waits for it: it gives up in seconds, not in minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self._client, self._metric = mlflow.MlflowClient(), Metric
        self._waiting: list[Any] = []
        self.place = mlflow.get_tracking_uri()
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            home = (
                found.experiment_id if found else self._client.create_experiment(name)
            )
            run_id = self._client.create_run(home, run_name=workdir.name).info.run_id
            params = [Param(_plain(key), str(value)) for key, value in config.items()]
            # As many as a request may hold.
            for start in range(0, len(params), 100):
                self._client.log_batch(run_id, params=params[start : start + 100])
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    @staticmethod
    def check() -> None:
        """Raises an error of the client's unless it can start."""
        import mlflow

        try:
            mlflow.MlflowClient().get_experiment_by_name(PROJECT)
        except Exception as error:
            if "MLFLOW_TRACKING_URI" in os.environ:
                raise
            raise RuntimeError(
                "MLFLOW_TRACKING_URI is not set; it is a server's address, such as "
                f"http://localhost:5000 (a local database needs all of mlflow: {error})"
            ) from error

    def send(self, points: Points, number: int, when: float) -> None:
        self._waiting += [
            self._metric(
                _plain(f"{points.tag}/{name}"), x, int(when * 1e3), points.step
            )
            for name, x in points.values.items()
        ]

    def flush(self) -> None:
        while self._waiting:
            # As many as a request may hold.
            self._client.log_batch(self.run_id, metrics=self._waiting[:1000])
            del self._waiting[:1000]

    def attach(self, path: pathlib.Path) -> None:
        self._client.log_artifact(self.run_id, str(path))

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self.run_id, "KILLED" if failed else "FINISHED")


def _plain(name: str) -> str:
    """Returns a name without what MLflow's may not hold."""
    return re.sub(r"[^\w\-./ ]", "_", name)


CLIENTS: dict[str, Any] = {"wandb": WandbClient, "mlflow": MlflowClient}


class Tracker:
    """Sends the rows of a run that were not sent before.

    A service that fails does not fail the run: it is said once, and what was not sent
    is sent at the next start.

    Args:
      name: of the service.
      workdir: the run's folder.
      config: of the run, flat.
    """

    def __init__(
        self,
        name: str,
        workdir: pathlib.Path,
        config: Mapping[str, Any],
        console: RunConsole,
    ) -> None:
        self._name, self._workdir, self._config = name, workdir, config
        self._console = console
        self._client: Client | None = None

    def open(self) -> None:
        self._record = _read_record(self._workdir).get(self._name, {})
        make = CLIENTS[self._name]
        try:
            client: Client = make(self._workdir, self._config, self._record.get("run"))
        except Exception as error:
            raise _refusal(self._name, error) from error
        self._client = client
        self._console.note(f"{self._name}: {client.place}")
        self._number = self._record.get("number", 0)
        self._keep(run=client.run_id)
        self.begin()

    def _keep(self, **changes: Any) -> None:
        """Writes what was sent: rows of each kind, and the number of the last."""
        self._record |= changes
        path = self._workdir / RECORD
        write_json(path, _read_record(self._workdir) | {self._name: self._record})

    def begin(self) -> None:
        self._numbering = Numbering()
        self._seen = {"metrics": 0, "timing": 0}
        self._digest = hashlib.sha256()
        self._flushed = time.monotonic()

    def add(self, row: Mapping[str, Any], *, prefix: str = "", when: float) -> None:
        # The numbering counts rows that were sent before, too.
        points = self._numbering.points(row, prefix)
        part = "timing" if prefix else "metrics"
        self._seen[part] += 1
        if not prefix:
            self._digest.update(repr(points).encode())
        if self._seen[part] <= self._record.get(part, 0):
            self._check_sent()
            return
        if points.values:
            self._number += 1
            number = self._number
            self._try(lambda client: client.send(points, number, when))
        if time.monotonic() - self._flushed > _SECONDS:
            self.flush()

    def _check_sent(self) -> None:
        """Says so where what was sent is no longer what the run holds."""
        was = self._record.get("digest")
        last = self._seen["metrics"] == self._record.get("metrics", 0)
        if not last or was in (None, self._digest.hexdigest()):
            return
        self._record.pop("digest")
        self._console.warn(
            f"rows that {self._name} was sent have changed since, and it keeps them as "
            f"they were; to begin a new run there, remove {self._workdir / RECORD}"
        )

    def flush(self) -> None:
        self._flushed = time.monotonic()
        # What the disk holds has not all been seen again yet.
        again = self._seen["metrics"] < self._record.get("metrics", 0)
        if self._try(lambda client: client.flush()) is None or again:
            return
        counts = {n: max(x, self._record.get(n, 0)) for n, x in self._seen.items()}
        digest = self._digest.hexdigest()
        self._keep(**counts, number=self._number, digest=digest)

    end = flush

    def close(self, failed: bool) -> None:
        self.flush()
        for name in ATTACHED:
            if (path := self._workdir / name).exists():
                self._try(lambda client, path=path: client.attach(path))
        self._try(lambda client: client.finish(failed))
        self._client = None

    def _try(self, act: Callable[[Client], None]) -> Client | None:
        """Returns the client, if it works and did what was asked."""
        if self._client is not None:
            try:
                act(self._client)
            except Exception as error:
                self._client = None
                self._console.warn(
                    f"{self._name} fails, and gets no more of this run until the next "
                    f"start: {type(error).__name__}: {error}"
                )
        return self._client


def _read_record(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / RECORD
    return read_json(path) if path.exists() else {}


def _refusal(name: str, error: Exception) -> BadInput:
    return BadInput(
        f"report_to {name!r} cannot be used: {error}; leave it out, or set {name} up"
    )


def open_log(
    workdir: pathlib.Path, config: Config | RewardConfig, console: RunConsole
) -> MetricsLog:
    """Opens a run's metrics, mirrored by TensorBoard and by what report_to names.

    Raises:
      BadInput: a service that refuses, or as ``MetricsLog``.
    """
    settings = flatten(to_dict(config))
    trackers = [
        Tracker(name, workdir, settings, console) for name in _names(config.report_to)
    ]
    board = TensorBoard(workdir / "tensorboard")
    return MetricsLog(workdir, mirrors=[board, *trackers])


def check_trackers(report_to: ReportTo) -> None:
    """Refuses services that are not installed or cannot be reached.

    Raises:
      BadInput: names the extra to install, or what the client said.
    """
    once(lambda: _check(_names(report_to)), "check trackers")


def _check(names: Sequence[str]) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise BadInput(
                f"report_to names {name!r}, which is not installed: "
                f'pip install "tpmm_jax[{name}]"'
            )
        try:
            CLIENTS[name].check()
        except Exception as error:
            raise _refusal(name, error) from error


def _names(report_to: ReportTo) -> list[str]:
    names = [report_to] if isinstance(report_to, str) else dict.fromkeys(report_to)
    off = {"wandb"} if os.environ.get("WANDB_MODE") == "disabled" else set()
    return [name for name in names if name not in off]
