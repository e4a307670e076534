"""Plays faults on a real loop and counts what was lost, silent or hung.

    python benchmarks/faults.py --model DIR --workdir runs/faults

DIR is a small model in Hugging Face format, such as stories260k. A run of two
iterations is made once, with copies of its folder at five moments. Each trial takes
such a copy, or a fresh folder, does one thing to it, starts the run's own command, does
what its message says, starts it again, and compares every policy, metric and answer
with the undisturbed run. The same command continues; results.jsonl keeps each trial.

lost: in the end something differs from the undisturbed run. silent: the command ended
with 0, and something differed. hung: it did not end in the time it has.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tpmm_jax
import tpmm_jax.iterate as loop
from tpmm_jax.commands import dispatch
from tpmm_jax.commands import train as command
from tpmm_jax.errors import Stopped
from tpmm_jax.loop import rollouts

CONFIG = """
from tpmm_jax.config import Config, EvaluationConfig, ModelSource, RolloutConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.rewards import PairingConfig, ScorerConfig
from tpmm_jax.steps import TrainConfig


def get_config():
    return Config(
        iterations=2,
        model=ModelSource(source={model!r}, remat=False),
        data=DataConfig(prompts="faults_prompts:prompts", max_prompt_length=16),
        rollout=RolloutConfig(
            prompts_per_iteration=16, samples_per_prompt=3, max_new_tokens=16,
            batch_size=4,
        ),
        scorer=ScorerConfig(name="faults_scorer:score"),
        pairing=PairingConfig(holdout_fraction=0.25),
        reference=ReferenceConfig(rule="learned", fit="adam", steps=6, batch_size=8),
        train=TrainConfig(learning_rate=1e-4, batch_size=4, checkpoint_every=1),
        evaluation=EvaluationConfig(
            num_prompts=8,
            scorers={{"short": "faults_scorer:shortness"}},
            judges={{"short": "faults_judge:judge"}},
        ),
    )
"""
PROMPTS = """
def prompts():
    names = "Tom Lily Ben Mia Sam Anna Max Sue Tim Amy Jack Kate".split()
    things = "a ball.a dog.a red hat.the moon.a boat.the rain".split(".")
    return [f"{n} saw {t}. " for n in names for t in things]
"""
SCORER = """
import time, os


def score(prompts, responses):
    {before}
    found = [[float(sum(c in "aeiou" for c in r)) / 9 for r in rs] for rs in responses]
    {after}
    return {value}


def shortness(prompts, responses):
    return [[-float(len(r)) for r in rs] for rs in responses]
"""
JUDGE = """
def judge(prompts, first, second):
    {before}
    share = [0.5 + 0.5 * ((len(a) < len(b)) - (len(a) > len(b)))
             for a, b in zip(first, second)]
    return {value}
"""
PLAIN = {"before": "pass", "after": "pass", "value": "found"}
# What is compared. data.json, sessions and times differ between equal runs.
RESULTS = (
    "metrics.jsonl", "iterations/*/pairs.jsonl", "iterations/*/rollouts.jsonl",
    "iterations/*/evaluation.jsonl", "iterations/*/judgements.jsonl",
    "iterations/*/summary.json", "iterations/*/reference.json",
)  # fmt: skip
LIMIT = 300.0


class Study:
    """Where the run, its copies and the trials lie."""

    def __init__(self, model: str, workdir: pathlib.Path):
        self.folder = workdir.absolute()
        self.code = self.folder / "code"
        self.code.mkdir(parents=True, exist_ok=True)
        self.config = self.code / "faults_run.py"
        self.config.write_text(CONFIG.format(model=str(pathlib.Path(model).absolute())))
        (self.code / "faults_prompts.py").write_text(PROMPTS)
        self.write()

    def write(self, judge: str = "share", judging: str = "pass", **scorer: str) -> None:
        """Writes the scorer and the judge, as they are or changed."""
        text = SCORER.format(**{**PLAIN, **scorer})
        (self.code / "faults_scorer.py").write_text(text)
        text = JUDGE.format(before=judging, value=judge)
        (self.code / "faults_judge.py").write_text(text)
        for name in ("faults_scorer", "faults_judge", "faults_prompts", "faults_run"):
            sys.modules.pop(name, None)
        shutil.rmtree(self.code / "__pycache__", ignore_errors=True)

    def argv(self, run: pathlib.Path, *more: str) -> list[str]:
        return ["--config", str(self.config), "--workdir", str(run), *more]

    def start(self, run: pathlib.Path, *more: str) -> tuple[int, str]:
        """Returns the exit code of the run's command, in this process, and its text."""
        out = io.StringIO()
        for name in ("faults_scorer", "faults_judge", "faults_prompts", "faults_run"):
            sys.modules.pop(name, None)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                code = command.main(self.argv(run, *more))
            except SystemExit as error:
                code = int(error.code or 0)
            except Exception as error:
                # Not one of the command's own errors: a user sees a traceback.
                code, text = 1, f"{type(error).__name__}: {error}"
                out.write(f"Traceback: {text}")
        return code, out.getvalue()

    def process(self, run: pathlib.Path, *more: str) -> subprocess.Popen[str]:
        """Starts the run's command as a process of its own."""
        # The very package that this process runs.
        root = pathlib.Path(tpmm_jax.__file__).parents[1]
        more_env = {"PYTHONUNBUFFERED": "1", "TPMM_BEGIN_SECONDS": "0"}
        return subprocess.Popen(
            [sys.executable, "-m", "tpmm_jax.train", *self.argv(run, *more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root), **more_env},
        )

    def copy(self, moment: str, name: str) -> pathlib.Path:
        """Returns a trial's folder: a copy of the run at a moment."""
        run = self.folder / "trials" / name
        shutil.rmtree(run, ignore_errors=True)
        if moment != "fresh":
            shutil.copytree(self.folder / "copies" / moment, run)
        return run

    def results(self, run: pathlib.Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for pattern in RESULTS:
            for path in sorted(run.glob(pattern)):
                found[str(path.relative_to(run))] = path.read_bytes()
        lines = (run / "trajectory" / "trajectory.jsonl").read_text().splitlines()
        found["policies"] = [json.loads(line)["digest"] for line in lines]
        return found

    def differing(self, run: pathlib.Path) -> list[str]:
        """Returns the names of what differs from the undisturbed run."""
        try:
            ours = self.results(run)
        except (OSError, ValueError, KeyError) as error:
            return [f"unreadable: {error}"]
        wanted = self.results(self.folder / "copies" / "finished")
        names = sorted(ours.keys() | wanted.keys())
        return [name for name in names if ours.get(name) != wanted.get(name)]

    # ---- the undisturbed run

    def prepare(self) -> None:
        """Makes the run and its copies, unless they are there."""
        copies = self.folder / "copies"
        if (copies / "finished").exists():
            return
        shutil.rmtree(copies, ignore_errors=True)
        run = copies / "making"
        moments = {
            "sampled": (rollouts, "write_records"),
            "paired": (loop, "reference_log_probs"),
            "referenced": (loop, "train"),
            "trained": (loop, "evaluate"),
        }
        for moment, (module, name) in moments.items():
            with stopping_before(module, name):
                code, text = self.start(run)
            assert code == 75, text
            shutil.copytree(run, copies / moment)
        code, text = self.start(run)
        assert code == 0, text
        run.rename(copies / "finished")


@contextlib.contextmanager
def stopping_before(module: Any, name: str) -> Any:
    """Stops the run where iteration 2 comes to a function."""
    original = getattr(module, name)

    def stop(*args: Any, **options: Any) -> Any:
        first = args[0] if name == "write_records" else args[3]
        if str(first).endswith("002/pairs.jsonl") or first == 2:
            raise Stopped("stopped for a copy")
        return original(*args, **options)

    setattr(module, name, stop)
    try:
        yield
    finally:
        setattr(module, name, original)


# ---- damage


def edit_line(path: pathlib.Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a line in the middle of a file of records."""
    lines = path.read_text().splitlines()
    row = json.loads(lines[len(lines) // 2])
    change(row)
    lines[len(lines) // 2] = json.dumps(row, ensure_ascii=False)
    path.write_text("\n".join(lines) + "\n")


def lose_line(path: pathlib.Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    del lines[len(lines) // 2]
    path.write_text("".join(lines))


def lose_last_line(path: pathlib.Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def tear_line(path: pathlib.Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    middle = len(lines) // 2
    lines[middle] = lines[middle][: len(lines[middle]) // 2] + "\n"
    path.write_text("".join(lines))


def break_utf8(path: pathlib.Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff\xfe" + data[len(data) // 2 + 2 :])


def swap_sides(path: pathlib.Path) -> None:
    def swap(row: dict[str, Any]) -> None:
        row["chosen_ids"], row["rejected_ids"] = row["rejected_ids"], row["chosen_ids"]

    edit_line(path, swap)


def negate_rewards(path: pathlib.Path) -> None:
    edit_line(path, lambda row: row.update(rewards=[-r - 1 for r in row["rewards"]]))


def move_values(path: pathlib.Path) -> None:
    with np.load(path) as arrays:
        found = {name: np.array(arrays[name]) for name in arrays.files}
    for array in found.values():
        if array.dtype.kind == "f":
            array += 0.5
    with path.open("wb") as file:
        np.savez(file, **found)  # type: ignore[arg-type]


def change_number(name: str, value: Any) -> Callable[[pathlib.Path], None]:
    def change(path: pathlib.Path) -> None:
        found = json.loads(path.read_text())
        found[name] = value
        path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")

    return change


def change_token(path: pathlib.Path) -> None:
    """Swaps two tokens of the vocabulary."""
    found = json.loads(path.read_text())
    table = found["model"]["vocab"]
    if isinstance(table, list):
        table[-1][0], table[-2][0] = table[-2][0], table[-1][0]
    else:
        a, b = list(table)[-2:]
        table[a], table[b] = table[b], table[a]
    path.write_text(json.dumps(found))


def remove(path: pathlib.Path) -> None:
    path.unlink()


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


IT = "iterations/002"
# Fault: the moment of the copy, the file, what happens to it.
DAMAGE: dict[str, tuple[str, str, Callable[[pathlib.Path], None]]] = {
    "rollouts.jsonl: rewards negated": (
        "sampled",
        f"{IT}/rollouts.jsonl",
        negate_rewards,
    ),
    "rollouts.jsonl: a line lost": ("sampled", f"{IT}/rollouts.jsonl", lose_line),
    "rollouts.jsonl: a line torn": ("sampled", f"{IT}/rollouts.jsonl", tear_line),
    "rollouts.jsonl: not UTF-8": ("sampled", f"{IT}/rollouts.jsonl", break_utf8),
    "pairs.jsonl: ids swapped": ("paired", f"{IT}/pairs.jsonl", swap_sides),
    "pairs.jsonl: a line lost": ("paired", f"{IT}/pairs.jsonl", lose_line),
    "pairs.jsonl: a line torn": ("paired", f"{IT}/pairs.jsonl", tear_line),
    "pairs.jsonl: not UTF-8": ("paired", f"{IT}/pairs.jsonl", break_utf8),
    "pairs.jsonl: emptied": ("paired", f"{IT}/pairs.jsonl", empty),
    "reference_logps.npz: values moved": (
        "referenced",
        f"{IT}/reference_logps.npz",
        move_values,
    ),
    "reference.json: weights changed": (
        "referenced",
        f"{IT}/reference.json",
        change_number("weights", [[0.9, 0.1]]),
    ),
    "evaluation.jsonl of theta_1: rewards": (
        "trained",
        "iterations/001/evaluation.jsonl",
        negate_rewards,
    ),
    "evaluation.jsonl of theta_1: a line lost": (
        "trained",
        "iterations/001/evaluation.jsonl",
        lose_line,
    ),
    "judgements.jsonl of theta_1: a line lost": (
        "trained",
        "iterations/001/judgements.jsonl",
        lose_line,
    ),
    "summary.json of theta_1: reward changed": (
        "trained",
        "iterations/001/summary.json",
        change_number("reward/mean", 9.0),
    ),
    "model/config.json: rms_norm_eps": (
        "paired",
        "model/config.json",
        change_number("rms_norm_eps", 0.1),
    ),
    "model/tokenizer.json: two tokens swapped": (
        "paired",
        "model/tokenizer.json",
        change_token,
    ),
    "model/tokenizer.json missing": ("paired", "model/tokenizer.json", remove),
    "summary.json of iteration 1 removed": (
        "finished",
        "iterations/001/summary.json",
        remove,
    ),
    "metrics.jsonl: a line torn": ("finished", "metrics.jsonl", tear_line),
    "metrics.jsonl: a line lost": ("finished", "metrics.jsonl", lose_line),
    "trajectory.jsonl: last line lost": (
        "finished",
        "trajectory/trajectory.jsonl",
        lose_last_line,
    ),
}
FIX = re.compile(r"`tpmm (repair [^`]*)`")


def play_damage(study: Study, fault: str, trial: int) -> dict[str, Any]:
    """A file that changes under a run: refused, mended by the message, and equal."""
    moment, file, damage = DAMAGE[fault]
    run = study.copy(moment, "damage")
    good = run / file
    kept = good.read_bytes()
    damage(good)
    code, text = study.start(run)
    silent, mended = code == 0 and bool(study.differing(run)), "nothing"
    code_2 = code
    if code != 0:
        # What the message advises; else the last resort, a copy of the file.
        advice = FIX.search(text)
        if advice is not None:
            mended = f"tpmm {advice[1]}".replace(str(run), "RUN")
            with contextlib.redirect_stdout(io.StringIO()):
                dispatch.main(shlex.split(advice[1]))
        else:
            mended = "copy put back"
            good.write_bytes(kept)
        code_2, _ = study.start(run)
    differing = study.differing(run)
    return {
        "lost": bool(differing), "silent": silent, "hung": False, "exit": code,
        "then": code_2, "mended": mended, "traceback": "Traceback" in text,
        "differing": differing[:3], "said": "" if code == 0 else last_words(text),
    }  # fmt: skip


def last_words(text: str) -> str:
    return " ".join(text.split())[-300:]


# ---- scorers


HOSTILE = {
    "scorer sorts its responses": {"after": "[rs.sort() for rs in responses]"},
    "scorer strips its responses": {
        "after": "[rs.__setitem__(slice(None), [r.strip()[:1] for r in rs]) "
        "for rs in responses]"
    },
    "scorer empties its arguments": {"after": "responses.clear(); prompts.clear()"},
    "judge sorts its answers": {"judge": "(share, first.sort(), second.reverse())[0]"},
}
EDITED = {
    "scorer edited: negated": {"value": "[[-x for x in xs] for xs in found]"},
    "scorer edited: a constant": {"value": "[[x + 0.25 for x in xs] for xs in found]"},
    "judge edited: the other way round": {"judge": "[1 - s for s in share]"},
}


def play_hostile(study: Study, fault: str, trial: int) -> dict[str, Any]:
    """A function that changes its arguments: the run is that of one that does not."""
    run = study.copy("fresh", "hostile")
    study.write(**HOSTILE[fault])
    code, _ = study.start(run)
    study.write()
    differing = study.differing(run)
    return {
        "lost": bool(differing), "silent": code == 0 and bool(differing),
        "hung": False, "exit": code, "differing": differing[:3],
    }  # fmt: skip


def play_edited(study: Study, fault: str, trial: int) -> dict[str, Any]:
    """A function that changed since the run began: refused; as it was, it goes on."""
    run = study.copy("trained" if "judge" in fault else "paired", "edited")
    study.write(**EDITED[fault])
    code, text = study.start(run)
    silent = code == 0
    study.write()
    code_2, _ = study.start(run)
    differing = study.differing(run)
    return {
        "lost": bool(differing), "silent": silent, "hung": False, "exit": code,
        "then": code_2, "differing": differing[:3], "said": last_words(text),
    }  # fmt: skip


# ---- functions that hang, and signals


def asleep(file: str, batch: str) -> str:
    """Code that sleeps for ever while a file is there.

    Args:
      batch: "==" for the loop's batches of 4 prompts, "!=" for the first try.
    """
    sleep = "(print('asleep', flush=True), time.sleep(9**9))"
    when = f"os.path.exists({file!r}) and len(prompts) {batch} 4"
    return f"({when} and {sleep})"


# Where the signal comes: the copy, a text of the output, the seconds that it may take.
SIGNALS: dict[str, tuple[str, str, float]] = {
    "SIGTERM in imports": ("fresh", "", 5.0),
    "SIGTERM while the scorer is tried": ("fresh", "asleep", 5.0),
    "SIGTERM in a compilation": ("fresh", "evaluate theta_0", 6.0),
    "SIGTERM in sampling": ("fresh", "iteration 1: sample", 60.0),
    "SIGTERM in a scorer asleep for ever": ("fresh", "asleep", 5.0),
    "SIGTERM in training": ("referenced", "iteration 2: DPO", 60.0),
    "SIGTERM in the evaluation": ("trained", "iteration 2: evaluate", 60.0),
    "two signals in a scorer asleep": ("fresh", "asleep", 2.0),
    "two signals while the scorer is tried": ("fresh", "asleep", 5.0),
}


def play_signal(study: Study, fault: str, trial: int) -> dict[str, Any]:
    """SIGTERM: 75 in the time it has, and the same command ends as if undisturbed."""
    moment, wanted, limit = SIGNALS[fault]
    run = study.copy(moment, "signal")
    mark = study.folder / "sleep-now"
    if wanted == "asleep":
        mark.write_text("")
        study.write(before=asleep(str(mark), "!=" if "tried" in fault else "=="))
    process = study.process(run)
    text = wait_for(process, wanted, trial)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    if fault.startswith("two"):
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
    try:
        more, _ = process.communicate(timeout=LIMIT)
        hung = False
    except subprocess.TimeoutExpired:
        process.kill()
        more, _ = process.communicate()
        hung = True
    seconds = time.monotonic() - began
    if "its state is saved" in more:
        limit = 60.0  # it came to a boundary
    mark.unlink(missing_ok=True)
    study.write()
    code, _ = study.start(run)
    differing = study.differing(run)
    return {
        "lost": bool(differing), "silent": process.returncode == 0,
        "hung": hung or seconds > limit, "exit": process.returncode, "then": code,
        "seconds": round(seconds, 1), "differing": differing[:3],
        "said": last_words(text + more),
    }  # fmt: skip


def wait_for(process: subprocess.Popen[str], wanted: str, trial: int) -> str:
    """Reads what a process says up to a text, and a moment more."""
    rng, text = random.Random(trial), ""
    if wanted == "":
        # Python's own start cannot be caught; its imports take seconds.
        time.sleep(0.5 + 1.5 * rng.random())
        return text
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        if wanted in line:
            break
    time.sleep(0.3 * rng.random())
    return text


def play_time_out(study: Study, fault: str, trial: int) -> dict[str, Any]:
    """A function that sleeps for ever ends by its time-out, and the run goes on."""
    run = study.copy("fresh", "time-out")
    mark = study.folder / "sleep-now"
    mark.write_text("")
    sleeping, option = asleep(str(mark), "=="), "scorer.timeout=3"
    if "judge" in fault:
        sleeping = "import os, time; " + sleeping
        study.write(judging=sleeping)
        option = "evaluation.timeout=3"
    else:
        study.write(before=sleeping)
    began = time.monotonic()
    code, text = study.start(run, "--set", option)
    seconds = time.monotonic() - began
    mark.unlink()
    study.write()
    code_2, _ = study.start(run)
    differing = study.differing(run)
    return {
        "lost": bool(differing), "silent": code == 0, "hung": seconds > 120,
        "exit": code, "then": code_2, "seconds": round(seconds, 1),
        "differing": differing[:3], "said": last_words(text),
    }  # fmt: skip


TIME_OUTS = ("scorer asleep for ever: time-out", "judge asleep for ever: time-out")
PLAYS: tuple[tuple[str, Any, Callable[..., dict[str, Any]]], ...] = (
    ("B9", HOSTILE, play_hostile),
    ("B10", EDITED, play_edited),
    ("B11", TIME_OUTS, play_time_out),
    ("B11", SIGNALS, play_signal),
    ("C12, C13", DAMAGE, play_damage),
)


def table(results: list[dict[str, Any]]) -> str:
    """Returns the counts by fault, as Markdown."""
    rows: dict[str, collections.Counter[str]] = {}
    exits: dict[str, set[str]] = collections.defaultdict(set)
    for one in results:
        counts = rows.setdefault(one["fault"], collections.Counter())
        counts["trials"] += 1
        for name in ("lost", "silent", "hung"):
            counts[name] += bool(one[name])
        exits[one["fault"]].add(str(one["exit"]))
    lines = ["| fault | trials | lost | silent | hung | exit code |"]
    lines.append("|---|" + "---:|" * 5)
    for fault, counts in rows.items():
        numbers = [counts[name] for name in ("trials", "lost", "silent", "hung")]
        codes = ", ".join(sorted(exits[fault]))
        lines.append(f"| {fault} | {' | '.join(map(str, numbers))} | {codes} |")
    return "\n".join(lines)


def main() -> None:
    """Plays what has not been played, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a model's directory")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--trials", type=int, default=2, help="of each signal")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    args = parser.parse_args()
    study = Study(args.model, args.workdir)
    study.prepare()
    path = study.folder / "results.jsonl"
    text = path.read_text() if path.exists() else ""
    results = [json.loads(line) for line in text.splitlines()]
    done = {(one["fault"], one["trial"]) for one in results}
    for item, faults, play in PLAYS:
        for fault in faults:
            for trial in range(args.trials if play is play_signal else 1):
                if (fault, trial) in done or args.only not in fault:
                    continue
                study.write()
                found = play(study, fault, trial)
                one = {"item": item, "fault": fault, "trial": trial, **found}
                with path.open("a") as file:
                    file.write(json.dumps(one) + "\n")
                print(json.dumps(one), file=sys.stderr, flush=True)
                results.append(one)
    print(table(results))


if __name__ == "__main__":
    main()
