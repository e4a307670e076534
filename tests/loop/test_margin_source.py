"""Margins of pairs in a run: signed, calibrated, used, and rated again at a restart."""

import dataclasses
import datetime
import io
import json
import pathlib

import numpy as np
import pytest
import tiny_run

from tpmm_jax.commands import train as command_line
from tpmm_jax.config import Config
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.records import LabelledPair
from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import read_metrics
from tpmm_jax.loop.margins import (
    CALIBRATION,
    apply_rule,
    load_margins,
    same_source_warning,
    weight_summary,
    zero_warning,
)
from tpmm_jax.losses import LossConfig
from tpmm_jax.losses.madpo import weight
from tpmm_jax.merging import ReferenceConfig
from tpmm_jax.mesh import make_mesh
from tpmm_jax.report.gather import read_run
from tpmm_jax.report.margins import margin_sections
from tpmm_jax.rewards import MadpoConfig, PairingConfig, Raters, ScorerConfig
from tpmm_jax.scoring import load_scorer
from tpmm_jax.steps import TrainConfig

SHIFT = {"of": 0.0}

WORDS = "test_margin_source:words"


def words(prompts, responses, scale=8.0):
    """A source of margins that agrees with the tiny run's scorer often."""
    even = tiny_run.score(prompts, responses)
    length = [[len(text.split()) for text in texts] for texts in responses]
    return scale * even + 0.3 * np.asarray(length) + SHIFT["of"] * (even > 0.5)


def start(config: Config, workdir: pathlib.Path, **options):
    out = io.StringIO()
    command_line.run(config, workdir, RunConsole(out, out), **options)
    return read_metrics(workdir), out.getvalue()


def lines(workdir, name, t=1):
    path = workdir / "iterations" / f"{t:03d}" / name
    return [json.loads(line) for line in path.read_text().splitlines()]


def online(**changes):
    return tiny_run.get_config(
        **{
            "iterations": 1,
            "loss": LossConfig(name="madpo"),
            "madpo": MadpoConfig(
                margins="test_margin_source:words", options={"scale": 4.0}
            ),
            "pairing": PairingConfig(holdout_fraction=0.4, labels="bt"),
            "reference": ReferenceConfig(rule="sft"),
            "train": TrainConfig(learning_rate=3e-3, batch_size=4, accumulation=2),
            **changes,
        }
    )


def pair(margin, *, held_out=False, flipped=False):
    return LabelledPair(
        prompt="p", chosen="a", rejected="b", chosen_reward=2.0, rejected_reward=1.0,
        flipped=flipped, held_out=held_out, margin=margin, prompt_ids=[1],
        chosen_ids=[2], rejected_ids=[3, 4],
    )  # fmt: skip


def test_rules_of_pairing_change_training_pairs_of_a_negative_margin():
    pairs = [pair(1.0), pair(-2.0, flipped=True), pair(-3.0, held_out=True), pair(0.0)]
    assert apply_rule(pairs, "keep") == (pairs, 0)
    assert apply_rule(pairs, "drop") == ([pairs[0], *pairs[2:]], 1)
    turned, count = apply_rule(pairs, "relabel")
    assert count == 1 and [turned[0], *turned[2:]] == [pairs[0], *pairs[2:]]
    one = turned[1]
    assert one.margin == 2 and one.relabelled and one.flipped
    assert (one.chosen, one.chosen_ids, one.chosen_reward) == ("b", [3, 4], 1.0)
    assert (one.rejected, one.rejected_ids, one.rejected_reward) == ("a", [2], 2.0)


def test_margins_that_say_nothing_are_told_of():
    text = zero_warning(np.asarray([0.0, 0.0, 0.4]), 3)
    assert "iteration 3: 2 of 3 training pairs have the margin 0" in text
    assert zero_warning(np.asarray([0.0, 0.4]), 3) == ""
    assert zero_warning(np.asarray([]), 3) == ""


def test_effective_pairs():
    config = LossConfig(name="madpo")
    margins = np.asarray([0.5, 1.0, -1.0, -2.0, 9.0])
    w = np.asarray(weight(margins.astype(np.float32)), np.float64)
    found = weight_summary(config, margins)
    assert found["madpo/weight"] == pytest.approx(w.mean(), rel=1e-6)
    wanted = w.sum() ** 2 / (w**2).sum()
    assert found["madpo/effective_pairs"] == pytest.approx(wanted, rel=1e-6)
    assert found["madpo/above_tau"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(madpo=MadpoConfig()), "loss.name 'madpo' needs margins"),
        (dict(loss=LossConfig()), "nothing would read the margins"),
        (
            dict(
                loss=LossConfig(),
                madpo=MadpoConfig(),
                pairing=PairingConfig(margins="drop"),
            ),
            "pairing.margins=drop needs margins",
        ),
        (dict(madpo=MadpoConfig(margins="column")), "takes the margins of data.pairs"),
        (
            dict(madpo=MadpoConfig(margins="column", options={"a": 1})),
            "madpo.margins is a column",
        ),
        (
            dict(loss=LossConfig(), madpo=MadpoConfig(calibrate=False)),
            "nothing to calibrate",
        ),
        (
            dict(data=DataConfig(pairs="pairs.jsonl"), scorer=ScorerConfig()),
            "pairing.labels=bt draws labels by the rewards",
        ),
    ],
)
def test_margins_that_are_missing_or_of_no_use_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        online(**changes).validate()


def test_an_online_run(tmp_path, monkeypatch):
    online().validate()
    rows, said = start(online(), tmp_path)
    record = json.loads((tmp_path / CALIBRATION).read_text())
    pairs, rollouts = lines(tmp_path, "pairs.jsonl"), lines(tmp_path, "rollouts.jsonl")
    rewards = {
        (tuple(row["prompt_ids"]), tuple(ids)): (score, label)
        for row in rollouts
        for ids, score, label in zip(
            row["response_ids"], row["scores"]["margins"], row["rewards"]
        )
    }
    for row in pairs:
        (a, own), (b, other) = (
            rewards[tuple(row["prompt_ids"]), tuple(row[side])]
            for side in ("chosen_ids", "rejected_ids")
        )
        # Signed by the label as it was drawn.
        assert row["margin"] == pytest.approx((a - b) / record["temperature"])
        assert (own < other) == row["flipped"]
    assert any(row["flipped"] for row in pairs)
    train = [row for row in rows if row["kind"] == "train"]
    margins = np.asarray([r["margin"] for r in pairs if not r["held_out"]])
    last = rows[-1]
    assert last["kind"] == "iteration"
    w = np.asarray(weight(margins.astype(np.float32)))
    np.testing.assert_allclose(last["madpo/weight"], w.mean(), rtol=1e-5)
    # One epoch: the steps' means are of the same pairs, the last step of fewer.
    sizes = np.asarray([min(4, len(margins) - 4 * i) for i in range(len(train))])
    steps = np.asarray([row["madpo/weight"] for row in train])
    np.testing.assert_allclose((steps * sizes).sum() / sizes.sum(), w.mean(), rtol=1e-5)
    # Where policy and reference are equal the loss is the weights' mean times log 2.
    np.testing.assert_allclose(train[0]["loss"], steps[0] * np.log(2), rtol=1e-3)
    assert "madpo.margins: divided by" in said or "not calibrated" in said
    assert "of test_margin_source:words: weigh the pairs" in said
    assert record["pairs"] == sum(row["held_out"] for row in pairs)
    titles = [p.title for s in margin_sections([read_run(tmp_path)]) for p in s.panels]
    assert {"MADPO's weights", "Coefficient c(|h|)"} <= {*titles}
    assert "Margins of the rewards" in (tmp_path / "report.html").read_text()
    # An edited source is found at the next start; a lost calibration too.
    two = dataclasses.replace(online(), iterations=2)
    monkeypatch.setitem(SHIFT, "of", 5.0)
    with pytest.raises(BadInput, match=rf"madpo\.margins = {WORDS} gives"):
        start(two, tmp_path)
    before = (tmp_path / "iterations/001/pairs.jsonl").read_bytes()
    start(online(), tmp_path, rescore=True)
    assert (tmp_path / "iterations/001/pairs.jsonl").read_bytes() == before
    # What it said before is known to be of an earlier version.
    start(online(), tmp_path)
    monkeypatch.setitem(SHIFT, "of", 0.0)
    (tmp_path / CALIBRATION).unlink()
    with pytest.raises(CorruptCheckpoint, match=f"{CALIBRATION} is missing"):
        start(two, tmp_path)


def write_pairs(path, count, margins=True):
    rng = np.random.default_rng(5)
    with path.open("w") as file:
        for i in range(count):
            row = {
                "prompt": " ".join(rng.choice(tiny_run.WORDS, 3)) + " ",
                "chosen": " ".join(rng.choice(tiny_run.WORDS, 4)),
                "rejected": " ".join(rng.choice(tiny_run.WORDS, 4)),
            }
            if margins or i != 7:
                row["margin"] = round(float(rng.normal(1, 2)), 3)
            file.write(json.dumps(row) + "\n")


def test_an_offline_run_with_a_column_that_relabels(tmp_path):
    path = tmp_path / "pairs.jsonl"
    config = online(
        data=DataConfig(pairs=str(path)),
        scorer=ScorerConfig(),
        madpo=MadpoConfig(margins="column", calibrate=False),
        pairing=PairingConfig(
            holdout_fraction=0.25, flip_probability=0.5, margins="relabel"
        ),
    )
    write_pairs(path, 24, margins=False)
    with pytest.raises(BadInput, match=r"(?s)pairs\.jsonl.*8.*margin"):
        start(config, tmp_path / "refused")
    write_pairs(path, 24)
    rows, said = start(config, tmp_path / "run")
    given = [json.loads(line) for line in path.read_text().splitlines()]
    found = lines(tmp_path / "run", "pairs.jsonl")
    turned = 0
    for row in found:
        source = given[int(row["origin"].rpartition(":")[2]) - 1]
        wanted = -source["margin"] if row["flipped"] else source["margin"]
        relabelled = wanted < 0 and not row["held_out"]
        assert row.get("relabelled", False) == relabelled
        assert row["margin"] == pytest.approx(abs(wanted) if relabelled else wanted)
        swapped = row["flipped"] != relabelled
        assert row["chosen"].strip() == source["rejected" if swapped else "chosen"]
        turned += relabelled
    assert turned and rows[-1]["margins/relabelled"] == turned
    assert f"{turned} of" in said and not (tmp_path / "run" / CALIBRATION).exists()
    # Other margins are other data.
    given[3]["margin"] += 1
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    with pytest.raises(BadInput, match="the pairs changed"):
        start(config, tmp_path / "run")


def raters_of(config):
    mesh, date = make_mesh(config.mesh), datetime.date(2026, 11, 26)
    scorer = load_scorer(config.scorer, mesh=mesh, date=date)
    return Raters(scorer, margins=load_margins(config, mesh, date))


def test_the_scorer_s_own_margins_are_warned_of(tmp_path):
    config = online()
    assert not same_source_warning(config, raters_of(config))
    own = online(madpo=MadpoConfig(margins="tiny_run:score"))
    assert "at most 1.42" in same_source_warning(own, raters_of(own))
    # A reward model is the same under another name.
    fixture = tiny_run.reward_model()
    (tmp_path / "other").symlink_to(fixture)
    model = ScorerConfig(name=f"reward:{fixture}")
    margins = MadpoConfig(margins=f"reward:{tmp_path / 'other'}")
    twice = online(scorer=model, madpo=margins)
    assert "at most 1.42" in same_source_warning(twice, raters_of(twice))
    with pytest.raises(BadInput, match=r"madpo\.margins = 'reward:.*nowhere'"):
        raters_of(online(madpo=MadpoConfig(margins=f"reward:{tmp_path}/nowhere")))
