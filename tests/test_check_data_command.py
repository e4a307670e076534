"""tpmm check_data names every bad row, raises no false alarm, and agrees with a run."""

import io
import json
import os
import pathlib
import random
import re
import subprocess
import sys

import datasets
import pytest

from tpmm_jax.commands import check_data
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.prepare import prepare_pairs
from tpmm_jax.errors import BadInput

sys.path[:0] = [str(pathlib.Path(__file__).parent / name) for name in ("data", "loop")]
import planted  # noqa: E402
import tiny_run  # noqa: E402
import tokenizers_for_tests as small  # noqa: E402


@pytest.fixture
def run(capsys):
    """Runs the command; (exit code, standard output, standard error)."""

    def call(*argv):
        code = check_data.main([str(a) for a in argv])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder that holds a tokenizer alone."""
    folder = tmp_path_factory.mktemp("tokenizer")
    small.byte_level(small.CHATML).save_pretrained(folder)
    return folder


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROW = {"prompt": "the sky is", "chosen": " blue", "rejected": " black"}


def test_every_planted_row_is_named_with_its_line_and_column(tmp_path, run):
    content, wanted = planted.plant(good=2000, each=10)
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    code, out, _ = run(path, "--json")
    found = json.loads(out)
    assert code == BadInput.exit_code
    assert {"rows", "errors", "counts", "unread_columns"} <= set(found)
    assert len(planted.KINDS) >= 20 and len(wanted) == 10 * len(planted.KINDS)
    named = {(e["line"], e["field"]) for e in found["errors"]}
    assert all(e["file"] == str(path) and e["reason"] for e in found["errors"])
    missed = [(n, what) for n, what in wanted.items() if (n, what[1]) not in named]
    assert not missed
    assert {line for line, _ in named} == set(wanted), "a false alarm"
    assert found["rows"] == 2001 and found["counts"]["identical"] == 10
    assert found["counts"]["malformed"] == len(wanted) - 10


def _good(folder, kind, count):
    rng = random.Random(1)
    path = folder / f"{kind}.jsonl"
    rows = (planted.GOOD[kind](rng, n) for n in range(count))
    lines = (json.dumps(row, ensure_ascii=n % 2 == 0) for n, row in enumerate(rows))
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "share", [50, pytest.param(1000, marks=pytest.mark.slow)], ids=str
)
def test_no_false_alarm_on_good_rows(tmp_path, run, share):
    sizes = {"text": 4 * share, "implicit": 3 * share, "turns": 3 * share}
    code, out, _ = run(*(_good(tmp_path, *item) for item in sizes.items()), "--json")
    found = json.loads(out)
    assert code == 0 and found["errors"] == [] and found["rows"] == 10 * share
    assert found["counts"]["pairs"] == 10 * share


@pytest.mark.parametrize(
    "size", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("kind", planted.GOOD)
def test_good_rows_can_all_be_encoded(kind, size, tmp_path, run, tokenizer):
    path = _good(tmp_path, kind, size)
    code, out, _ = run(path, "--json", "--model", tokenizer)
    found = json.loads(out)
    assert code == 0 and found["errors"] == [] and found["rows"] == size
    assert found["counts"]["rows_kept"] == size


def test_a_run_refuses_or_drops_the_very_rows_that_are_named(tmp_path, run):
    content, wanted = planted.plant(good=400, each=2)
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    named = {e["line"] for e in json.loads(run(path, "--json")[1])["errors"]}
    assert named == set(wanted)
    codec = small.codec(small.byte_level())
    with pytest.raises(BadInput, match=f"in {len(wanted)} rows; nothing was used"):
        prepare_pairs(str(path), DataConfig(), codec).problems.settle()
    dropping = DataConfig(on_bad_rows="drop")
    found = prepare_pairs(str(path), dropping, codec)
    assert found.problems.settle() == len(wanted)
    kept = {int(row.origin.rsplit(":", 1)[1]) for row in found.rows}
    assert kept == set(range(1, 402)) - set(wanted)


def test_counts_of_one_table(tmp_path, run, tokenizer):
    rows = [
        ROW,
        ROW,  # repeats
        ROW | {"chosen": " black", "rejected": " blue"},  # the other way round
        ROW | {"prompt": "b", "chosen": "blue", "rejected": "blue and green"},
        {**ROW, "prompt": "c", "score_chosen": 1, "score_rejected": 1},
        {**ROW, "prompt": "d", "score_chosen": 1, "score_rejected": 2.5},
        ROW | {"prompt": "the sky " * 30},
        ROW | {"prompt": "e", "chosen": "green " * 9 + "a", "rejected": "green " * 9},
    ]
    path = _write(tmp_path / "p.jsonl", *rows)
    held = _write(
        tmp_path / "e.jsonl", rows[3], ROW | {"chosen": "x"}, {**ROW, "prompt": "new"}
    )
    other = _write(tmp_path / "q.jsonl", {"prompt": " The  sky\nis "}, {"prompt": "z"})
    code, out, _ = run(
        path, "--json", "--model", tokenizer, "--eval", held, other,
        "--max-prompt-length", 20, "--max-completion-length", 8,
        "--scorer", "test_check_data_command:prefer_black",
    )  # fmt: skip
    counts, remarks = (json.loads(out)[key] for key in ("counts", "remarks"))
    assert code == 0 and f"{path}:6: score_rejected 2.5 is above" in remarks[0]
    wanted = {
        "duplicate_prompts": 2, "duplicate_pairs": 1, "labelled_both_ways": 1,
        "tied": 1, "scored_otherwise": 1, "prompt_truncated": 1,
        "identical_after_truncation": 1, "rows_kept": 7, "pairs": 8,
        "eval_rows": 5, "eval_same_prompt": 3, "eval_same_pair": 1,
        "scorer_contradicts": 5, "scorer_agrees": 1, "scorer_ties": 2,
        "bos_first": 0, "bos_misplaced": 0, "ended_chosen": 7, "ended_rejected": 7,
    }  # fmt: skip
    assert {name: counts[name] for name in wanted} == wanted
    lengths = ("chosen_longer", "rejected_longer", "equally_long")
    assert sum(counts[name] for name in lengths) == 7


def talkative(prompts, responses):
    print("loading")
    return prefer_black(prompts, responses)


def test_json_stays_alone_on_the_output_whatever_a_scorer_prints(tmp_path, run):
    path = _write(tmp_path / "p.jsonl", ROW)
    scorer = "test_check_data_command:talkative"
    code, out, err = run(path, "--json", "--scorer", scorer)
    assert code == 0 and json.loads(out)["rows"] == 1 and "loading" in err


def test_a_line_without_a_pair_is_said(tmp_path, run, tokenizer):
    path = _write(tmp_path / "p.jsonl", ROW)
    _, out, _ = run(path, "--model", tokenizer, "--line", 7)
    assert "there is no pair that trains on --line 7" in out


def prefer_black(prompts, responses):
    return [["black" in text for text in texts] for texts in responses]


def test_the_table_the_rows_and_the_errors_are_plain_text(tmp_path, run, tokenizer):
    path = _write(tmp_path / "p.jsonl", *[ROW] * 3, *[ROW | {"chosen": ""}] * 25)
    code, out, err = run(path, "--model", tokenizer, "--show", 1)
    assert code == 2 and "\x1b" not in out + err
    assert "malformed" in out and "25   89.3 %  refused" in out
    assert "[▁blue] [<|im_end|>]" in " ".join(out.split())
    assert err.count("field 'chosen' is empty") == 20 and "and 5 more" in err
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = run(path)
    assert "give --model" in out and "BOS" not in out.split("not checked")[0]
    _, out, _ = run(path, "--model", tokenizer, "--line", 2)
    # A long path wraps.
    flat = "".join(out.split())
    assert "p.jsonl:2" in flat and "p.jsonl:1" not in flat


def test_conversations_prompts_columns_and_compressed_files(tmp_path, run, tokenizer):
    rng = random.Random(2)
    turns = _write(
        tmp_path / "t.jsonl", *(planted.good_turns(rng, n) for n in range(9))
    )
    code, out, _ = run(turns, "--model", tokenizer)
    assert code == 0 and "chat template" in out and "[<|im_end|>]" in out
    code, _, err = run(turns, "--model", tokenizer, "--no-chat")
    assert code == 2 and "switch chat on" in err
    prompts = _write(tmp_path / "q.jsonl", {"q": "a"}, {"q": "a"}, {"q": ""}, {"r": 1})
    code, out, _ = run(
        prompts, "--prompts", "--prompt-field", "q", "--json", "--model", tokenizer
    )
    found = json.loads(out)
    assert code == 2 and [e["line"] for e in found["errors"]] == [3, 4]
    assert found["rows"] == 4 and found["counts"]["duplicate_prompts"] == 1
    named = _write(tmp_path / "n.jsonl", {"q": "a", "good": "b", "bad": "c"})
    code, _, _ = run(named, "--fields", "prompt=q,chosen=good,rejected=bad")
    assert code == 0
    code, out, _ = run(
        named, "--fields", "prompt=q,chosen=better,rejected=bad", "--json"
    )
    assert json.loads(out)["errors"][0]["field"] == "better"


def test_a_config_says_all_of_it(tmp_path, run, tokenizer):
    path = _write(tmp_path / "p.jsonl", *[ROW] * 3, ROW | {"rejected": 3})
    config = tmp_path / "mine_checked.py"
    config.write_text(
        "import dataclasses, tiny_run\n"
        "from tpmm_jax.data.config import DataConfig\n"
        "from tpmm_jax.rewards import ScorerConfig\n"
        "def get_config():\n"
        f"    data = DataConfig(pairs={str(path)!r}, max_prompt_length=2)\n"
        "    return tiny_run.get_config(data=data, scorer=ScorerConfig())\n"
    )
    code, out, err = run("--config", config, "--model", tokenizer)
    assert code == 2 and "prompts cut on the left to 2 tokens" in " ".join(out.split())
    assert "a run refuses" in err
    args = ("--config", config, "--set", "data.on_bad_rows=drop", "--json")
    code, out, err = run(*args)
    assert code == 2 and json.loads(out)["counts"]["malformed"] == 1
    assert "is a function that builds a model" in err
    assert tiny_run.WORDS


@pytest.mark.parametrize(
    "argv, wanted",
    [
        ([], "nothing to check"),
        (["p.jsonl", "--fields", "choosen=a"], "did you mean chosen"),
        (["p.jsonl", "--fields", "chosen"], "wanted PART=COLUMN"),
        (["p.jsonl", "--fields", "chosen=a,rejected=a"], "used for two parts"),
        (
            ["p.jsonl", "--max-prompt-length", "0"],
            "--max-prompt-length is 0; use",
        ),
        (["p.jsonl", "--set", "iterations=2"], "give that too"),
        (["p.jsonl", "--scorer", "nowhere"], "module:function"),
        (["p.jsonl", "--prompt-field", "q"], "that of pairs is --fields prompt="),
        (["p.jsonl", "--prompts", "--fields", "prompt=q"], "is --prompt-field"),
        (["p.jsonl", "--prompts", "--scorer", "a:b"], "prompts have none"),
        (["p.jsonl", "--line", "1"], "give --model"),
        (["p.jsonl", "--max-prompt-length", "9"], "give --model"),
        (["p.jsonl", "--no-chat"], "give --model"),
        (["p.jsonl", "missing.jsonl"], "no such file"),
    ],
)
def test_bad_input_is_named(argv, wanted, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "p.jsonl", ROW)
    code, _, err = run(*argv)
    assert code == 2 and wanted in err


def test_every_error_has_the_place_of_its_row(tmp_path, run, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [ROW, {"prompt": "a"}, ROW, ROW | {"rejected": 1}]
    pathlib.Path("one.json").write_text(json.dumps(rows))
    datasets.Dataset.from_list([ROW, ROW | {"chosen": None}]).save_to_disk("saved")

    def places(*files):
        errors = json.loads(run(*files, "--json")[1])["errors"]
        assert all({"file", "line", "field", "reason"} <= set(e) for e in errors)
        return [(e["file"], e["line"], e.get("row")) for e in errors]

    assert places("one.json") == [("one.json", 1, n) for n in (1, 1, 3)]
    assert places("saved") == [("saved", 1, 1)]
    assert places(_write(tmp_path / "p.jsonl", {}))[0][1:] == (1, None)
    monkeypatch.setattr(datasets, "load_dataset", _no_dataset)
    assert places("org/name:2024") == [("org/name:2024", None, None)]
    texts = [json.dumps(ROW | {"prompt": f"the sky {n}"}) for n in range(8)]
    text = "[\n" + texts[0] + ",\n" + ", ".join(texts[1:7]) + ",\n" + texts[7] + "]"
    pathlib.Path("two.json").write_text(text)
    _, out, _ = run("two.json", "--model", tokenizer, "--line", 3)
    shown = [line for line in out.splitlines() if line.startswith("two.json")]
    assert shown == ["two.json:3"] + [f"two.json:3 row {n}" for n in range(2, 7)]


def _no_dataset(**kwargs):
    raise ValueError("no network")


ODD = [
    ROW | {"chosen": "a", "rejected": "a", "score_chosen": 1, "score_rejected": 1},
    ROW | {"chosen": "", "score_chosen": 1, "score_rejected": 1},
    ROW | {"prompt": "the sky " * 9, "chosen": "blue blue", "rejected": "blue black"},
    ROW | {"prompt": "the sky " * 9, "chosen": "blue one", "rejected": "blue two"},
]


IDS = [{"prompt": [1, 2]}] * 2


def test_no_share_of_the_table_is_above_all(tmp_path, run, tokenizer):
    path = _write(tmp_path / "p.jsonl", *ODD, ODD[1], ROW)
    limits = ("--max-prompt-length", 3, "--max-completion-length", 1)
    code, out, _ = run(path, "--model", tokenizer, *limits)
    shares = [float(s) for s in re.findall(r"([\d.]+) %", out)]
    assert code == 2 and len(shares) >= 8 and max(shares) <= 100
    assert "prompts over the limit 2 66.7 %" in " ".join(out.split())
    assert "ratings in the file tie" not in out
    prompts = _write(tmp_path / "q.jsonl", {"prompt": [1, 99999]}, {"prompt": ""}, *IDS)
    code, out, _ = run(prompts, "--prompts", "--model", tokenizer)
    assert "cannot be tokenised 1 33.3 % refused" in " ".join(out.split())
    assert max(float(s) for s in re.findall(r"([\d.]+) %", out)) <= 100


def test_prompts_are_shown_token_by_token(tmp_path, run, tokenizer):
    rows = [{"prompt": f"the sky {n}"} for n in range(5)]
    path = _write(tmp_path / "q.jsonl", *rows)
    _, out, _ = run(path, "--prompts", "--model", tokenizer, "--line", 2, "--line", 4)
    # A long path wraps.
    shown = re.findall(r"q\.jsonl:(\d)", out.replace("\n", ""))
    assert shown == ["2", "4"] and "▁sky" in out
    _, out, _ = run(path, "--prompts", "--model", tokenizer, "--line", 9)
    assert "there is no prompt that can be used on --line 9" in out


def test_evaluation_rows_are_prompts_whatever_else_they_hold(tmp_path, run):
    path = _write(tmp_path / "p.jsonl", ROW, ROW | {"prompt": "the sea is"})
    equal = ROW | {"rejected": ROW["chosen"]}
    held = _write(tmp_path / "e.jsonl", equal, ROW | {"rejected": ""}, ROW)
    code, out, _ = run(path, "--eval", held, "--json")
    found = json.loads(out)
    assert code == 0 and found["counts"]["eval_same_prompt"] == 3
    assert found["counts"]["eval_rows"] == 3 and found["counts"]["eval_same_pair"] == 1
    bare = {k: f"the sky is {v}" for k, v in ROW.items() if k != "prompt"}
    held = _write(tmp_path / "f.jsonl", bare, {"chosen": "a", "rejected": "b"})
    code, out, _ = run(path, "--eval", held, "--json")
    assert code == 0 and json.loads(out)["counts"]["eval_same_prompt"] == 1
    held = _write(tmp_path / "g.jsonl", {"prompt": ""}, {"prompt": "x"})
    assert run(path, "--eval", held, "--json")[0] == 2


def made_prompts():
    return ["the sky is", "something new"]


def test_a_function_may_make_what_is_checked(tmp_path, run):
    path = _write(tmp_path / "p.jsonl", ROW)
    made = "test_check_data_command:made_prompts"
    _, out, _ = run(path, "--eval", made, "--json", "--prompt-field", "q")
    assert json.loads(out)["counts"]["eval_same_prompt"] == 1
    code, out, _ = run(made, "--prompts", "--json", "--prompt-field", "q")
    assert code == 0 and json.loads(out)["rows"] == 2


def not_a_number(prompts, responses):
    return [[float("nan")] * len(texts) for texts in responses]


def test_a_scorer_that_fails_leaves_the_rest_of_the_summary(tmp_path, run):
    path = _write(tmp_path / "p.jsonl", ROW)
    scorer = ("--scorer", "test_check_data_command:not_a_number")
    code, out, err = run(path, "--json", *scorer)
    assert code == 2 and json.loads(out)["rows"] == 1 and "not_a_number" in err
    code, out, err = run(path, *scorer)
    assert code == 2 and "pairs that can be read" in out and "not_a_number" in err


@pytest.fixture
def odd_file(tmp_path):
    """A file of a row in Chinese and a bad one, whose name is no UTF-8 either."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/n\xff.jsonl")
    row = json.dumps(ROW | {"prompt": "天は"}, ensure_ascii=False)
    pathlib.Path(path).write_text(row + '\n{"天": 1}\n', encoding="utf-8")
    return path


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "table"])
def test_an_output_that_is_not_utf_8(
    options, encoding, odd_file, tokenizer, monkeypatch
):
    files = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, file in files.items():
        made = io.TextIOWrapper(file, encoding, write_through=True)
        monkeypatch.setattr(sys, name, made)
    code = check_data.main([odd_file, *options, "--model", str(tokenizer)])
    assert code == 2 and b"Traceback" not in files["stderr"].getvalue()
    if options:
        found = json.loads(files["stdout"].getvalue())
        assert "天" in found["errors"][0]["reason"]


def test_a_process_whose_output_is_not_utf_8(odd_file, tokenizer):
    command = [sys.executable, "-m", "tpmm_jax.check_data", os.fsencode(odd_file)]
    done = subprocess.run(
        [*command, "--model", tokenizer],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "side, other", [("chosen", "rejected"), ("rejected", "chosen")]
)
def test_a_side_that_is_nearly_always_longer_earns_a_remark(
    side, other, tmp_path, run, tokenizer
):
    long = {"prompt": "the sky is", side: " blue and green and blue", other: " blue"}
    even = ROW | {"chosen": " blue", "rejected": " gree"}
    path = _write(tmp_path / "p.jsonl", *[long] * 10, even)
    code, out, _ = run(path)
    said = " ".join(out.split())
    assert code == 0 and "nothing is wrong" not in out
    assert f"{side} is longer, in characters, in 10 of 11 pairs" in said
    assert f"{side} is longer, in characters 10 90.9 %" in said
    found = json.loads(run(path, "--model", tokenizer, "--json")[1])
    assert found["length_unit"] == "tokens" and "in tokens" in found["remarks"][0]
    path = _write(tmp_path / "q.jsonl", *[long] * 9, even)
    code, out, _ = run(path)
    assert code == 0 and "nothing is wrong with these rows" in out
