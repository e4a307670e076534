"""The page holds what the files hold, escapes it, and needs nothing but itself."""

import html.parser
import json
import pathlib
import pickle
import re
import shutil

import full_run
import numpy as np
import pytest

from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.evaluation.intervals import paired_interval
from tpmm_jax.report import figures
from tpmm_jax.report.facts import number_text
from tpmm_jax.report.gather import read_run
from tpmm_jax.report.page import labels, write_report
from tpmm_jax.report.panels import _at_reference
from tpmm_jax.report.samples import run_samples
from tpmm_jax.report.settings import settings

PLOTS = ("by_iteration", "by_step", "frontier", "heat", "histogram", "stacked")
VOID = {"meta", "br", "wbr", "line", "path", "use", "rect"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return full_run.write_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def run(whole, tmp_path):
    return pathlib.Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture(scope="module", autouse=True)
def plots():
    """Draws a plot of the same numbers once: nearly all are on nearly every page."""
    drawn = {}

    def once(name, draw):
        def call(*args, **options):
            key = pickle.dumps((name, args, options))
            if key not in drawn:
                drawn[key] = draw(*args, **options)
            return drawn[key]

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in PLOTS:
            patch.setattr(figures, name, once(name, getattr(figures, name)))
        yield drawn


def page(*workdirs, path=None):
    return write_report(workdirs, path).read_text(encoding="utf-8")


class Structure(html.parser.HTMLParser):
    """Every element closes, and which elements and attributes there are."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def lines_of(run):
    return (run / "metrics.jsonl").read_text().splitlines()


def titles(text):
    return re.findall(r"<figure>\s*<h3>(.*?)</h3>", text)


def test_control_codes_do_not_reach_the_page(run):
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["model"]["source"] = "a\x1b[31m\x00b"
    path.write_text(json.dumps(config))
    for file in run.glob("iterations/*/evaluation.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["prompt"] = f"{row['prompt']}\x1b[2J\x00\x9b"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page(run)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text)
    assert "�[2J��" in text and "�[31m�" in text


def test_the_page_of_a_whole_run_shows_every_part(whole):
    text = page(whole)
    Structure(text)
    for title in (
        "Reward", "Score of fluent", "Reward, film", "Score of fluent, film",
        "Win rate against θ₀", "Win rate against θₜ₋₁", "Win rate against θ₀, film",
        "Reward over KL", "KL", "Merge weights", "Merge weights by layer, iteration 3",
        "Signal-to-rounding of the merge", "Held-out accuracy", "Held-out margin",
        "Margins of held-out pairs", "Log-ratios of held-out responses", "Length",
        "Distinct-n", "Training loss", "Training margin", "Training accuracy",
        "Time by phase",
    ):  # fmt: skip
        assert title in titles(text), title
    last = read_run(whole).last
    assert number_text(last["reward/mean"]) in text
    assert "2 warnings" in text and full_run.WATCH.format(t=3) in text
    assert "30% of the labels" in text
    assert "jax 0.10.2 → 0.11.0" in text and "resumed at iteration 2" in text
    assert "Prompt set film" in text


def test_every_metric_of_the_rows_is_in_the_table(whole):
    text = page(whole).replace("<wbr>", "")
    for name, value in read_run(whole).last.items():
        if name in ("kind", "iteration", "watch", "_line"):
            continue
        if name.endswith(("/low", "/high")):
            continue
        assert f"<code>{name}</code>" in text
        if isinstance(value, float):
            assert f">{number_text(value, 4)}" in text


def test_the_page_needs_no_network_and_runs_no_script(whole):
    text = page(whole)
    found = Structure(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {*found.tags}
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    assert all(target[0] == "#" for target in re.findall(r"url\(([^)]*)\)", text))
    for name, value in found.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "xlink:href"):
            assert value.startswith("#"), value
    assert "default-src 'none'" in text


def test_what_a_model_or_a_user_wrote_is_text(run):
    config = json.loads((run / "config.json").read_text())
    config["model"]["source"] = full_run.HOSTILE
    (run / "config.json").write_text(json.dumps(config))
    for t in (0, 3):
        rows = full_run.sample_rows(np.random.default_rng(0), t, 9)
        for row in rows:
            row["prompt"], row["responses"][0] = full_run.HOSTILE, "\ud800\x00</svg>"
        full_run.write_lines(run / "iterations" / f"{t:03d}" / "evaluation.jsonl", rows)
    metrics = (run / "metrics.jsonl").read_text()
    hostile = json.dumps("<img src=x onerror=y>")[1:-1]
    (run / "metrics.jsonl").write_text(
        metrics.replace("score/fluent", f"score/{hostile}")
    )
    found = Structure(page(run))
    assert not {"script", "img"} & {*found.tags}


def test_a_page_is_the_same_when_it_is_made_again(whole, tmp_path, plots):
    first = page(whole, path=tmp_path / "a.html")
    plots.clear()
    assert first == page(whole, path=tmp_path / "b.html")


def test_colours_are_the_pages_own(whole):
    text = page(whole)
    plots = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    colours = {*re.findall(r"(?:fill|stroke): #[0-9a-f]{3,6}\b", plots)}
    assert len(colours) >= 10
    for colour in colours:  # each has a rule, and its variable a dark value
        (name,) = re.findall(rf'\[style\*="{colour}"\] .*var\((--\w+)\)', text)
        assert name in text.partition("prefers-color-scheme: dark")[2].split("* {")[0]


@pytest.mark.parametrize(
    "missing",
    ["config.json", "metrics.jsonl", "timing.jsonl", "sessions.jsonl", "iterations"],
)
def test_a_missing_part_is_left_out(run, missing):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    Structure(page(run))


def test_iterations_of_an_earlier_scorer_are_named(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    for row in rows:
        if row["kind"] == "iteration" and row["iteration"] in (1, 2):
            row["labels/earlier_scorer"] = 1
    full_run.write_lines(run / "metrics.jsonl", rows)
    first, last = full_run.session_rows()
    first["sources"] = {"scorer.name": "1"}
    last |= {"sources": {"scorer.name": "2"}, "rescored": ["scorer.name"]}
    full_run.write_lines(run / "sessions.jsonl", [first, last])
    text = page(run)
    assert "an earlier version of it labelled iterations 1, 2." in text
    assert "rated again: scorer.name" in text and "the source of scorer.name" in text


def test_a_run_that_has_just_begun(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(full_run.config(3, "learned")))
    text = page(run)
    Structure(text)
    assert "none of 3 finished" in text
    full_run.write_run(run, iterations=0)
    (run / "config.json").write_text(json.dumps(full_run.config(3, "learned")))
    text = page(run)
    assert "0 of 3 finished" in text and "θ₀" in text


def test_an_older_run_and_an_offline_run(run):
    new = ("win/", "distinct", "watch", "score/", "judge/", "film/", "heldout", "/low")
    rows = [json.loads(line) for line in lines_of(run)]
    for row in rows:
        for name in [n for n in row if n.startswith(new) or "kl/theta_0/" in n]:
            del row[name]
    full_run.write_lines(run / "metrics.jsonl", rows)
    (run / "sessions.jsonl").unlink()
    for path in run.glob("iterations/*/held_out.npz"):
        path.unlink()
    text = page(run)
    Structure(text)
    assert "Reward" in titles(text) and "no sessions.jsonl" in text
    for row in rows:
        for name in [n for n in row if n.startswith(("reward/", "kl", "length"))]:
            del row[name]
        row |= {"heldout/accuracy": 0.6} if row["kind"] == "iteration" else {}
    full_run.write_lines(run / "metrics.jsonl", rows)
    for path in run.glob("iterations/*/evaluation*.jsonl"):
        path.unlink()
    text = page(run)
    Structure(text)
    assert "Held-out accuracy" in titles(text) and "Reward" not in titles(text)
    assert "watch looked at nothing" in text and "raised no warning" not in text
    assert "variety and sample answers: nothing was sampled" in text
    for heading in ("Reward", "Distance from θ₀", "Sample answers"):
        assert f"<h2>{heading}" not in text and f">{heading}</a>" not in text


def strip(run, start, keep=()):
    """Takes metrics out of a run's rows."""
    rows = [json.loads(line) for line in lines_of(run)]
    for row in rows:
        for name in [n for n in row if n.startswith(start) and n not in keep]:
            del row[name]
    full_run.write_lines(run / "metrics.jsonl", rows)


def test_as_many_prompts_are_named_as_were_answered(tmp_path):
    # full_run's config asks for 9.
    text = page(full_run.write_run(tmp_path / "run", prompts=5))
    assert "<dd>5 prompts, " in text


def test_answers_without_a_reward_are_shown_without_one(run):
    """An offline run with data.eval_prompts and no scorer."""
    film = ("film/reward", "film/win", "film/score", "film/judge")
    strip(run, ("reward/", "win/", "score/", "judge/", "watch", *film))
    for path in run.glob("iterations/*/evaluation*.jsonl"):
        rows = [json.loads(line) for line in path.open()]
        for row in rows:
            del row["rewards"]
        full_run.write_lines(path, rows)
    text = page(run)
    Structure(text)
    for title in ("KL", "Length", "Distinct-n", "Length, film"):
        assert title in titles(text)
    assert "there was answer 0 of policy 3" in text and "<span>reward" not in text
    assert "raised no warning. It looked at KL and length. No scorer rated" in text
    assert "reward and win rates: no scorer rated the answers" in text
    assert "greatest" not in text


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ((), "It looked at KL, length and the reward beside independent measures. <"),
        (
            ("score/", "judge/", "film/score", "film/judge"),
            "It looked at KL and length. No further scorer or judge rated the answers",
        ),
    ],
)
def test_what_the_watch_could_not_see_is_said(run, gone, said):
    strip(run, ("watch", *gone))
    assert said in page(run)


def test_many_cut_answers_are_warned_of(run):
    rows = [json.loads(line) for line in lines_of(run)]
    for row in rows:
        if row["kind"] == "iteration":
            row |= {"rollout/cut": 0.3, "length/cut": 0.41, "film/length/cut": 0.1}
    full_run.write_lines(run / "metrics.jsonl", rows)
    text = page(run)
    said = "iteration 3: 30 %; evaluation of θ₃: 41 %. Above 20 %"
    assert said in text and "Answers cut" in titles(text)


def test_a_run_with_fewer_iterations_asked_for_than_finished(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"iterations": 2}))
    path = run / "sessions.jsonl"
    session = json.loads(path.read_text().splitlines()[0])
    session |= {"resumed": True, "next_iteration": 3, "iterations": 2}
    with path.open("a") as file:
        file.write(json.dumps(session) + "\n")
    text = page(run)
    assert "3 finished, 2 asked for" in text and "3 of 2" not in text
    assert "resumed, all 2 finished" in text and "at iteration 3" not in text
    assert "Not finished" not in text


def test_training_accuracy_leaves_steps_at_the_reference_out(run):
    """At them policy = reference: every margin is 0, and none is above it."""
    first = read_run(run)
    assert first.references[1]["weights"][0] == [1.0]
    rows = [row for row in first.metrics if row["kind"] == "train"]
    assert [_at_reference(first, row) for row in rows[:2]] == [True, False]
    assert not any(_at_reference(first, row) for row in rows if row["iteration"] > 1)


def test_values_that_are_not_finite_are_no_points(run):
    rows = [json.loads(line) for line in lines_of(run)]
    for row in rows:
        if row["kind"] == "iteration":
            row |= {"reward/low": "-inf", "reward/high": "inf", "kl/theta_0": "nan"}
    full_run.write_lines(run / "metrics.jsonl", rows)
    text = page(run)
    assert "Reward" in titles(text) and "Reward over KL" not in titles(text)


def test_a_row_that_is_being_written_is_not_read(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "iteration", "iter')
    with open(run / "iterations" / "003" / "evaluation.jsonl", "a") as file:
        file.write('{"prompt": ')
    Structure(page(run))


@pytest.mark.parametrize(
    ("name", "line", "bad"),
    [
        ("metrics.jsonl", 3, "no json"),
        ("metrics.jsonl", 1, '{"kind": "iteration", "iteration": "x"}'),
        ("metrics.jsonl", 1, '{"kind":"iteration","iteration":0,"reward/mean":"x"}'),
        ("metrics.jsonl", 1, '{"kind": "iteration", "iteration": 0, "watch": 3}'),
        ("timing.jsonl", 2, '{"kind": "train", "iteration": 1, "seconds": "long"}'),
        ("sessions.jsonl", 2, "[]"),
        ("iterations/000/evaluation.jsonl", 2, "{"),
        ("iterations/000/evaluation.jsonl", 4, '{"prompt": "p"}'),
        (
            "iterations/003/evaluation.jsonl",
            1,
            '{"prompt": "p", "responses": ["a"], "rewards": []}',
        ),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(run, name, line, bad):
    lines = (run / name).read_text().splitlines()
    lines[line - 1] = bad
    (run / name).write_text("\n".join(lines) + "\n")
    (run / "report.html").unlink(missing_ok=True)  # of the run that this one copies
    # A record of answers is the run's own; other rows are checked by their reader.
    kind = CorruptCheckpoint if name.endswith("evaluation.jsonl") else BadInput
    with pytest.raises(kind, match=rf"{name}, line {line}\b"):
        write_report([run])
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"evaluation": 3}'),
        ("iterations/002/reference.json", b"nonsense"),
        ("iterations/002/reference.json", b'{"groups": ["a"], "weights": ["x"]}'),
        ("iterations/003/held_out.npz", b"nonsense"),
    ],
)
def test_a_damaged_file_is_named(run, name, content):
    (run / name).write_bytes(content)
    with pytest.raises((CorruptCheckpoint, BadInput), match=name):
        write_report([run])


def test_a_folder_without_a_run_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="does not hold a run"):
        write_report([tmp_path])
    with pytest.raises(BadInput, match="not a directory"):
        write_report([tmp_path / "absent"])


def test_samples_are_chosen_by_a_rule_that_is_told(whole):
    run = read_run(whole)
    own = run_samples(run)[0]
    assert [s.number for s in own.samples[:3]] == [0, 1, 2]
    changes = [
        ours.rewards[0] - theirs.rewards[0]
        for theirs, ours in zip(run.samples(0), run.samples(3))
    ]
    rises = [s.number for s in own.samples if s.why == "greatest rise"]
    assert rises[0] == max(range(3, 9), key=changes.__getitem__)
    assert [a.who for a in own.samples[0].answers] == ["θ₀", "θ₂", "θ₃"]
    assert "first 3 of 9" in own.rule


def test_other_prompts_do_not_stand_side_by_side(run):
    path = run / "iterations" / "002" / "evaluation.jsonl"
    path.write_text(path.read_text().replace("Once upon", "Twice upon"))
    answers = run_samples(read_run(run))[0].samples[0].answers
    assert [a.who for a in answers] == ["θ₀", "θ₃"]


def test_settings_are_marked_against_the_defaults(whole):
    found = {s.name: s for s in settings(read_run(whole))}
    assert found["loss.beta"].changed and found["loss.beta"].default == "0.1"
    assert not found["data.chat"].changed and not found["loss.name"].changed
    assert found["iterations"].changed and found["iterations"].default == ""


def test_a_comparison_has_paired_differences(tmp_path):
    runs = [
        full_run.write_run(tmp_path / rule, rule=rule, seed=k, iterations=3 - k)
        for k, rule in enumerate(("learned", "previous"))
    ]
    text = page(*runs, path=tmp_path / "both.html")
    Structure(text)
    rewards = [
        np.array([row.rewards for row in read_run(run).samples(2)]) for run in runs
    ]
    mean, low, high = paired_interval(rewards[1], rewards[0])
    assert number_text(mean) in text
    assert f"{number_text(low)} to {number_text(high)}" in text
    assert "At iteration 2" in text
    # The headline is of the same iteration, not of each run's last.
    assert "All at iteration 2, the last that all runs have finished" in text
    for run in map(read_run, runs):
        first, *_, compared = run.iterations[:3]
        values = [number_text(row["reward/mean"]) for row in (first, compared)]
        assert " → ".join(values) in text
    last = number_text(read_run(runs[0]).last["reward/mean"])
    assert f"→ {last}" not in text.split("<nav")[0]
    assert "reference.rule" in text and "loss.beta" not in text
    assert "Win rate against θ₀: labelling scorer" in titles(text)


def test_runs_asked_otherwise_have_no_paired_difference(tmp_path):
    runs = [
        full_run.write_run(tmp_path / n, prompts=k) for n, k in (("a", 5), ("b", 6))
    ]
    text = page(*runs, path=tmp_path / "both.html")
    assert "none: the evaluation prompts differ" in text


def test_runs_compare_where_their_rewards_have_one_scale(tmp_path):
    names = ["my_scorer:score", "reward:runs/rm"]
    runs = [full_run.write_run(tmp_path / name, iterations=1) for name in "ab"]
    for run in runs:
        path = run / "config.json"
        config = json.loads(path.read_text())
        config["scorer"] = {"name": names, "clip": 5.0, "timeout": len(str(run))}
        path.write_text(json.dumps(config))
        (run / "scorer.json").write_text('{"answers": 9}')
    text = page(*runs, path=tmp_path / "both.html")
    assert "scorers differ" not in text and "centres and scales" not in text
    assert "clipped at 5 deviations" in page(runs[0])
    (runs[1] / "scorer.json").write_text('{"answers": 8}')
    text = page(*runs, path=tmp_path / "both.html")
    assert "none: their rewards have other centres and scales (scorer.json)" in text


def test_many_runs_are_compared_with_the_first(tmp_path):
    runs = [full_run.write_run(tmp_path / f"r{k}", iterations=1) for k in range(9)]
    text = page(*runs, path=tmp_path / "all.html")
    Structure(text)
    assert text.count("<td>the last policy, film</td>") == 8


def test_labels_are_the_shortest_that_differ(tmp_path):
    names = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    assert labels(names) == ["x/run", "y/run"]
    assert labels([tmp_path / "a", tmp_path / "a"]) == ["a", "a (2)"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.5366, "0.537"), (-6.2, "−6.20"), (1234.5, "1,234"), (9.999, "10.0"),
     (1e-7, "1e−07"), (float("nan"), "–"), (float("-inf"), "−∞"), (0.9996, "1.00")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert number_text(value) == text


def test_many_steps_are_drawn_as_means_and_say_so(run):
    rows = full_run.train_rows(np.random.default_rng(0), 1, 1203)
    full_run.write_lines(
        run / "metrics.jsonl", [*rows, {"kind": "iteration", "iteration": 0}]
    )
    text = page(run)
    assert "Each point is the mean of 3 steps" in text


@pytest.mark.parametrize("kept", [0, 2])
def test_rows_that_were_lost_are_not_called_unfinished(run, kept):
    """Of a metrics.jsonl that was removed, or cut after iteration 1."""
    path, done = run / "metrics.jsonl", []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "iteration":
            done.append(row["iteration"])
            folder = run / "iterations" / f"{row['iteration']:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text("{}")
    assert "Rows are missing" not in page(run)
    lines = path.read_text().splitlines(keepends=True)
    short = [x for x in lines if json.loads(x)["iteration"] < kept]
    path.write_text("".join(short)) if kept else path.unlink()
    text = page(run)
    which = ", ".join(str(t) for t in done if t >= kept)
    assert f"iterations {which} were evaluated" in text and "Restore the file" in text
    assert "Not finished" not in text
