"""tpmm check_data --config and a run of that config agree about the data."""

import csv
import gzip
import io
import json
import pathlib
import sys

import pyarrow
import pytest

from tpmm_jax.commands import check_data
from tpmm_jax.config import load_config
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.setup import open_run

sys.path[:0] = [str(pathlib.Path(__file__).parent / "loop")]
import tiny_run  # noqa: E402

CONFIG = """
import tiny_run
from tpmm_jax.config import EvaluationConfig, ModelSource
from tpmm_jax.data.config import DataConfig

def get_config():
    return tiny_run.get_config(
        data=DataConfig({data}),
        model=ModelSource(source={model!r}, remat=False),
        evaluation=EvaluationConfig(num_prompts=4),
    )
"""
PAIRS = [
    {"prompt": f"w1 w{n}", "chosen": f" w{n + 1}", "rejected": " w0"} for n in range(12)
]
PROMPTS = [{"prompt": f"w{n} w2"} for n in range(27)]
EQUAL = [{"prompt": f"w{n}", "chosen": "w1", "rejected": "w1"} for n in range(6)]
BARE = [{"chosen": "w1 w2", "rejected": "w1 w3"}] * 6
MESSAGES = [{"prompt": [{"role": "user", "content": f"w{n}"}]} for n in range(6)]
IDS = [*PROMPTS[:5], {"prompt": ""}, *PROMPTS[5:]]
EMPTY = [{"prompt": " "}, *PROMPTS]
LONG = [row | {"chosen": " w5" * 70} for row in PAIRS]
UNKNOWN = [{"prompt": [3 + n, 4]} for n in range(26)] + [{"prompt": [1, 99999]}]
CUT = gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in PAIRS * 20))


def _csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def _zstd(rows):
    text = "\n\n".join(map(json.dumps, rows))
    return pyarrow.Codec("zstd").compress(text.encode(), asbytes=True)


def _scored(scores):
    return [
        {"prompt": f"w1 w{n}", "responses": [" w2", " w3"], "scores": scores}
        for n in range(12)
    ]


SHARE = {
    "conversations": [{"from": "human", "value": "w1"}],
    "chosen": {"from": "gpt", "value": "w2"},
    "rejected": {"from": "gpt", "value": "w3"},
}
RATED = [row | {"score_chosen": 1, "score_rejected": 2} for row in PAIRS]
EVAL, DROP = "data.eval_prompts=e.jsonl", "data.on_bad_rows=drop"
FAR = 'evaluation.sets={"far": "far.jsonl"}'

# (pairs or prompts, further files, overrides, what both say; "" where both accept).
CASES = {
    "good pairs": (PAIRS, {}, [], ""),
    "good prompts": (PROMPTS, {}, [], ""),
    "evaluated on pairs without prompts": (
        PAIRS, {"e.jsonl": BARE}, [EVAL], "field 'prompt' is missing"),
    "evaluated on prompts of equal pairs": (PAIRS, {"e.jsonl": EQUAL}, [EVAL], ""),
    "evaluated on messages": (
        PAIRS, {"e.jsonl": MESSAGES}, [EVAL], "needs a chat template"),
    "a set of bad rows": (
        PROMPTS, {"far.jsonl": EMPTY}, [FAR], "field 'prompt' is empty"),
    "a set of one": (PROMPTS, {"far.jsonl": PROMPTS[:1]}, [FAR], "holds 1 prompts"),
    "a good set": (PROMPTS, {"far.jsonl": PROMPTS}, [FAR], ""),
    "one to evaluate on": (PAIRS, {"e.jsonl": PROMPTS[:1]}, [EVAL], "holds 1 eval"),
    "longer than the model": (LONG, {}, [], "reach 7"),
    "prompts longer than the model": (
        PROMPTS, {}, ["rollout.max_new_tokens=63"], "reach 6"),
    "fewer than iterations": (PAIRS[:1], {}, [], "1 usable pairs for 2"),
    "fewer prompts than iterations": (PAIRS[:1] * 3, {}, [], "different prompts"),
    "too few prompts": (PROMPTS[:5], {}, [], "holds 5 prompts"),
    "steps that never come": (
        PAIRS, {}, ["reference.rule=trust_region", "reference.trust_region_tau=99"],
        "trust_region_tau"),
    "cut off": (CUT[:-9], {}, [], "cut off"),
    "cut off, dropping": (CUT[:-9], {}, [DROP], "cut off"),
    "unknown ids": (UNKNOWN, {}, [], "99999"),
    "unknown ids, dropped": (UNKNOWN, {}, [DROP], ""),
    "an empty prompt": (IDS, {}, [], "is empty"),
    "an empty prompt, dropped": (IDS, {}, [DROP], ""),
    "all dropped": ([{"prompt": ""}] * 3, {}, [DROP], "holds 0"),
    "all pairs dropped": (EQUAL, {}, [DROP], "0 usable pairs"),
    "pairs in CSV": (("d.csv", _csv(PAIRS)), {}, [], ""),
    "a quote that never ends": (
        ("d.csv", _csv(PAIRS) + b'"w1,w2,w3\n'), {}, [DROP], "never ends"),
    "prompts in CSV": (("p.csv", _csv(PROMPTS)), {}, [], ""),
    "an empty prompt in CSV": (
        ("p.csv", _csv([*PROMPTS, {"prompt": ""}]) + b'""\n'), {}, [],
        "field 'prompt' is empty"),
    "pairs in Zstandard": (("d.jsonl.zst", _zstd(PAIRS)), {}, [], ""),
    "evaluated on Zstandard": (
        PAIRS, {"e.jsonl": PROMPTS, "far.csv": _csv(PROMPTS)},
        [EVAL, 'evaluation.sets={"far": "far.csv"}'], ""),
    "a pattern": (
        ("d*.jsonl", b""), {"d1.jsonl": PAIRS[:6], "d2.jsonl": PAIRS[6:]}, [], ""),
    "a pattern with a bad row": (
        ("d*.jsonl", b""), {"d1.jsonl": PAIRS, "d2.jsonl": PAIRS[:2] + EQUAL}, [],
        "equals 'chosen'"),
    "a pattern of nothing": (("d*.jsonl", b""), {}, [], "no file matches"),
    "scored answers": (_scored([1, 2]), {}, [], ""),
    "scored alike": (_scored([2, 2]), {}, [], "0 usable pairs"),
    "scores missing": (_scored([2]), {}, [], "has 1 items for the 2 answers"),
    "ShareGPT without a template": ([SHARE] * 12, {}, [], "needs a chat template"),
    "rated otherwise": (RATED, {}, [], ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_they_agree(case, tmp_path, capsys, monkeypatch):
    rows, files, overrides, wanted = CASES[case]
    monkeypatch.chdir(tmp_path)
    name = "d.jsonl.gz" if isinstance(rows, bytes) else "d.jsonl"
    if isinstance(rows, tuple):
        name, rows = rows
    packed = isinstance(rows, bytes)
    own = {} if "*" in name else {name: rows}
    for file, content in {**own, **files}.items():
        if not isinstance(content, bytes):
            content = "".join(json.dumps(row) + "\n" for row in content).encode()
        pathlib.Path(file).write_bytes(content)
    data = f"prompts={name!r}"
    if name[0] == "d" and (packed or not {"chosen", "scores"}.isdisjoint(rows[0])):
        data = f"pairs={name!r}"
        if EVAL not in overrides:
            overrides = [*overrides, "scorer.name=null"]
    model = str(tiny_run._built())
    path = tmp_path / f"config_{tmp_path.name}.py"
    path.write_text(CONFIG.format(data=data, model=model))

    options = [word for override in overrides for word in ("--set", override)]
    code = check_data.main(["--config", str(path), *options, "--json"])
    found = json.loads(capsys.readouterr().out)
    named = [error["reason"] for error in found["errors"]]
    assert wanted in "".join(named)
    dropping = DROP in overrides and not found["counts"]["refused_whole"]
    accepts = not found["errors"] or dropping
    assert code == (2 if found["errors"] else 0)

    console = RunConsole(io.StringIO(), io.StringIO())
    config = load_config(path, overrides)
    try:
        with open_run(config, tmp_path / "work", console):
            refusal = ""
    except BadInput as error:
        refusal = str(error)
    assert wanted in refusal and bool(wanted) == bool(refusal)
    assert accepts == (not refusal), (named, refusal)
