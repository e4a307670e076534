"""tpmm export --peft: a step's adapter over the base that it belongs to."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.commands import export
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.models.families import make_config
from tpmm_jax.store import Base, Trajectory
from tpmm_jax.store.files import write_json
from tpmm_jax.weights.description import write_description
from tpmm_jax.weights.saving import save
from tpmm_jax.weights.source import Model

LORA = LoraConfig(rank=2, alpha=6.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir beside its base."""
    folder = tmp_path_factory.mktemp("peft")
    config = make_config(
        "llama", vocab_size=11, width=8, mlp_width=6, num_layers=1, num_heads=2,
        num_kv_heads=1, max_positions=16,
    )  # fmt: skip
    decoder = Decoder(config, lora=LORA)
    model = Model(decoder, decoder.init(jax.random.key(0)))
    save(model, folder / "base")
    workdir = folder / "run"
    (workdir / "model").mkdir(parents=True)
    write_description(config, None, "float32", workdir / "model")
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32),
        decoder.abstract_trained(),
    )
    record = {"source": str(folder / "base")}
    with Trajectory(
        workdir / "trajectory",
        storage="lora",
        lora=LORA,
        base=Base(lambda: model.params, "base", ""),
    ) as trajectory:
        trajectory.append(0, adapters, {"iteration": 0, **record, "base": record})
    lora = dataclasses.asdict(dataclasses.replace(LORA, dropout=0.25))
    content = {"iterations": 1, "model": record | {"lora": lora}}
    content |= {"reference": {"rule": "sft"}, "loss": {"name": "dpo"}}
    write_json(workdir / "config.json", content)
    return workdir


def test_the_adapter_is_the_step(run, tmp_path):
    step = f"{run}/trajectory@0"
    assert export.main([step, "--peft", "--output", str(tmp_path / "a")]) == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        tpmm.load(tmp_path / "a").params,
        tpmm.load(step).params,
    )


def test_the_runs_dropout_is_written(run, tmp_path):
    """It is of the training alone, so no step holds it; the run's config does."""
    step = f"{run}/trajectory@0"
    assert export.main([step, "--peft", "--output", str(tmp_path / "a")]) == 0
    fields = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert fields["lora_dropout"] == 0.25


def test_a_base_of_another_config_is_refused(capsys, run, tmp_path):
    """The same weights: nothing but config.json tells, and PEFT goes by it."""
    model = tpmm.load(run.parent / "base")
    rope = dataclasses.replace(model.config.rope, theta=5e5)
    decoder = Decoder(dataclasses.replace(model.config, rope=rope))
    save(Model(decoder, model.params), tmp_path / "other")
    command = [f"{run}/trajectory@0", "--peft", "--output", str(tmp_path / "a")]
    assert export.main([*command, "--base-model", str(tmp_path / "other")]) == 2
    assert "is not the run's (rope RopeConfig(theta=500000" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    path = run.parent / "base" / "config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"rms_norm_eps": 0.1}))
    try:
        assert export.main(command) == 2
    finally:
        path.write_text(before)
    assert "norm_eps 0.1 and" in capsys.readouterr().err


def peft_directory(run, folder):
    """The run's step as an adapter."""
    assert export.main([f"{run}/trajectory@0", "--peft", "--output", str(folder)]) == 0
    return folder


def test_a_base_that_peft_would_not_read_as_one(capsys, run, tmp_path):
    """Of the run's own weights to tpmm.load; PEFT sees others, or none."""
    model = tpmm.load(run.parent / "base")
    over = peft_directory(run, tmp_path / "over")
    # A PEFT directory that config.json makes a model's for transformers too.
    both = peft_directory(run, tmp_path / "both")
    write_description(model.config, None, "float32", both)
    command = [f"{run}/trajectory@0", "--peft", "--output", str(tmp_path / "a")]
    for wrong in (over, both, run, run / "trajectory", run / "model" / "config.json"):
        assert export.main([*command, "--base-model", str(wrong)]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "not a Hugging Face directory of a whole model" in said
        assert f"tpmm export {run.parent}/base --output BASE" in said
    assert not (tmp_path / "a").exists()


def test_a_run_may_link_to_the_adapter_it_began_with(run, tmp_path):
    """WORKDIR/base then means the model under that adapter, as model.source did."""
    step = f"{run}/trajectory@0"
    before = tpmm.load(step).params
    (run / "base").symlink_to(peft_directory(run, tmp_path / "adapter"))
    try:
        jax.tree.map(np.testing.assert_array_equal, tpmm.load(step).params, before)
        again = peft_directory(run, tmp_path / "again")
    finally:
        (run / "base").unlink()
    fields = json.loads((again / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str((run.parent / "base").resolve())


def test_a_base_that_moved_is_not_written_into_the_adapter(capsys, run, tmp_path):
    command = [f"{run}/trajectory@0", "--peft", "--output", str(tmp_path / "a")]
    moved = (run.parent / "base").rename(tmp_path / "moved")
    try:
        assert export.main(command) == 2
        assert "is not there; put it back, make" in capsys.readouterr().err
        assert export.main([*command, "--base-model", str(moved)]) == 0
    finally:
        moved.rename(run.parent / "base")
