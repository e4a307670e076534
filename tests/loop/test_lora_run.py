"""A run of LoRA: resumed bit for bit, adapters alone on the disk, one base."""

import dataclasses
import io
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_run
from test_resume import Crash, Writes, content, digests, start

import tpmm_jax as tpmm
from tpmm_jax.config import Config
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.run import DROPOUT
from tpmm_jax.loop.setup import open_run
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.models.lora import abstract_adapters, merge_adapters
from tpmm_jax.store import Trajectory, tree_digest
from tpmm_jax.weights.peft import adapter_config, write_adapters
from tpmm_jax.weights.saving import save, whole_directory
from tpmm_jax.weights.source import Model

HERE = pathlib.Path(__file__).parent
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
LORA = LoraConfig(rank=2, alpha=8.0, dropout=0.1)


def get_config(lora: LoraConfig = LORA, **changes) -> Config:
    config = tiny_run.get_config(**changes)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, lora=lora),
        train=dataclasses.replace(config.train, learning_rate=2e-2),
    )


@pytest.fixture(scope="module")
def writes():
    with pytest.MonkeyPatch.context() as patch:
        yield Writes(patch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, writes) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("finished") / "run"
    start(get_config(), workdir)
    writes.undisturbed = list(writes.names)
    return workdir


def test_a_crash_in_training_changes_no_byte(finished, tmp_path, writes):
    """Between two steps of iteration 2, dropout on."""
    saves = [
        n
        for n, name in enumerate(writes.undisturbed)
        if name.startswith("save ") and "/work/" in name
    ]
    writes.count, writes.crash_at, writes.after = 0, saves[-2], True
    with pytest.raises(Crash):
        start(get_config(), tmp_path / "run")
    writes.crash_at = -1
    start(get_config(), tmp_path / "run")
    assert content(tmp_path / "run") == content(finished)
    assert digests(tmp_path / "run") == digests(finished)


def command_of(folder: pathlib.Path) -> list[str]:
    """Returns the command that makes the run in ``folder``/run."""
    script = folder / "lora_run.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\n"
        "from test_lora_run import get_config\n"
    )
    command = [sys.executable, "-m", "tpmm_jax.train", "--config", str(script)]
    return [*command, "--workdir", str(folder / "run")]


@pytest.fixture(scope="module")
def finished_by_command(tmp_path_factory) -> pathlib.Path:
    """A command sees one device; here are eight, one in use: last bits differ."""
    folder = tmp_path_factory.mktemp("by_command")
    subprocess.run(command_of(folder), check=True, **QUIET)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("seen", ["work/2", "iterations/002/reference.json"])
def test_sigkill(finished_by_command, tmp_path, seen):
    workdir, command = tmp_path / "run", command_of(tmp_path)
    process = subprocess.Popen(command, **QUIET)
    while not (workdir / seen).exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, **QUIET)
    assert content(workdir) == content(finished_by_command)
    assert digests(workdir) == digests(finished_by_command)


def test_the_policies_moved_and_the_base_did_not(finished):
    base = tpmm.load(finished / "theta_0").params
    first = tpmm.load(f"{finished}/trajectory@0").params
    assert tree_digest(first) == tree_digest(base)
    last = tpmm.load(finished)
    assert last.origin["source"].endswith("trajectory@2")
    for name in ("embedding", "final_norm"):
        jax.tree.map(np.testing.assert_array_equal, last.params[name], base[name])
    for name in ("query", "key", "value", "output"):
        before = base["layers"]["attention"][name]
        assert np.abs(last.params["layers"]["attention"][name] - before).max() > 1e-3
    with Trajectory(finished / "trajectory", read_only=True) as trajectory:
        lora = trajectory.lora_of(2)
        target = abstract_adapters(Decoder(last.config).abstract_params(), lora)
        adapters = trajectory.restore_adapters(2, target)
    assert tree_digest(merge_adapters(base, adapters, lora)) == tree_digest(last.params)


def test_a_merge_of_steps_is_the_merge_of_dense_policies(finished, tmp_path):
    """Steps of LoRA and a whole model together."""
    steps = [f"{finished}/trajectory@1", finished / "theta_0", finished]
    merged = tpmm.merge(steps, [0.3, 0.2, 0.5])
    parts = [jax.device_get(tpmm.load(step).params) for step in steps]
    for path, found in jax.tree_util.tree_leaves_with_path(merged.params):
        expected = 0.0
        for weight, part in zip([0.3, 0.2, 0.5], parts):
            leaf = part
            for key in path:
                leaf = leaf[key.key]
            expected = expected + weight * np.float64(leaf)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def opened(config, workdir):
    out = io.StringIO()
    return open_run(config, workdir, RunConsole(out, out))


def test_a_base_that_changed_moved_or_vanished(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(HERE)
    source = tmp_path / "model"
    tiny_run.build_model(source)
    config = get_config()
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, source=str(source))
    )
    workdir = tmp_path / "run"
    with opened(config, workdir) as run:
        assert run.disk.trajectory.steps() == [0]
    moved = tmp_path / "elsewhere"
    source.rename(moved)
    with (
        pytest.raises(BadInput, match=r"adapters only.*make .*run/base a link"),
        opened(config, workdir),
    ):
        pass
    with pytest.raises(BadInput, match=r"run/base a link"):
        tpmm.load(workdir)
    (workdir / "base").symlink_to(moved)
    with opened(config, workdir) as run:
        assert tree_digest(run.disk.policy(0)) == tree_digest(tpmm.load(moved).params)
    # Another model of the same shape in its place.
    (workdir / "base").unlink()
    model = tpmm.load(moved)
    params = jax.tree.map(lambda x: x, model.params)
    params["final_norm"]["scale"] = params["final_norm"]["scale"] + 1e-6
    save(Model(model.decoder, params, model.tokenizer), source)
    with (
        pytest.raises(BadInput, match=r"leaf final_norm/scale of the base .* changed"),
        opened(config, workdir),
    ):
        pass


@pytest.mark.parametrize("rank", [0, 2])
def test_a_source_that_is_not_finite_is_refused_at_once(tmp_path, monkeypatch, rank):
    monkeypatch.chdir(HERE)
    tiny_run.build_model(tmp_path / "good")
    model = tpmm.load(tmp_path / "good")
    params = jax.tree.map(lambda x: x, model.params)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[0].set(np.nan)
    source = tmp_path / "model"
    save(Model(model.decoder, params, model.tokenizer), source)
    config = tiny_run.get_config()
    lora = LoraConfig(rank=rank)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, source=str(source), lora=lora)
    )
    with (
        pytest.raises(BadInput, match=r"model\.norm\.weight has weights that are NaN"),
        opened(config, tmp_path / "run"),
    ):
        pass
    assert not (tmp_path / "run/trajectory/0").exists()


def peft_directory(directory, base, lora, seed=0):
    """Writes an adapter whose product is not zero; returns it."""
    model = tpmm.load(base)
    structure = abstract_adapters(Decoder(model.config).abstract_params(), lora)
    rng = np.random.default_rng(seed)
    adapters = jax.tree.map(
        lambda x: 0.1 * rng.standard_normal(x.shape).astype(np.float32), structure
    )
    with whole_directory(directory) as whole:
        content = adapter_config(lora, str(base), None)
        write_adapters(adapters, model.config, content, whole)
    return adapters


def test_a_run_goes_on_from_a_peft_directory(tmp_path, monkeypatch, same_tree):
    monkeypatch.chdir(HERE)
    base = tmp_path / "model"
    tiny_run.build_model(base)
    adapters = peft_directory(tmp_path / "adapter", base, LORA)
    config = get_config()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, source=str(tmp_path / "adapter")),
    )
    with opened(config, tmp_path / "run") as run:
        same_tree(run.disk.trained(0), adapters)
        given = tpmm.load(tmp_path / "adapter").params
        assert tree_digest(run.disk.policy(0)) == tree_digest(given)
        frozen = run.disk.frozen(run.plan.key(1, DROPOUT))
        assert tree_digest(frozen.base) == tree_digest(tpmm.load(base).params)
    other = dataclasses.replace(LORA, alpha=9.0, targets="q_proj")
    wrong = dataclasses.replace(
        config, model=dataclasses.replace(config.model, lora=other)
    )
    with (
        pytest.raises(BadInput, match=r"lora\.alpha is 9\.0, .* has 8\.0; .*targets"),
        opened(wrong, tmp_path / "other"),
    ):
        pass


@pytest.mark.parametrize("lora", [LORA, LoraConfig()], ids=["further", "merged"])
def test_a_config_may_name_the_adapters_base(tmp_path, monkeypatch, lora):
    """A QLoRA adapter names weights that are not read; it is trained over others."""
    monkeypatch.chdir(HERE)
    base, adapter = tmp_path / "model", tmp_path / "adapter"
    tiny_run.build_model(base)
    peft_directory(adapter, base, LORA)
    given = tpmm.load(adapter).params
    fields = json.loads((adapter / "adapter_config.json").read_text())
    fields["base_model_name_or_path"] = str(tmp_path / "model-bnb-4bit")
    (adapter / "adapter_config.json").write_text(json.dumps(fields))
    config = get_config(lora)

    def over(name, source):
        model = dataclasses.replace(config.model, source=str(source), base=name)
        return dataclasses.replace(config, model=model)

    with (
        pytest.raises(BadInput, match=r"names its base .*-4bit[^~]* model\.base of"),
        opened(over(None, adapter), tmp_path / "run"),
    ):
        pass
    for _ in range(2):
        with opened(over(str(base), adapter), tmp_path / "run") as run:
            assert tree_digest(run.disk.policy(0)) == tree_digest(given)
    with (
        pytest.raises(BadInput, match="goes with a PEFT adapter, and there is none"),
        opened(over(str(base), base), tmp_path / "other"),
    ):
        pass


@pytest.fixture
def same_tree():
    def check(a, b):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(np.testing.assert_array_equal, a, b)

    return check


def test_what_is_on_the_disk(finished):
    entries = (finished / "trajectory" / "trajectory.jsonl").read_text().splitlines()
    assert [json.loads(line)["storage"] for line in entries] == ["lora"] * 3


def test_bfloat16_deltas_of_adapters_are_refused():
    config = get_config()
    config = dataclasses.replace(
        config, store=dataclasses.replace(config.store, storage="bfloat16_delta")
    )
    with pytest.raises(BadInput, match=r"store\.storage is bfloat16_delta, but with"):
        config.validate()
