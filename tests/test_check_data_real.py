"""Real preference files through the check and two training steps (docs/results.md).

Looks for TPMM_ASSETS (data/, models/stories260k) and for smollm2/*.gguf in the folder
that TPMM_TOKENIZERS names.
"""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tpmm_jax.commands import check_data

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests" / "fixtures"))
import conversations  # noqa: E402

ASSETS = pathlib.Path(os.environ.get("TPMM_ASSETS") or "no/such/folder")
TOKENIZERS = pathlib.Path(os.environ.get("TPMM_TOKENIZERS") or "no/such/folder")
STORIES = ASSETS / "models" / "stories260k"
SMOLLM2 = next(iter(TOKENIZERS.glob("smollm2/**/*.gguf")), TOKENIZERS / "smollm2")
HH = ASSETS / "data" / "hh_harmless_base_test.jsonl.gz"
POLITE = ASSETS / "data" / "polite_impolite.json"
TEMPLATE = """\
{{ bos_token }}{% for m in messages %}
{{ m.role }}: {{ m.content }}{{ eos_token if m.role == "assistant" else "" }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
MODELS = {"stories260k": STORIES, "smollm2": SMOLLM2}


def _run(command, capsys, *argv):
    code = command.main([str(a) for a in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def _train(*argv):
    """Runs the command on one device: conftest's eight would hold a replica each."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    env.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "tpmm_jax.train", *map(str, argv)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "path, rows, lines",
    [
        (HH, 2312, [87, 517, 926, 1104]),
        (POLITE, 1100, [856, 1584, 2802, 3964, 4398, 4734]),
    ],
    ids=["hh", "polite"],
)
@pytest.mark.skipif(not HH.exists(), reason="no TPMM_ASSETS")
def test_the_bad_rows_of_real_sets_are_named(name, path, rows, lines, capsys):
    if not MODELS[name].exists():
        pytest.skip("no such model here")
    code, out, _ = _run(check_data, capsys, path, "--json", "--model", MODELS[name])
    found = json.loads(out)
    assert code == 2 and found["rows"] == rows
    assert [e["line"] for e in found["errors"]] == lines
    counts = found["counts"]
    assert counts["rows_kept"] == counts["pairs"] == rows - len(lines)
    assert counts["ended_chosen"] == counts["pairs"] - counts["chosen_truncated"]
    assert counts["bos_first"] == (counts["pairs"] if name == "stories260k" else 0)
    assert counts["bos_misplaced"] == counts["boundary_merged"] == 0


def _small(folder, kind):
    """The bad rows of a set behind its first good ones; the path, and how many."""
    path = folder / f"{kind}.jsonl"
    if kind == "hh":
        lines = gzip.decompress(HH.read_bytes()).decode().splitlines()
        chosen = [*lines[:14], *(lines[n - 1] for n in (87, 517, 926, 1104))]
    elif kind == "polite":
        rows = json.loads(POLITE.read_text())
        same = [row for row in rows if row["chosen"] == row["rejected"]]
        chosen = [json.dumps(row) for row in (*rows[1:15], *same)]
    else:
        lines = conversations.lines(bad=True)
        chosen = lines[:14] + lines[-5:]
    path.write_text("\n".join(chosen) + "\n")
    return path, len(chosen) - 14


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hh", "polite", "conversations"])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_refuses_the_set_and_trains_two_steps_without_its_bad_rows(
    name, kind, tmp_path
):
    if not MODELS[name].exists() or not HH.exists():
        pytest.skip("no such model or data here")
    model = MODELS[name]
    if (name, kind) == ("stories260k", "conversations"):
        # It has no chat template of its own.
        model = shutil.copytree(
            model, tmp_path / "model", copy_function=shutil.copyfile
        )
        (model / "chat_template.jinja").write_text(TEMPLATE)
    path, bad = _small(tmp_path, kind)
    options = {
        "model.source": model, "data.pairs": path, "iterations": 1,
        "data.chat": str(kind == "conversations").lower(), "train.batch_size": 5,
        "reference.rule": "previous", "data.max_prompt_length": 192,
        "data.max_completion_length": 64,
    }  # fmt: skip
    argv = ["--config", ROOT / "configs" / "offline.py", "--workdir", tmp_path / "run"]
    for item in options.items():
        argv += ["--set", "=".join(map(str, item))]
    code, _, err = _train(*argv)
    assert code == 2 and f"in {bad} rows; nothing was used" in err
    code, out, _ = _train(*argv, "--set", "data.on_bad_rows=drop")
    assert code == 0 and f"{bad} bad rows left out" in out
    assert "14 pairs kept" in out and "DPO  2/2 steps" in out
    print((tmp_path / "run" / "metrics.jsonl").read_text())  # with -rP
