"""What is wrong is said before anything expensive, without a traceback."""

import io
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_run
from transformers import AddedToken

from tpmm_jax.commands import export
from tpmm_jax.commands import train as command_line
from tpmm_jax.config import ModelSource
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.setup import open_run
from tpmm_jax.models.families import FAMILIES
from tpmm_jax.rewards import ScorerConfig

Text = pytest.CaptureFixture[str]


@pytest.fixture
def attempt(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Text
) -> Callable[..., str]:
    """Runs a changed tiny config; returns what was printed on stderr."""

    def run(code: int, workdir: pathlib.Path | None = None, **changes: Any) -> str:
        config = tiny_run.get_config(**changes)
        monkeypatch.setattr(command_line, "load_config", lambda *_: config)
        workdir = workdir or tmp_path / "run"
        found = command_line.main(["--config", "c.py", "--workdir", str(workdir)])
        text = " ".join(capsys.readouterr().err.split())
        assert found == code, text
        assert "Traceback" not in text
        assert not (workdir / "trajectory" / "trajectory.jsonl").exists()
        return text

    return run


def model_with(tmp_path: pathlib.Path, file: str, change: Callable) -> ModelSource:
    directory = tmp_path / "model"
    tiny_run.build_model(directory)
    content = json.loads((directory / file).read_text())
    change(content)
    (directory / file).write_text(json.dumps(content))
    return ModelSource(source=str(directory))


def test_addresses_are_refused(
    attempt: Callable[..., str], capsys: Text, tmp_path: pathlib.Path
) -> None:
    bucket = "gs://bucket/some"
    assert "--workdir gs:/bucket/some: an address" in attempt(
        2, workdir=pathlib.Path(bucket)
    )
    model, data = ModelSource(source=bucket), DataConfig(prompts=f"{bucket}.jsonl")
    assert f"model.source = {bucket}: an address" in attempt(2, model=model)
    assert f"data.prompts = {bucket}.jsonl: an address" in attempt(2, data=data)
    pairs = DataConfig(pairs=f"{bucket}.jsonl")
    given = {"data": pairs, "scorer": ScorerConfig()}
    assert f"{bucket}.jsonl: an address" in attempt(2, **given)
    assert export.main([str(tmp_path), "--output", bucket]) == 2
    assert f"--output {bucket}: an address" in capsys.readouterr().err
    assert not pathlib.Path("gs:").exists()


def test_missing_model(attempt: Callable[..., str]) -> None:
    text = attempt(2, model=ModelSource(source="./nowhere"))
    assert "nowhere: no such directory" in text


def test_unknown_architecture(
    attempt: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    model = model_with(tmp_path, "config.json", lambda c: c.update(model_type="mamba"))
    text = attempt(2, model=model)
    assert "'mamba'" in text and all(name in text for name in FAMILIES)


def test_unknown_config_field(
    attempt: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    model = model_with(tmp_path, "config.json", lambda c: c.update(attn_sinks=4))
    assert "attn_sinks = 4" in attempt(2, model=model)


def test_tokenizer_without_eos(
    attempt: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    model = model_with(
        tmp_path, "tokenizer_config.json", lambda c: c.update(eos_token=None)
    )
    assert "no EOS token" in attempt(2, model=model)


def test_no_tokenizer(attempt: Callable[..., str], tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "model"
    tiny_run.build_model(directory)
    (directory / "tokenizer.json").unlink()
    text = attempt(2, model=ModelSource(source=str(directory)))
    assert "has no tokenizer" in text


def larger_tokenizer(directory: pathlib.Path, special: bool) -> ModelSource:
    """A model whose tokenizer has a token more than it has embeddings."""
    tiny_run.build_model(directory)
    made = tiny_run.tokenizer()
    made.add_tokens([AddedToken("<image>", special=special)])
    made.save_pretrained(directory)
    return ModelSource(source=str(directory))


def test_another_models_tokenizer(
    attempt: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    text = attempt(2, model=larger_tokenizer(tmp_path / "model", special=False))
    assert "has 32 tokens, the model only 31 embeddings" in text


def test_a_special_token_without_an_embedding_is_refused_where_it_stands(
    attempt: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    model = larger_tokenizer(tmp_path / "model", special=True)
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"w{n % 28} w{n // 28}"}) for n in range(60)]
    path.write_text("\n".join([*lines, '{"prompt": "w1 <image>"}']) + "\n")
    data = DataConfig(prompts=str(path))
    text = attempt(2, model=model, data=data)
    assert "prompts.jsonl:61" in text and "no embedding for <image> (id 31" in text
    path.write_text("\n".join(lines) + "\n")
    config = tiny_run.get_config(model=model, data=data)
    console = RunConsole(io.StringIO(), io.StringIO())
    with open_run(config, tmp_path / "good", console) as run:
        assert run.disk.trajectory.steps() == [0]


def test_missing_prompts(attempt: Callable[..., str], tmp_path: pathlib.Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w1"}\n')
    data = DataConfig(prompts=str(tmp_path / "prompt.jsonl"))
    assert "prompts.jsonl" in attempt(2, data=data)


def test_malformed_lines_are_all_named(
    attempt: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    lines = ['{"prompt": "w1 w2"}'] * 20
    lines[3], lines[11] = '{"prompt": "w1"', '{"prompt": 7}'
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    text = attempt(2, data=DataConfig(prompts=str(path)))
    assert "prompts.jsonl:4" in text and "prompts.jsonl:12" in text


def test_too_few_prompts(attempt: Callable[..., str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "w1"}\n{"prompt": "w2"}\n')
    text = attempt(2, data=DataConfig(prompts=str(path)))
    assert "holds 2 prompts" in text


def raises(prompts: Any, responses: Any) -> Any:
    raise RuntimeError("no such judge")


def wrong_shape(prompts: Any, responses: Any) -> Any:
    return np.zeros(len(prompts))


def not_finite(prompts: Any, responses: Any) -> Any:
    return np.full((len(prompts), len(responses[0])), np.nan)


def not_numbers(prompts: Any, responses: Any) -> Any:
    return [["good"] * len(r) for r in responses]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "RuntimeError: no such judge"),
        ("wrong_shape", "returned shape (2,); wanted (2, 3)"),
        ("not_finite", "every reward must be finite"),
        ("not_numbers", "not an array of numbers"),
        ("absent", "has no function absent"),
    ],
)
def test_scorers(attempt: Callable[..., str], name: str, said: str) -> None:
    text = attempt(2, scorer=ScorerConfig(name=f"test_bad_input:{name}"))
    assert said in text


def test_scorer_module_missing(attempt: Callable[..., str]) -> None:
    text = attempt(2, scorer=ScorerConfig(name="no_such_module:score"))
    assert "no_such_module cannot be imported" in text


def test_unwritable_workdir(
    attempt: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in attempt(4, workdir=tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_full_and_read_only_disk(
    attempt: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert "free" in attempt(4, workdir=disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert "read-only" in attempt(4, workdir=disk / "other").lower()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of one iteration on prompts from a file."""
    folder = tmp_path_factory.mktemp("started")
    lines = [json.dumps({"prompt": text}) for text in tiny_run.prompts()]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    out = io.StringIO()
    data = DataConfig(prompts=str(folder / "prompts.jsonl"), max_prompt_length=8)
    config = tiny_run.get_config(iterations=1, data=data)
    command_line.run(config, folder / "run", RunConsole(out, out))
    return folder


def again(folder: pathlib.Path, **changes: Any) -> None:
    data = DataConfig(prompts=str(folder / "prompts.jsonl"), max_prompt_length=8)
    config = tiny_run.get_config(**{"iterations": 1, "data": data, **changes})
    out = io.StringIO()
    command_line.run(config, folder / "run", RunConsole(out, out))


def test_another_configuration(started: pathlib.Path) -> None:
    with pytest.raises(BadInput, match="seed: was 0, is now 1"):
        again(started, seed=1)
    again(started)


def test_changed_data(started: pathlib.Path) -> None:
    path = started / "prompts.jsonl"
    before = path.read_text()
    path.write_text(before + '{"prompt": "w1 w1 w1 w1"}\n')
    with pytest.raises(BadInput, match="prompts changed since"):
        again(started)
    path.write_text(before)


def test_a_start_killed_before_theta_0_was_committed(
    started: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(started, tmp_path / "copy")
    trajectory = tmp_path / "copy" / "run" / "trajectory"
    (trajectory / "trajectory.jsonl").unlink()
    shutil.rmtree(trajectory / "1")
    shutil.rmtree(tmp_path / "copy" / "run" / "iterations")
    (tmp_path / "copy" / "run" / "metrics.jsonl").unlink()
    # Another seed: nothing binds before theta_0 is there.
    again(tmp_path / "copy", seed=5)


def test_two_processes_in_one_workdir(
    attempt: Callable[..., str], tmp_path: pathlib.Path
) -> None:
    from tpmm_jax.store import RunLock

    with RunLock(tmp_path / "run"):
        assert "in use by process" in attempt(2)


def test_missing_config_file(tmp_path: pathlib.Path, capsys: Text) -> None:
    (tmp_path / "mine.py").write_text("")
    assert command_line.main(["--config", str(tmp_path / "min.py")]) == 2
    assert "mine.py" in capsys.readouterr().err
