"""generation_config.json goes through load, a run, merge and export as it came."""

import io
import json

import command_runs
import pytest

import tpmm_jax as tpmm
from tpmm_jax.commands import export, merge_checkpoints
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.theta_0 import store_first
from tpmm_jax.models import Decoder
from tpmm_jax.store import Trajectory
from tpmm_jax.weights.loading import resolve

# The end of a turn comes first here and last in the vocabulary, as in Qwen and Llama.
SETTINGS = {
    "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9,
    "repetition_penalty": 1.05, "pad_token_id": 3, "eos_token_id": [9, 1, 0],
    "suppress_tokens": [17], "transformers_version": "4.46.3",
}  # fmt: skip


def settings(folder):
    return json.loads((folder / "generation_config.json").read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = command_runs.model_folder(tmp_path_factory.mktemp("model") / "source")
    (folder / "generation_config.json").write_text(
        json.dumps({"_from_model_config": True} | SETTINGS)
    )
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2}))
    return folder


def test_load_and_save_keep_it(source, tmp_path):
    model = tpmm.load(source)
    assert set(model.config.eos_ids) == {0, 1, 2, 9}  # 2: of config.json
    tpmm.save(model, tmp_path / "saved")
    assert settings(tmp_path / "saved") == SETTINGS | {"eos_token_id": [9, 1, 0, 2]}
    again = tpmm.load(tmp_path / "saved")
    tpmm.save(again, tmp_path / "twice")
    assert settings(tmp_path / "twice") == settings(tmp_path / "saved")
    ends = json.loads((tmp_path / "saved" / "config.json").read_text())["eos_token_id"]
    assert ends[0] == 2


def test_a_run_a_merge_and_an_export_keep_it(source, tmp_path):
    found = resolve(source)
    console = RunConsole(io.StringIO(), io.StringIO())
    workdir = tmp_path / "run"
    workdir.mkdir()
    with Trajectory(workdir / "trajectory") as trajectory:
        store_first(found, Decoder(found.config), trajectory, 0, workdir, console)
    other = command_runs.model_folder(tmp_path / "other")
    merged, exported = str(tmp_path / "merged"), str(tmp_path / "exported")
    models = [f"{workdir}/trajectory@0", str(other)]
    assert merge_checkpoints.main([*models, "--uniform", "--output", merged]) == 0
    assert export.main([merged, "--output", exported]) == 0
    for folder in (workdir / "model", tmp_path / "merged", tmp_path / "exported"):
        found = settings(folder)
        assert found | SETTINGS == found | {"eos_token_id": [9, 1, 0]}
        assert found["eos_token_id"] == [9, 1, 0, 2]
    with pytest.warns(UserWarning, match="ends its answers with other token ids"):
        tpmm.save(tpmm.merge(models, [0.5, 0.5]), tmp_path / "in_python")
    assert settings(tmp_path / "in_python") == settings(tmp_path / "merged")
