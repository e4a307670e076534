"""What goes wrong on the first day is said so that it can be put right."""

import json
import pathlib
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import tpmm_jax as tpmm
from tpmm_jax.commands.dispatch import main
from tpmm_jax.config import load_config
from tpmm_jax.data.sources import read_rows
from tpmm_jax.errors import BadInput, nearest_path
from tpmm_jax.rewards.scorer import NamedScorer, import_object
from tpmm_jax.sampling.decode import draw_next
from tpmm_jax.sampling.rules import SamplingConfig
from tpmm_jax.weights.tokenizer import read_tokenizer

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.write_text(textwrap.dedent(text))
    return path


def test_a_scorer_that_raises_shows_its_own_lines(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = write(
        tmp_path / "scores_that_raise.py",
        """
        def score(prompts, responses):
            return [[look_up(r) for r in some] for some in responses]

        def look_up(text):
            return {}[text]
        """,
    )
    scorer = NamedScorer("mine", import_object("scores_that_raise:score", "scorer"))
    with pytest.raises(BadInput) as caught:
        scorer(["Hi"], [["Hello"]])
    text = str(caught.value)
    assert "scorer mine raised KeyError: 'Hello' (on 1 prompts" in text
    assert f'File "{path}", line 6, in look_up\n    return {{}}[text]' in text
    assert text.count("return [[look_up(r)") == 1
    assert "stopping" not in text and "rewards" not in text, "our own frames"


CONFIG = """
    from tpmm_jax.config import Config, ModelSource
    from tpmm_jax.data.config import DataConfig
    from tpmm_jax.rewards import ScorerConfig
    from tpmm_jax.steps import TrainConfig

    def {function}(prompts, responses):
        return [[1.0 for r in some] for some in responses]

    def get_config():
        return Config(
            model=ModelSource(source="m"), data=DataConfig(prompts="p.jsonl"),
            scorer=ScorerConfig(name="{scorer}"), iterations=1,
            train=TrainConfig(learning_rate=1e-4),
        )
"""


def test_a_copied_config_that_names_the_old_one_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"function": "first_day_score"}
    first = write(
        tmp_path / "first_day_a.py",
        CONFIG.format(scorer="first_day_a:first_day_score", **names),
    )
    load_config(first)
    copied = shutil.copy(first, tmp_path / "first_day_b.py")
    with pytest.raises(BadInput, match="write first_day_b:first_day_score"):
        load_config(copied)
    # A function of another file that is no config, or of another name, is meant.
    write(tmp_path / "first_day_s.py", "def first_day_score(p, r):\n    return 0\n")
    for scorer in ("first_day_s:first_day_score", "first_day_a:other"):
        path = write(tmp_path / "first_day_c.py", CONFIG.format(scorer=scorer, **names))
        load_config(path)
    # The old file is gone.
    with pytest.raises(BadInput, match=r"itself: first_day_\w:first_day_score"):
        import_object("first_day_gone:first_day_score", "scorer.name")


def test_a_config_that_raises_shows_the_line(tmp_path: pathlib.Path) -> None:
    text = "def get_config():\n    return Confg()\n"
    path = write(tmp_path / "raising.py", text)
    with pytest.raises(BadInput, match=r"line 2, in get_config\n    return Confg\(\)"):
        load_config(path)


def test_the_nearest_path_is_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "smollm2").mkdir(parents=True)
    near = nearest_path(tmp_path / "runs" / "smolm2" / "trajectory@2")
    assert near == f"; did you mean {tmp_path}/runs/smollm2/trajectory@2?"
    assert nearest_path(tmp_path / "runs" / "smollm2") == "", "it is there"
    assert nearest_path(tmp_path / "runs" / "smollm2" / "model") == ""
    assert nearest_path("/") == ""
    wrong = str(tmp_path / "runs" / "smolm2")
    for words in (
        ["sample", wrong, "--prompt", "Hi"],
        ["sample", f"{wrong}/trajectory@2", "--prompt", "Hi"],
        ["report", wrong],
        ["repair", wrong],
    ):
        assert main(words) == 2
        err = capsys.readouterr().err.replace("\n", "")
        assert "did you mean" in err and "runs/smollm2" in err, words


def test_git_lfs_pointers_are_named(tmp_path: pathlib.Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(FIXTURES / "gemma" / "config.json", model)
    (model / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(BadInput, match=r"git-lfs pointer.*git lfs pull"):
        tpmm.load(model)
    (model / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(BadInput, match="git-lfs pointer"):
        read_tokenizer(model)
    for name in ("m.gguf", "rows.jsonl", "rows.parquet"):
        (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(BadInput, match=r"m\.gguf is a git-lfs pointer"):
        tpmm.load(tmp_path / "m.gguf")
    for name in ("rows.jsonl", "rows.parquet"):
        with pytest.raises(BadInput, match="git-lfs pointer"):
            read_rows(str(tmp_path / name))


def test_gguf_files_by_other_names(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.GGUF").write_bytes(b"GGUF")
    with pytest.raises(BadInput, match="damaged, incomplete"):
        tpmm.load(tmp_path / "model.GGUF")
    with pytest.raises(BadInput, match=r"did you mean .*model\.GGUF\?"):
        tpmm.load(tmp_path)


def test_a_sentencepiece_tokenizer_says_what_it_needs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="pip install sentencepiece"):
        read_tokenizer(tmp_path)


def test_options_are_named_as_they_are_typed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    for words, wanted in (
        ("sample m --prompt a --top-p 2", "--top-p is 2.0"),
        ("sample m --prompt a --num-samples 0", "--num-samples is 0"),
        ("evaluate m --prompts p --temperature -1", "--temperature is -1.0"),
        ("best_of_n m --prompts p --proxy a:b --gold a:c --top-k -1", "--top-k is -1"),
        ("merge_checkpoints m n --learn p --output o --steps 0", "--steps is 0"),
        (f"check_data {rows} --max-prompt-length 0", "--max-prompt-length is 0"),
        ("evaluate m", "give --prompts FILE, --pairs FILE or both"),
        ("evaluate m n --pairs p --limit 2", "--limit needs --prompts"),
    ):
        assert main(words.split()) == 2, words
        assert wanted in capsys.readouterr().err, words


def test_arguments_of_other_kinds_are_bad_input() -> None:
    """In a process of its own: here types are checked at every call."""
    code = """
import sys
import numpy as np
import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput

model = tpmm.load(sys.argv[1])
for wrong in (
    {"temperature": None}, {"temperature": "hot"}, {"top_p": None}, {"top_k": 1.5},
    {"max_new_tokens": None}, {"seed": None}, {"seed": 0.5}, {"num_samples": None},
    {"num_samples": True},
):
    [name] = wrong
    calls = [lambda: tpmm.generate(model, [[5, 6]], **wrong)]
    if name != "num_samples":
        calls.append(lambda: tpmm.stream(model, [5, 6], **wrong))
    for call in calls:
        try:
            call()
        except BadInput as error:
            assert str(error).startswith(f"{name} is "), error
        else:
            raise AssertionError(wrong)
few = {"max_new_tokens": np.int64(2), "temperature": np.float32(1)}
assert tpmm.generate(model, [[5, 6]], seed=np.int32(1), **few)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(FIXTURES / "gemma")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr


def test_ids_beyond_the_tokenizer_are_never_drawn() -> None:
    model = tpmm.load(FIXTURES / "gemma")
    hidden_BD = jnp.ones((3, model.config.width))
    keys = jax.random.split(jax.random.key(0), 3)
    for config in (
        SamplingConfig(temperature=0.0),
        SamplingConfig(temperature=9.0),
        SamplingConfig(top_p=0.5),
        SamplingConfig(top_k=2),
    ):
        for step in jnp.arange(20):
            drawn = draw_next(
                model.decoder, model.params, hidden_BD, keys, step, config, 5
            )
            assert (drawn < 5).all(), config
