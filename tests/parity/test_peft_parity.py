"""Adapters in peft: the same logits, both ways, on two families."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.models.families import make_config
from tpmm_jax.models.lora import TARGETS, abstract_adapters
from tpmm_jax.weights.peft import adapter_config, write_adapters
from tpmm_jax.weights.saving import save, whole_directory
from tpmm_jax.weights.source import Model

pytestmark = pytest.mark.parity

SIZES = dict(
    vocab_size=37, width=24, mlp_width=22, num_layers=3, num_heads=4, num_kv_heads=2,
    head_dim=6, max_positions=64,
)  # fmt: skip
# Of the size that training gives. With 0.3 on llama, where a weight changes by more
# than its own size, float32 alone is over the bar: peft's is 1.7e-5 from its float64.
SIZE = 0.1
TOKENS = np.random.default_rng(0).integers(0, 37, (3, 19))


def base(folder: pathlib.Path, family: str) -> Model:
    config = make_config(family, **SIZES)
    decoder = Decoder(config)
    model = Model(decoder, decoder.init(jax.random.key(1)))
    save(model, folder)
    return model


def logits_of(model) -> np.ndarray:
    return np.asarray(tpmm.logits(model, TOKENS, np.ones_like(TOKENS)))


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.all(np.abs(found - wanted) <= 1e-5 * np.maximum(1.0, np.abs(wanted)))


def torch_logits(model) -> np.ndarray:
    """Returns the logits in float64, so that one side's rounding alone is judged."""
    torch = pytest.importorskip("torch")
    model.double().eval()
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen3"])
@pytest.mark.parametrize("wanted", ["all-linear", *TARGETS])
def test_ours_in_peft(tmp_path, family, wanted):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    if wanted != "all-linear" and family == "qwen3":
        pytest.skip("each matrix alone: on two families")
    model = base(tmp_path / "base", family)
    lora = LoraConfig(rank=4, alpha=6.0, targets=wanted, rslora=wanted == "up_proj")
    structure = abstract_adapters(model.decoder.abstract_params(), lora)
    rng = np.random.default_rng(2)
    adapters = jax.tree.map(
        lambda x: SIZE * rng.standard_normal(x.shape).astype(np.float32), structure
    )
    with whole_directory(tmp_path / "adapter") as whole:
        content = adapter_config(lora, str(tmp_path / "base"), None)
        write_adapters(adapters, model.config, content, whole)
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    found, wanted_logits = (
        logits_of(tpmm.load(tmp_path / "adapter")),
        torch_logits(theirs),
    )
    assert np.abs(wanted_logits - logits_of(model)).max() > 1e-2
    close(found, wanted_logits)


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"target_modules": r".*mlp\.(up|down)_proj", "lora_alpha": 3},
        {"target_modules": ["o_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"target_modules": ["q_proj", "c_attn"]},
        {
            "target_modules": ["q_proj", "model.layers.0.mlp.up_proj"],
            "layers_to_transform": [1],
            "layers_pattern": ["h", "model.layers"],
        },
        {"target_modules": ["v_proj"], "layers_to_transform": 2, "layers_pattern": []},
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 5, r"^model\.layers\.1\.mlp.*": 2},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 4, "up_proj": 3},
        },
        {"target_modules": ["k_proj"], "rank_pattern": {"k": 2}, "use_rslora": True},
        {"target_modules": ["k_proj"], "rank_pattern": {".*": 2}, "use_rslora": True},
        {"target_modules": ["q_proj"], "init_lora_weights": "mica"},
        {"target_modules": ["q_proj"], "init_lora_weights": "eva"},
    ],
    ids=[
        "all", "list", "regex", "layers", "exclude", "unknown", "pattern",
        "any_pattern", "ranks", "rank_unmatched", "rank_rslora", "mica", "eva",
    ],
)  # fmt: skip
def test_theirs_in_ours(tmp_path, family, fields):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = base(tmp_path / "base", family)
    theirs = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(r=3, task_type="CAUSAL_LM", lora_dropout=0.1, **fields),
    )
    torch.manual_seed(0)
    for name, weight in theirs.named_parameters():
        if "lora_" in name and weight.abs().max() == 0:
            weight.data.normal_(0, SIZE)
    theirs.save_pretrained(tmp_path / "adapter")
    wanted = torch_logits(theirs)
    assert np.abs(wanted - logits_of(model)).max() > 1e-2
    close(logits_of(tpmm.load(tmp_path / "adapter")), wanted)


def test_a_runs_adapter_in_peft(tmp_path):
    """tpmm export --peft of a stored step, against its merged export."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from tpmm_jax.commands import export
    from tpmm_jax.store import Base, Trajectory
    from tpmm_jax.store.files import write_json
    from tpmm_jax.weights.description import write_description

    model = base(tmp_path / "base", "llama")
    lora = LoraConfig(rank=4, alpha=6.0)
    workdir = tmp_path / "run"
    (workdir / "model").mkdir(parents=True)
    write_description(model.config, None, "float32", workdir / "model")
    under = Base(lambda: model.params, "base", "")
    decoder = dataclasses.replace(model.decoder, lora=lora)
    rng = np.random.default_rng(3)
    adapters = jax.tree.map(
        lambda x: SIZE * rng.standard_normal(x.shape).astype(np.float32),
        decoder.abstract_trained(),
    )
    record = {"source": str(tmp_path / "base")}
    Trajectory(workdir / "trajectory", storage="lora", lora=lora, base=under).append(
        0, adapters, {"iteration": 0, **record, "base": record}
    )
    write_json(
        workdir / "config.json",
        {
            "iterations": 1,
            "model": record,
            "reference": {"rule": "sft"},
            "loss": {"name": "dpo"},
        },
    )
    step = f"{workdir}/trajectory@0"
    assert export.main([step, "--output", str(tmp_path / "whole")]) == 0
    assert export.main([step, "--peft", "--output", str(tmp_path / "adapter")]) == 0
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    wanted = torch_logits(theirs)
    close(torch_logits(merged), wanted)
    for name in (step, tmp_path / "adapter", tmp_path / "whole"):
        close(logits_of(tpmm.load(name)), wanted)
