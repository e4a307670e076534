"""tpmm merge_checkpoints: tpmm.merge's result, a record, and honest scores."""

import json
import math

import command_runs
import jax
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.commands import export
from tpmm_jax.commands import merge_checkpoints as command
from tpmm_jax.commands._learning import score, split_rows
from tpmm_jax.commands._merges import expand
from tpmm_jax.data.records import PairRow
from tpmm_jax.merging import Deltas, group_names
from tpmm_jax.merging.scale import fitted_scale
from tpmm_jax.store import tree_digest


@pytest.fixture(scope="module")
def run():
    return str(command_runs.finished_run())


def merge(capsys, *argv):
    code = command.main([*map(str, argv)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, " ".join(out.split()), " ".join(err.split())


def equal(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other))
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def test_given_weights_are_tpmm_merge(capsys, run, tmp_path):
    out = tmp_path / "out"
    code, said, _ = merge(
        capsys, f"{run}/trajectory@0..2", "--weights", 0.5, 0.3, 0.2, "--output", out
    )
    steps = [f"{run}/trajectory@{k}" for k in range(3)]
    merged = tpmm.load(out)
    assert code == 0 and equal(merged.params, tpmm.merge(steps, [0.5, 0.3, 0.2]).params)
    assert merged.tokenizer.chat_template == command_runs.CHAT
    record = json.loads((out / "merge.json").read_text())
    assert [s["source"] for s in record["sources"]] == steps
    assert record["weights"] == [[0.5, 0.3, 0.2]] and record["rule"] == "given"
    assert record["digest"] == tree_digest(merged.params)
    digests = [tree_digest(tpmm.load(step).params) for step in steps]
    assert [s["digest"] for s in record["sources"]] == digests
    assert record["versions"]["jax"] == jax.__version__
    assert "0.3000" in said and "signal to rounding, float32" in said


def test_a_workdir_is_all_of_its_steps(run):
    steps = [f"{run}/trajectory@{k}" for k in range(3)]
    assert expand([run]) == expand([f"{run}/trajectory"]) == steps
    assert expand([f"{run}/trajectory@1..2"]) == steps[1:]


def test_a_faint_merge_is_not_cast_in_silence(capsys, tmp_path):
    first = command_runs.model()
    for name, size in (("a", 0.0), ("b", 1e-6)):
        moved = command_runs.moved(first.params, 1, size)
        model = tpmm.Model(first.decoder, moved, first.tokenizer)
        tpmm.save(model, tmp_path / name)
    models = [tmp_path / "a", tmp_path / "b"]
    out = tmp_path / "half"
    code, said, _ = merge(
        capsys, *models, "--uniform", "--output", out, "--dtype", "bfloat16"
    )
    assert code == 0 and "much of the merge is rounded away" in said
    assert "--dtype float32" in said
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    ratio = json.loads((out / "merge.json").read_text())["signal_to_rounding"]
    assert ratio["bfloat16"] < 1 < ratio["float32"]
    whole, exported = tmp_path / "whole", tmp_path / "exported"
    assert merge(capsys, *models, "--uniform", "--output", whole)[0] == 0
    options = [str(whole), "--output", str(exported), "--dtype", "bfloat16"]
    assert export.main(options) == 0
    assert "its change to a is only" in " ".join(capsys.readouterr().out.split())


def pairs_file(tmp_path, count=30):
    rng = np.random.default_rng(0)
    path = tmp_path / "pairs.jsonl"
    rows = []
    for i in range(count):
        one, other = ("".join(rng.choice(list("abcd"), 5)) for _ in range(2))
        rows.append({"prompt": f"say {i % 10}", "chosen": one, "rejected": other + "z"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "granularity", [pytest.param("model", marks=pytest.mark.slow), "layer"]
)
def test_weights_of_adam_are_recorded_with_held_out_scores(
    capsys, run, tmp_path, granularity
):
    out = tmp_path / "out"
    code, said, err = merge(
        capsys, run, "--learn", pairs_file(tmp_path), "--output", out, "--fit", "adam",
        "--steps", 3, "--granularity", granularity, "--batch-size", 8, "--no-chat",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads((out / "merge.json").read_text())
    weights_GK = np.asarray(record["weights"])
    model = command_runs.model()
    groups = group_names(model.params, granularity)
    assert weights_GK.shape == (len(groups), 3)
    assert np.allclose(weights_GK.sum(axis=1), 1)
    held = record["held_out"]
    assert held["held_out_prompts"] == 2 and held["held_out_pairs"] == 6
    scores = held["scores"]
    assert [s["model"] for s in scores][-2:] == ["uniform", "learned"]
    # theta_0 against itself: every pair is a tie.
    assert scores[0]["accuracy"] == 0.5
    assert scores[0]["loss"] == pytest.approx(math.log(2))
    assert "our reconstruction" in record["objective"]["note"]
    assert "preference accuracy against theta_0 on 6 held-out pairs" in said
    # The output is the merge by those weights, and nothing is left beside it.
    steps = [tpmm.load(f"{run}/trajectory@{k}").params for k in range(3)]
    with Deltas(tmp_path / "d", lambda k: steps[k], 3, groups) as deltas:
        assert equal(tpmm.load(out).params, deltas.merge(weights_GK))
    assert {p.name for p in tmp_path.iterdir()} == {"out", "pairs.jsonl"}


@pytest.mark.parametrize(
    "fit", ["margins", pytest.param("exact", marks=pytest.mark.slow)]
)
def test_weights_are_learned_as_a_run_learns_them(capsys, run, tmp_path, fit):
    models = [tpmm.load(f"{run}/trajectory@{k}") for k in range(3)]
    prompts = [f"say {i}" for i in range(60)]
    rng = np.random.default_rng(0)
    answers = [["".join(rng.choice(list("abcd"), 5)) for _ in prompts] for _ in "12"]
    # Labelled as theta_2 would.
    texts = [list(map("".join, zip(prompts, some))) for some in answers]
    D_P = np.subtract(*(ratio(models, some) for some in texts))
    rows = [
        {"prompt": p, "chosen": a if d > 0 else b, "rejected": b if d > 0 else a}
        for p, a, b, d in zip(prompts, *answers, D_P)
    ]
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = "--no-chat", "--anchor-share", 0.2, "--fit", fit, "--output", out
    code, said, err = merge(capsys, run, "--learn", pairs, *options)
    assert code == 0, err
    assert "uniform weights" not in said + err
    record = json.loads((out / "merge.json").read_text())
    found, scores = record["fit"], record["held_out"]["scores"]
    (weights_K,) = np.asarray(record["weights"])
    assert found["learned"] and found["residual"] < 1e-6
    assert weights_K[0] == 0.2 and weights_K[2] > 2 * weights_K[1]
    c_K = np.asarray(found["coefficients"])
    # From there on "exact" goes through the network.
    assert (fit == "exact") != np.allclose(weights_K[1:], 0.8 * c_K / c_K.sum())
    assert found["accuracies"][1][0] == scores[2]["accuracy"] == 1
    objective = record["objective"]
    assert objective["fit"] == fit and objective["anchor_share"] == 0.2
    assert "steps" not in objective and ("beta" in objective) == (fit == "exact")


def ratio(models, texts):
    """log p_2 - log p_0 of each text; a prompt's own part is in every answer's."""
    rows = [models[0].tokenizer(text + "<end>").input_ids for text in texts]
    lengths = np.asarray([len(row) for row in rows])[:, None]
    mask_BT = np.arange(lengths.max()) < lengths
    tokens_BT = np.zeros(mask_BT.shape, int)
    tokens_BT[mask_BT] = np.concatenate(rows)
    of_2, of_0 = (tpmm.log_probs(models[k], tokens_BT, mask_BT) for k in (2, 0))
    return np.asarray(of_2 - of_0).sum(axis=1)


def test_too_few_pairs_to_learn_weights_from_are_said(capsys, run, tmp_path):
    out = tmp_path / "out"
    pairs = pairs_file(tmp_path)
    code, said, err = merge(capsys, run, "--learn", pairs, "--no-chat", "--output", out)
    assert code == 0, err
    assert json.loads((out / "merge.json").read_text())["weights"] == [
        [0.5, 0.25, 0.25]
    ]
    assert "the pairs learned on have 8 prompts, too few to weight" in said + err


def test_two_models_of_one_name_are_scored_apart(capsys, run, tmp_path):
    out, one = tmp_path / "out", f"{run}/trajectory@1"
    code, _, err = merge(
        capsys, one, one, "--learn", pairs_file(tmp_path), "--no-chat", "--output", out,
        "--fit", "adam", "--steps", 1, "--objective", "fixed", "--beta", 0.2,
    )  # fmt: skip
    assert code == 0, err
    record = json.loads((out / "merge.json").read_text())
    scores = record["held_out"]["scores"]
    assert [s["model"] for s in scores] == [one, one, "uniform", "learned"]
    assert {s["scale"] for s in scores} == {0.2}
    assert [s["loss"] for s in scores] == [pytest.approx(math.log(2))] * 4
    assert record["objective"]["anchor_share"] is None
    assert len(record["fit"]["logits"][0]) == 2


def test_prompts_are_held_out_whole():
    rows = [PairRow([p], [1, i], [2, i]) for p in range(9) for i in range(3)]
    split = split_rows(rows, 0.3, seed=0)
    learned = {r.prompt_ids[0] for r in split.learn}
    held = {r.prompt_ids[0] for r in split.report}
    assert not learned & held and learned | held == set(range(9))
    assert len(held) == 3 and len(split.report) == 9


def test_scores_in_numpy():
    margins = np.asarray([1.0, -2.0, 0.0, 3.0, 1.0, 1.0])
    prompts = [(1,), (1,), (2,), (3,), (3,), (3,)]
    found = score("x", margins, prompts, 0.5)
    assert found.accuracy == pytest.approx(4.5 / 6)
    assert found.loss == pytest.approx(np.mean(np.log1p(np.exp(-0.5 * margins))))
    assert found.low < found.accuracy < found.high <= 1
    # One prompt says nothing of others.
    one = score("x", margins[:2], prompts[:2], 0.5)
    assert (one.low, one.high) == (0.0, 1.0)


def test_the_scale_is_the_minimum():
    margins = np.random.default_rng(0).normal(0.4, 1.5, 200)
    c = fitted_scale(margins)
    losses = [np.mean(np.logaddexp(0, -x * margins)) for x in (c, c - 0.01, c + 0.01)]
    assert losses[0] == min(losses)
    assert fitted_scale(-np.abs(margins)) == 0 and fitted_scale(np.abs(margins)) == 1e4


def test_wrong_input_is_named(capsys, run, tmp_path, fixtures):
    out, full = tmp_path / "out", tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    file = tmp_path / "file"
    file.write_text("x")
    pairs, steps = pairs_file(tmp_path), [f"{run}/trajectory@{k}" for k in (0, 1)]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n')
    to = ["--output", out]
    llama, learn = fixtures / "llama", [run, "--learn", pairs, *to]
    wrong = [
        ([*steps, "--weights", 1, *to], "1 weights for 2 models"),
        ([*steps, "--weights", "nan", 1, *to], "finite"),
        ([steps[0], "--uniform", *to], "is 1 model; a merge needs two"),
        ([f"{run}/trajectory@1..9", "--uniform", *to], "holds the steps [0, 1, 2]"),
        ([f"{run}/trajectory@7", steps[0], "--uniform", *to], "holds the steps"),
        (["./nowhere", steps[0], "--uniform", *to], "nowhere: no such directory"),
        ([steps[0], llama, "--uniform", *to], "has a different architecture from"),
        ([*steps, "--uniform", "--output", full], "exists and is not empty"),
        ([*steps, "--uniform", *to, "--dtype", "int8"], "dtype is int8"),
        ([*steps, "--uniform", *to, "--fsdp", "3"], "does not fit"),
        ([run, "--learn", tmp_path / "no.jsonl", *to], "no such file"),
        ([run, "--learn", bad, *to], "field 'chosen' is missing"),
        ([*learn, "--holdout", 2], "--holdout is 2.0"),
        ([*learn, "--steps", 0], "--steps is 0"),
        ([*learn, "--steps", 3], "--steps has no meaning for --fit=margins"),
        ([*learn, "--granularity", "layer"], "or use --fit=exact or adam"),
        ([*learn, "--anchor-share", 1], "--anchor-share is 1.0"),
        ([*learn, "--seed", -1], "--seed is -1"),
        (
            [*learn, "--max-prompt-length", 0, "--holdout", 1],
            "--holdout is 1.0; use a share between 0 and 1 --max-prompt-length is 0",
        ),
        ([*steps, "--learn", pairs, *to], "trajectory@1 is the only one"),
        ([llama, llama, llama, "--learn", pairs, *to], "has no tokenizer"),
    ]
    for argv, wanted in wrong:
        code, _, err = merge(capsys, *argv)
        assert code == 2 and wanted in err, (argv, code, err)
        assert not out.exists()
    code, _, err = merge(capsys, *steps, "--uniform", "--output", file / "out")
    assert code == 4 and str(file) in err


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["a", "b", "--output", "o"], "one of the arguments --weights --uniform"),
        (["a", "b", "--uniform", "--steps", "3", "--output", "o"], "--steps needs"),
        (["a", "b", "--unifrom", "--output", "o"], "--uniform"),
    ],
)
def test_wrong_options_are_named(capsys, argv, wanted):
    with pytest.raises(SystemExit) as ended:
        command.main(argv)
    assert ended.value.code == 2 and wanted in capsys.readouterr().err


def test_python_and_the_command_warn_alike_of_what_a_merge_mixes(capsys, tmp_path):
    first = command_runs.model()
    template = first.tokenizer.chat_template
    try:
        names = [tmp_path / "a", tmp_path / "b"]
        tpmm.save(first, names[0])
        first.tokenizer.chat_template = template + " "
        first.tokenizer.add_tokens(["new"])
        tpmm.save(first, names[1])
    finally:
        first.tokenizer.chat_template = template
    with pytest.warns(UserWarning) as warned:
        tpmm.merge(names, [1, 1])
    said = [str(warning.message) for warning in warned]
    code, text, _ = merge(
        capsys, *names, "--weights", 1, 1, "--output", tmp_path / "sum"
    )
    assert code == 0
    for wanted in (
        "has a different vocabulary from", "has a different chat template from",
        "the weights add up to 2, not to 1",
    ):  # fmt: skip
        assert wanted in text and any(wanted in line for line in said)
    whole = tpmm.load(tmp_path / "sum").params
    doubled = jax.tree.map(lambda x: 2 * x, first.params)
    assert equal(whole, doubled)  # sum_k w_k theta_k, as the help says


def test_the_help_states_the_formula_that_is_computed(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "sum_k w_k theta_k" in said and "Weights 1 1 are the sum" in said
