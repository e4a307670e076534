"""report.html: one file that opens anywhere, without a network or a script."""

import os
import pathlib
from collections.abc import Sequence

import jinja2

from tpmm_jax.config import RewardConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.log.rewards import failure
from tpmm_jax.report import compare, facts, reward, watched
from tpmm_jax.report.figures import DASHES, PALETTE, SERIES, printable, theta
from tpmm_jax.report.gather import RunData, read_run
from tpmm_jax.report.judges import judge_sections
from tpmm_jax.report.margins import margin_sections
from tpmm_jax.report.panels import Section, sections
from tpmm_jax.report.samples import common_samples, run_samples
from tpmm_jax.report.settings import differences, settings
from tpmm_jax.store.files import write_text

NAME = "report.html"
# Sample answers of more runs would be too narrow to read.
_RUNS_WITH_SAMPLES = 4
# All but tab and line breaks.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10, 13}, "�")


def write_report(
    workdirs: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Writes the page of one run, or the comparison of several; whole or not at all.

    What a run has not (yet) recorded is left out, or said to be missing.

    Args:
      workdirs: folders of runs; nothing in them is changed but the page.
      path: of the page; by default WORKDIR/report.html of one run, else report.html.

    Returns:
      The page's path.

    Raises:
      BadInput, CorruptCheckpoint: a folder is not a run, or a file of it is damaged;
        names the file, and the line where it has lines.
      StorageError: the page cannot be written.
    """
    if path is not None and pathlib.Path(path).is_dir():
        raise BadInput(f"{path} is a folder; wanted a file to write, such as page.html")
    folders = [pathlib.Path(workdir) for workdir in workdirs]
    runs = [read_run(f, label) for f, label in zip(folders, labels(folders))]
    if path is None:
        path = folders[0] / NAME if len(runs) == 1 else pathlib.Path(NAME)
    rewards = [run for run in runs if reward.is_reward_run(run)]
    if rewards and len(runs) > 1:
        raise BadInput(
            f"{rewards[0].workdir} is a run of tpmm train_reward, and a comparison is "
            "of policies; make its page alone: tpmm report WORKDIR"
        )
    page = reward_page if rewards else run_page
    html = page(runs[0]) if len(runs) == 1 else comparison_page(runs)
    write_html(path, html)
    return pathlib.Path(path)


def write_html(path: str | os.PathLike[str], html: str) -> None:
    """Writes a page; whole or not at all.

    A response may hold half of a surrogate pair, which no encoding has, and control
    codes, which HTML has not.
    """
    html = html.translate(_CONTROLS)
    write_text(path, html.encode("utf-8", "replace").decode())


def labels(folders: Sequence[pathlib.Path]) -> list[str]:
    """Returns the shortest different names of folders: their last parts."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len({*parts}):
            break
    seen: dict[str, int] = {}
    for at, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:  # the same folder twice
            names[at] = f"{name} ({seen[name]})"
    return names


def run_sections(run: RunData) -> list[Section]:
    """Returns the plots of one run's page."""
    if reward.is_reward_run(run):
        return reward.sections(run, reward.read_rewards(run))
    return [*sections([run]), *judge_sections([run]), *margin_sections([run])]


def run_page(run: RunData) -> str:
    """Returns the page of one run as HTML."""
    return environment().get_template("run.html.jinja").render(
        title=f"{run.label}: {facts.headline(run) or 'report'}",
        run=run,
        sections=run_sections(run),
        samples=run_samples(run),
        settings=settings(run),
    )  # fmt: skip


def reward_page(run: RunData) -> str:
    """Returns the page of a reward run as HTML."""
    found = reward.read_rewards(run)
    return environment().get_template("reward.html.jinja").render(
        title=f"{run.label}: reward model",
        run=run,
        found=found,
        failed=failure(found.summary) if found.summary else "",
        table=reward.table(found),
        compared=reward.compared_table(found),
        compared_note=reward.compared_note(found),
        described=reward.facts(run, found),
        sections=reward.sections(run, found),
        examples=reward.examples(found),
        settings=settings(run, RewardConfig),
    )  # fmt: skip


def comparison_page(runs: Sequence[RunData]) -> str:
    """Returns the page of several runs side by side as HTML."""
    common = compare.last_common(runs)
    few = common is not None and len(runs) <= _RUNS_WITH_SAMPLES
    return environment().get_template("compare.html.jinja").render(
        title=f"Comparison of {len(runs)} runs",
        runs=runs,
        common=common,
        differences=[] if common is None else compare.differences(runs, common),
        sections=[*sections(runs), *judge_sections(runs), *margin_sections(runs)],
        settings=differences(runs),
        samples=common_samples(runs, common) if few and common is not None else [],
    )  # fmt: skip


def environment() -> jinja2.Environment:
    """Returns the templates.

    They escape everything: responses, prompts and names are whatever a model wrote.
    """
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tpmm_jax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        facts=facts,
        watched=watched,
        theta=theta,
        dashes=DASHES,
        series=SERIES,
        palette=PALETTE,
    )
    made.filters["printable"] = printable
    return made
