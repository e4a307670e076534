"""tpmm evaluate on a tiny run: the loop's own numbers, files, and clear refusals."""

import io
import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "loop"))
import tiny_run
from few_pages import empty_plots, few_pages  # noqa: F401
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tpmm_jax as tpmm
from tpmm_jax.commands import _candidates, evaluate
from tpmm_jax.commands import train as command_line
from tpmm_jax.config import EvaluationConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.metrics import iteration_rows
from tpmm_jax.weights import loading

Text = pytest.CaptureFixture[str]
SCORER = ("--scorer", "tiny_run:score")


def judge(prompts: Any, first: Any, second: Any) -> Any:
    """Judges, then spoils its lists, which are its own."""
    a, b = (tiny_run.score(prompts, [[t] for t in x])[:, 0] for x in (first, second))
    for texts in (prompts, first, second):
        texts.clear()
    return 0.5 + 0.5 * np.sign(a - b)


def spoils(prompts: Any, responses: Any) -> Any:
    """Scores as the run's scorer, then spoils its lists, which are its own."""
    found = tiny_run.score(prompts, responses)
    for texts in responses:
        texts.sort()
        texts[:] = [text.strip()[:1] for text in texts]
    responses.sort()
    prompts.clear()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """prompts.jsonl, pairs.jsonl and a run of one iteration evaluated on them."""
    folder = tmp_path_factory.mktemp("evaluate")
    with (folder / "prompts.jsonl").open("w") as file:
        for i in range(7):
            file.write(json.dumps({"prompt": f"w{i} w3 w{2 * i}"}) + "\n")
    with (folder / "pairs.jsonl").open("w") as file:
        for i in range(6):
            row = {"prompt": f"w{i} w9 ", "chosen": "w2 w4", "rejected": f"w{i} w5"}
            file.write(json.dumps(row) + "\n")
    config = tiny_run.get_config(
        iterations=1,
        data=DataConfig(
            prompts="tiny_run:prompts",
            eval_prompts=str(folder / "prompts.jsonl"),
            max_prompt_length=8,
        ),
        evaluation=EvaluationConfig(num_prompts=7, samples_per_prompt=2),
    )
    out = io.StringIO()
    command_line.run(config, folder / "run", RunConsole(out, out))
    return folder


@pytest.fixture
def tell(folder: pathlib.Path, capsys: Text) -> Callable[..., tuple[str, str]]:
    """Runs a command line; returns standard output and error."""

    def run(code: int, *args: str, prompts: str = "prompts.jsonl") -> tuple[str, str]:
        argv = ["--max-new-tokens", "8", "--prompts", str(folder / prompts), *args]
        capsys.readouterr()
        found = evaluate.main(argv)
        out, err = capsys.readouterr()
        assert found == code, out + err
        assert "Traceback" not in err
        return out, " ".join(err.split())

    return run


def test_a_run_gives_the_loops_own_numbers(
    folder: pathlib.Path, tmp_path: pathlib.Path, tell: Callable
) -> None:
    output = tmp_path / "out"
    options = [
        "--scorer", f"{__name__}:spoils", "--num-samples", "2", "--judge",
        f"even={__name__}:judge", "--also", "again=tiny_run:score",
        "--pairs", str(folder / "pairs.jsonl"),
    ]  # fmt: skip
    out, _ = tell(0, str(folder / "run"), *options, "--output", str(output), "--json")
    found = json.loads(out)
    assert found == json.loads((output / "summary.json").read_text())
    row = iteration_rows(folder / "run")[1]
    first, last = found["models"]
    assert (first["name"], last["name"]) == ("theta_0", "theta_1")
    for name in ("reward/mean", "reward/low", "length/mean", "distinct/2"):
        np.testing.assert_allclose(last[name], row[name], rtol=1e-9)
    np.testing.assert_allclose(last["kl/baseline"], row["kl/theta_0"], atol=1e-4)
    for name in ("win", "score/again/win", "judge/even/win"):
        assert last[f"{name}/baseline"] == row["win/theta_0"]
    assert 0 <= last["heldout/accuracy/low"] <= last["heldout/accuracy"] <= 1
    assert "heldout/accuracy" not in first
    for number, t in enumerate((0, 1)):
        ours = (output / f"{number:02d}-theta_{t}.jsonl").open()
        theirs = (folder / f"run/iterations/{t:03d}/evaluation.jsonl").open()
        for a, b in zip(ours, theirs, strict=True):
            assert json.loads(a)["responses"] == json.loads(b)["responses"]
    assert len((output / "judgements.jsonl").read_text().splitlines()) == 14


def test_the_table(folder: pathlib.Path, tell: Callable) -> None:
    steps = [str(folder / f"run/trajectory@{k}") for k in (1, 0)]
    out, err = tell(0, steps[0], "--baseline", steps[1], *SCORER, "--limit", "5")
    assert "reward" in out and "KL" in out and "distinct-2" in out
    assert "cut" in out and "answers cut at " in err
    # Progress is not mixed with the table.
    assert out.startswith("model ") and "sample" not in out and "sample" in err
    # A line may break before the path, or in it.
    assert "against" + steps[1] in "".join(out.split())


def other_tokenizer(folder: pathlib.Path) -> str:
    """The tiny model with its words in another order."""
    directory = folder / "other"
    if not directory.exists():
        tiny_run.build_model(folder / "plain")
        model = tpmm.load(folder / "plain")
        specials = ["<pad>", "<eos>", "<bos>"]
        table = {s: i for i, s in enumerate([*specials, *tiny_run.WORDS[::-1]])}
        made = Tokenizer(models.WordLevel(table, unk_token="<pad>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=made,
            pad_token="<pad>",
            eos_token="<eos>",
            bos_token="<bos>",
            unk_token="<pad>",
        )
        other = tpmm.Model(model.decoder, model.params, tokenizer)
        tpmm.save(other, directory)
    return str(directory)


def test_another_tokenizer_has_no_kl(folder: pathlib.Path, tell: Callable) -> None:
    step = str(folder / "run/trajectory@1")
    pairs = ("--pairs", str(folder / "pairs.jsonl"))
    out, err = tell(0, step, other_tokenizer(folder), *SCORER, *pairs, "--json")
    _, other = json.loads(out)["models"]
    assert "kl/baseline" not in other and "heldout/accuracy" not in other
    assert "win/baseline" in other
    assert "a different tokenizer" in err and "not defined" in err


def test_wrong_input_is_refused_before_a_model_is_loaded(
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    tell: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, step = str(folder / "run"), str(folder / "run/trajectory@1")
    monkeypatch.setattr(loading.Trajectory, "restore", lambda *_: 1 / 0)

    def refused(*args: str, prompts: str = "prompts.jsonl") -> str:
        return tell(2, *args, prompts=prompts)[1]

    assert "nothing rates the answers" in refused(run)
    assert "prompts.jsonl" in refused(run, *SCORER, prompts="prompt.jsonl")
    assert "holds the steps [0, 1]" in refused(f"{run}/trajectory@7", *SCORER)
    assert "no such directory" in refused(str(tmp_path / "absent"), *SCORER)
    assert "a judge compares" in refused(step, "--judge", f"even={__name__}:judge")
    assert "wanted LABEL=module" in refused(run, "--judge", "tiny_run:score")
    assert "letters, digits" in refused(run, "--also", "a/b=tiny_run:score")
    assert "has no function" in refused(run, "--scorer", "tiny_run:absent")
    assert "--num-samples is 0" in refused(run, *SCORER, "--num-samples", "0")
    # All at once.
    said = refused(run, "--limit", "0", "--seed", "-1", "--top-p", "2", "--output", run)
    for wanted in (
        "--limit is 0",
        "--seed is -1",
        "--top-p is 2",
        "nothing rates",
        "not empty",
    ):
        assert wanted in said
    assert "--top-p is 0.0" in refused(run, *SCORER, "--top-p", "0")
    assert "positions" in refused(run, *SCORER, "--max-new-tokens", "64")
    assert "no chat template" in refused(run, *SCORER, "--chat")
    judged = ("--judge", "bad=tiny_run:score")
    assert "judge bad (tiny_run:score)" in refused(run, *judged)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    full = ("--output", str(tmp_path / "full"))
    assert "not empty" in refused(run, *SCORER, *full)
    (folder / "empty.jsonl").write_text("")
    assert "empty.jsonl" in refused(run, *SCORER, prompts="empty.jsonl")
    tiny_run.build_model(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(str(tmp_path / "model"), *SCORER)
    shutil.rmtree(tmp_path / "model")


def test_a_model_judges(
    folder: pathlib.Path, tmp_path: pathlib.Path, tell: Callable
) -> None:
    steps = [str(folder / f"run/trajectory@{k}") for k in (1, 0)]
    ask, output = tmp_path / "ask.txt", tmp_path / "out"
    ask.write_text("{prompt} w1 {first} w2 {second} w3", encoding="utf-8")
    options = [
        steps[0], "--baseline", steps[1], "--judge", f"m=judge:{tiny_run._built()}",
        "--judge-option", f"template_file={ask}", "--judge-option", "max_new_tokens=4",
    ]  # fmt: skip
    out, err = tell(0, *options, "--output", str(output))
    # None of its words is A, B or a tie.
    assert "m unread" in out and "m disagreed" in out and "1.00" in out
    assert "judge m: 100 %" in err
    found = json.loads((output / "summary.json").read_text())["models"][1]
    assert found["judge/m/unread"] == 1 and found["judge/m/disagreed"] == 0
    assert found["judge/m/win/baseline"] == 0.5
    rows = [json.loads(line) for line in (output / "judgements.jsonl").open()]
    assert all(row["unread"] == 2 and len(row["replies"]) == 2 for row in rows)
    _, err = tell(2, *options, "--judge-option", "max_new_tokens=48")
    assert "judging would take up to" in err
    _, err = tell(2, *options, "--judge-option", "max_tokens=4")
    assert "--judge-option max_tokens: there is no such field" in err
    _, err = tell(2, steps[0], *SCORER, "--judge-option", "max_new_tokens=4")
    assert "judge.max_new_tokens is set, but no judge is a model" in err
    _, err = tell(2, steps[0], "--scorer", f"judge:{tiny_run._built()}")
    assert "a judge compares answers" in err


def test_names() -> None:
    named = _candidates.named_sources
    assert named(["a", "b", "a"], None) == [("a", "a"), ("b", "b")]
    assert named(["a", "b"], "b") == [("b", "b"), ("a", "a")]


def test_help_teaches(capsys: Text) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "examples:" in out and "--judge LABEL=M:F" in out


def test_a_closed_output_is_left_to_the_command_line(monkeypatch):
    """A reader like head has seen enough: guarded() says what the exit code is."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    row = {"name": "one", "reward/mean": 0.5}
    with pytest.raises(BrokenPipeError):
        evaluate.print_table([row, row], "one")
