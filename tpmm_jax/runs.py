"""Runs from Python: ``run`` starts or continues one, ``read_run`` reads it."""

import html
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpmm_jax.commands import train, train_reward
from tpmm_jax.compiling import keep_programs
from tpmm_jax.config import Config, RewardConfig, load_config, set_field
from tpmm_jax.data.records import Rollout
from tpmm_jax.errors import BadInput
from tpmm_jax.hosts import refuse_many
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import HELD_OUT_KIND
from tpmm_jax.report import facts
from tpmm_jax.report.figures import style
from tpmm_jax.report.gather import RunData
from tpmm_jax.report.gather import read_run as read_data
from tpmm_jax.report.page import run_sections, write_report
from tpmm_jax.report.reward import is_reward_run
from tpmm_jax.reward_runs.plan import KEPT
from tpmm_jax.stopping import signals_left_alone
from tpmm_jax.weights.hub import TRAJECTORY
from tpmm_jax.weights.kept import LEARNED, held_steps
from tpmm_jax.weights.loading import load, load_reward
from tpmm_jax.weights.source import Model


def run(
    config: Config | RewardConfig | str | os.PathLike[str],
    workdir: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    compilation_cache: bool = True,
) -> "RunResults":
    """Trains, as tpmm train and tpmm train_reward do; the same call continues a run.

    What it says goes to the standard output. Ctrl-C is a KeyboardInterrupt: what was
    finished by then is kept, and the same call continues.

    >>> found = tpmm.run("configs/quickstart.py", "runs/mine")  # doctest: +SKIP

    Args:
      config: a configuration, or a file with get_config().
      workdir: where the run is kept; by default runs/NAME of the file.
      overrides: "dotted.name=value", as after --set; or a dict of names and values.
      compilation_cache: whether compiled programs are kept in the user's cache and
        used from there; see docs/sharding.md.

    Returns:
      What the run found, as ``read_run`` gives it.

    Raises:
      BadInput, StorageError, CorruptCheckpoint, NotFinite: of tpmm_jax.errors, as the
        commands; nothing expensive starts before the input is checked.
    """
    refuse_many("tpmm.run")
    if isinstance(overrides, Mapping):
        overrides = [f"{name}={_as_text(x)}" for name, x in overrides.items()]
    made: Any = config
    if isinstance(config, str | os.PathLike):
        workdir = workdir or f"runs/{pathlib.Path(config).stem}"
        made = load_config(config, overrides, kind=None)
    else:
        for override in overrides:
            made = set_field(made, override)
    if workdir is None:
        raise BadInput("workdir is missing: give the folder where the run is kept")
    folder, console = pathlib.Path(workdir), RunConsole()
    if compilation_cache:
        keep_programs()
    with signals_left_alone():
        if isinstance(made, RewardConfig):
            train_reward.run(made, folder, console)
        else:
            train.run(made, folder, console)
    return read_run(folder)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_run(workdir: str | os.PathLike[str]) -> "RunResults":
    """Reads the folder of a run, of tpmm train or train_reward; it may still go on.

    >>> found = tpmm.read_run("runs/mine")  # doctest: +SKIP
    >>> found.evaluations[-1]["reward/mean"]  # doctest: +SKIP

    Raises:
      BadInput, CorruptCheckpoint: it is not a run, or a file of it is damaged.
    """
    return RunResults(read_data(workdir))


@dataclass(frozen=True, repr=False)
class Figure:
    """A plot of a run, as its report has it.

    Attributes:
      title, note: above and below it.
      keys: labels of its series, in order; empty where there is one.
      svg: an <svg> element.
    """

    title: str
    note: str
    keys: Sequence[str]
    svg: str

    def __repr__(self) -> str:
        return f"Figure({self.title!r})"

    def _repr_html_(self) -> str:
        keys = " ".join(
            f'<b style="color: {style(i)["color"]}">&#9632;</b> {html.escape(key)}'
            for i, key in enumerate(self.keys)
            if key
        )
        return (
            '<figure style="max-width: 36rem; margin: 0 0 1rem">'
            f"<b>{html.escape(self.title)}</b><div>{keys}</div>{self.svg}"
            f"<figcaption><small>{html.escape(self.note)}</small></figcaption></figure>"
        )


@dataclass(frozen=True, repr=False)
class RunResults:
    """What a run's folder holds.

    Attributes:
      data: the rows and files, as the report reads them.
    """

    data: RunData

    @property
    def workdir(self) -> pathlib.Path:
        return self.data.workdir

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration that the run began with, nested."""
        return self.data.config

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every row of metrics.jsonl, in order; docs/runs.md says what they hold."""
        return [_plain(row) for row in self.data.metrics]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """A row for each evaluated policy, from theta_0 on.

        Of a reward run one for each time that its test sets were measured.
        """
        if is_reward_run(self.data):
            return [row for row in self.metrics if row["kind"] == HELD_OUT_KIND]
        return [_plain(row) for row in self.data.iterations]

    @property
    def warnings(self) -> list[tuple[int, str]]:
        """(iteration, what the reward-hacking watch said), the last one's first."""
        return self.data.warnings()

    @property
    def policies(self) -> list[str]:
        """The names that ``policy`` takes; of a reward run those of its models."""
        if is_reward_run(self.data):
            steps = held_steps(self.workdir, KEPT)[0]
            return [*(f"{KEPT}@{k}" for k in steps), f"{KEPT}@best"]
        steps = held_steps(self.workdir, TRAJECTORY)[0]
        names = [*(f"{TRAJECTORY}@{k}" for k in steps), "policy@last", "policy@mean"]
        return names + ["policy@learned"] * (self.config.get("ship") == LEARNED)

    def policy(self, name: int | str | None = None, **options: Any) -> Model:
        """Loads a policy; of a reward run a reward model.

        Args:
          name: one of ``policies``, what stands behind its @, or a policy's number;
            None: the newest policy, the best reward model.
          options: as of ``tpmm.load``: dtype, mesh.

        Raises:
          BadInput: the run has no policy of that name.
        """
        rewards, known = is_reward_run(self.data), self.policies
        wanted = ("best" if rewards else "last") if name is None else str(name)
        found = [full for full in known if wanted in (full, full.partition("@")[2])]
        if not found:
            raise BadInput(
                f"{self.workdir} has no policy {name!r}; there are {', '.join(known)}"
            )
        read = load_reward if rewards else load
        return read(self.workdir / found[0], **options)

    def samples(self, iteration: int, of_set: str = "") -> list[Rollout]:
        """The answers that theta_iteration was evaluated on; [] if there are none.

        Args:
          of_set: a further set of prompts (evaluation.sets).
        """
        return self.data.samples(iteration, of_set)

    @property
    def figures(self) -> dict[str, Figure]:
        """The report's plots by title."""
        return {
            panel.title: Figure(panel.title, panel.note, panel.keys, str(panel.svg))
            for section in run_sections(self.data)
            for panel in section.panels
        }

    def report(self) -> pathlib.Path:
        """Writes report.html; returns its path."""
        return write_report([self.workdir])

    def __repr__(self) -> str:
        said = [f"{title} {value}" for title, value, _ in facts.tiles(self.data)[:2]]
        return f"RunResults({str(self.workdir)!r}: {', '.join([self._count(), *said])})"

    def _repr_html_(self) -> str:
        tiles = "".join(
            f"<tr><td>{html.escape(title)}</td><td><b>{html.escape(value)}</b></td>"
            f"<td>{html.escape(note)}</td></tr>"
            for title, value, note in facts.tiles(self.data)
        )
        warned = "".join(
            f"<li>theta_{t}: {html.escape(text)}</li>" for t, text in self.warnings
        )
        return (
            f"<b>{html.escape(str(self.workdir))}</b>, {self._count()}"
            f"<table>{tiles}</table><ul>{warned}</ul>"
        )

    def _count(self) -> str:
        count = len(self.evaluations)
        return f"{count} evaluation{'' if count == 1 else 's'}"


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row without what only messages need."""
    return {name: value for name, value in row.items() if not name.startswith("_")}
