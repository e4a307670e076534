"""PEFT directories: what is written comes back; what is not understood is named."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tpmm_jax as tpmm
from tpmm_jax.errors import BadInput
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.models.families import make_config
from tpmm_jax.models.lora import TARGETS, abstract_adapters, get, merge_adapters
from tpmm_jax.weights.loading import resolve
from tpmm_jax.weights.peft import adapter_config, write_adapters
from tpmm_jax.weights.saving import save, whole_directory
from tpmm_jax.weights.source import Model

CONFIG = make_config(
    "llama", vocab_size=23, width=16, mlp_width=12, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=4, max_positions=32,
)  # fmt: skip
DECODER = Decoder(CONFIG)
LORA = LoraConfig(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    save(Model(DECODER, DECODER.init(jax.random.key(0))), folder)
    return folder


def make(folder, base, lora=LORA, **fields):
    """Writes a PEFT directory; returns the adapters in it."""
    structure = abstract_adapters(DECODER.abstract_params(), lora)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32), structure
    )
    with whole_directory(folder) as whole:
        content = adapter_config(lora, str(base), None) | fields
        write_adapters(adapters, CONFIG, content, whole)
    return adapters


@pytest.mark.parametrize(
    "lora",
    [
        LORA,
        LoraConfig(rank=1, alpha=2.5, rslora=True, targets="v_proj,down_proj"),
    ],
)
def test_a_round_trip(tmp_path, base, lora):
    adapters = make(tmp_path / "a", base, lora)
    found = resolve(tmp_path / "a")
    assert found.adapter.lora == lora
    jax.tree.map(np.testing.assert_array_equal, found.adapter.read(DECODER), adapters)
    expected = merge_adapters(tpmm.load(base).params, adapters, lora)
    model = tpmm.load(tmp_path / "a")
    jax.tree.map(np.testing.assert_array_equal, model.params, expected)
    assert model.origin == {"source": str(tmp_path / "a")}


def test_the_tensors_are_those_of_the_formula(tmp_path, base):
    """Theirs: W + alpha / r B A, both transposed; here of one matrix of each kind."""
    make(tmp_path / "a", base)
    theirs = load_file(tmp_path / "a" / "adapter_model.safetensors")
    weights = load_file(base / "model.safetensors")
    save_of = tmp_path / "merged"
    save(tpmm.load(tmp_path / "a"), save_of)
    merged = load_file(save_of / "model.safetensors")
    for kind in ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"):
        name = f"model.layers.1.{kind}"
        a = theirs[f"base_model.model.{name}.lora_A.weight"]
        b = theirs[f"base_model.model.{name}.lora_B.weight"]
        assert a.shape[0] == b.shape[1] == 3
        expected = np.float64(weights[f"{name}.weight"]) + 2.0 * np.float64(b) @ a
        np.testing.assert_allclose(merged[f"{name}.weight"], expected, atol=5e-6)


@pytest.mark.parametrize(
    "wanted",
    [
        "all-linear",
        r".*\.(q|k|v|o|gate|up|down)_proj",
        [f"model.layers.{i}.mlp.{n}_proj" for i in (0, 1) for n in ("up", "down")]
        + ["gate_proj", "self_attn.q_proj", "k_proj", "v_proj", "o_proj"],
        [*TARGETS, "c_attn", "query_key_value"],
    ],
)
def test_target_modules_in_every_form(tmp_path, base, wanted):
    adapters = make(tmp_path / "a", base, target_modules=wanted)
    found = resolve(tmp_path / "a").adapter
    assert found.lora == LORA
    jax.tree.map(np.testing.assert_array_equal, found.read(DECODER), adapters)


def drop_layer(folder, layer):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: x for n, x in tensors.items() if f"layers.{layer}." not in n}, path)


@pytest.mark.parametrize(
    "fields",
    [
        {"layers_to_transform": [1]},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"layers_to_transform": [1], "layers_pattern": []},
        {"layers_to_transform": [1], "layers_pattern": ["h", "model.layers"]},
        {"exclude_modules": r".*layers\.0\..*"},
    ],
)
def test_layers_that_peft_left_out_have_a_product_of_zero(tmp_path, base, fields):
    make(tmp_path / "a", base, **fields)
    drop_layer(tmp_path / "a", 0)
    before, after = tpmm.load(base).params, tpmm.load(tmp_path / "a").params
    for target in TARGETS.values():
        x, y = (np.asarray(get(tree, target.path)) for tree in (before, after))
        assert x[0].tobytes() == y[0].tobytes()
        assert np.abs(x[1] - y[1]).max() > 0.1


PLAIN = {
    "eva": {"init_lora_weights": "eva", "eva_config": {"rho": 1.0}},
    "mica": {"init_lora_weights": "mica"},
    "converted": {"corda_config": {"verbose": True}, "loftq_config": {"bits": 4}},
    "same": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {".*": 6}},
}


@pytest.mark.parametrize("name", PLAIN)
def test_fields_that_change_nothing(tmp_path, base, name):
    adapters = make(tmp_path / "a", base, **PLAIN[name])
    found = resolve(tmp_path / "a").adapter
    assert found.lora == LORA
    jax.tree.map(np.testing.assert_array_equal, found.read(DECODER), adapters)


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_of_their_own(tmp_path, base, rslora):
    """Zeros fill up to the largest rank: the products are those of the formula."""
    wide = LoraConfig(rank=5, alpha=6.0, rslora=rslora)
    make(
        tmp_path / "a", base, wide, r=3,
        rank_pattern={"q_proj": 5, r"layers\.0\.mlp.up_proj": 2},
        alpha_pattern={"model.layers.1.self_attn.q_proj": 10, "q_proj": 4},
    )  # fmt: skip
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)

    def rank_of(name):
        if "q_proj" in name:
            return 5
        return 2 if "layers.0.mlp.up_proj" in name else 3

    for name, x in tensors.items():
        x = x[: rank_of(name)] if "lora_A" in name else x[:, : rank_of(name)]
        tensors[name] = np.ascontiguousarray(x)
    save_file(tensors, path)
    assert resolve(tmp_path / "a").adapter.lora == dataclasses.replace(wide, alpha=4.0)
    save(tpmm.load(tmp_path / "a"), tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    weights = load_file(base / "model.safetensors")
    for name, alpha in [
        ("0.self_attn.q_proj", 4.0),
        ("1.self_attn.q_proj", 10.0),
        ("0.mlp.up_proj", 6.0),
        ("1.mlp.up_proj", 6.0),
    ]:
        name = f"model.layers.{name}"
        a = np.float64(tensors[f"base_model.model.{name}.lora_A.weight"])
        b = np.float64(tensors[f"base_model.model.{name}.lora_B.weight"])
        assert len(a) == rank_of(name)
        scale = alpha / (len(a) ** 0.5 if rslora else len(a))
        expected = weights[f"{name}.weight"] + scale * b @ a
        np.testing.assert_allclose(merged[f"{name}.weight"], expected, atol=1e-5)


REFUSED = {
    "use_dora": (True, "use_dora is True, which is not understood"),
    "bias": ("lora_only", "bias is 'lora_only', which is not understood"),
    "modules_to_save": (["lm_head"], "modules_to_save is .*not understood"),
    "fan_in_fan_out": (True, "fan_in_fan_out is True"),
    "rank_pattern": ({"q_proj": 0}, "rank_pattern is 0; wanted a whole number"),
    "alpha_pattern": ({"q_proj": -4}, "alpha_pattern is -4; wanted a positive"),
    "layer_replication": ([[0, 2]], "layer_replication is"),
    "trainable_token_indices": ([1, 2], "trainable_token_indices is"),
    "a_field_of_tomorrow": (0.5, "a_field_of_tomorrow is 0.5, which is not"),
    "init_lora_weights": ("pissa", "init_lora_weights is 'pissa', which changes"),
    "peft_type": ("IA3", "peft_type is 'IA3'; only LORA"),
    "task_type": ("TOKEN_CLS", "task_type is 'TOKEN_CLS'; only CAUSAL_LM"),
    "r": (0, "r is 0; wanted a whole number"),
    "lora_alpha": (None, "lora_alpha is None; wanted a positive"),
    "target_modules": (["q_proj", "lm_head"], "takes in lm_head; .*merge_and_unload"),
    "layers_pattern": (5, "layers_pattern is 5; wanted a list or a text"),
    "layers_to_transform": ("1", "layers_to_transform is '1'; wanted a number"),
    "base_model_name_or_path": (None, "base_model_name_or_path is None; write"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_named(tmp_path, base, name):
    value, message = REFUSED[name]
    make(tmp_path / "a", base, **{name: value})
    with pytest.raises(BadInput, match=message):
        tpmm.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("q_proj", "names no linear layer"),
        (r".*\.q_proj", "has unknown 24 tensors.*merge_and_unload"),
        (["c_attn", "query_key_value"], "names no linear layer of a llama model"),
        (["embed_tokens"], "takes in model.embed_tokens"),
        (r".*(_proj|lm_head)", "takes in lm_head"),
        ("(", "is not a regular expression"),
        (None, "target_modules is None; wanted a list"),
    ],
)
def test_targets_that_do_not_fit_the_tensors(tmp_path, base, wanted, message):
    make(tmp_path / "a", base, target_modules=wanted)
    with pytest.raises(BadInput, match=message):
        tpmm.load(tmp_path / "a")


def test_tensors_that_are_missing_or_of_another_rank(tmp_path, base):
    make(tmp_path / "a", base)
    drop_layer(tmp_path / "a", 1)
    with pytest.raises(BadInput, match="lacks 14 tensors"):
        tpmm.load(tmp_path / "a")
    make(tmp_path / "b", base, r=2)
    with pytest.raises(BadInput, match=r"lora_A\.weight has shape \(3, 16\)"):
        tpmm.load(tmp_path / "b")
    fields = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    for rank, wanted in ((2**16, "has shape"), (10**9, "r is 1000000000; wanted")):
        text = json.dumps(fields | {"r": rank})
        (tmp_path / "b" / "adapter_config.json").write_text(text)
        with pytest.raises(BadInput, match=wanted):
            tpmm.load(tmp_path / "b")
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps(fields))
    (tmp_path / "b" / "adapter_model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"holds no adapter_model\.safetensors"):
        tpmm.load(tmp_path / "b")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_not_finite(tmp_path, base, alpha):
    make(tmp_path / "a", base, lora_alpha=alpha)
    with pytest.raises(BadInput, match=r"lora_alpha is .*; wanted a positive"):
        tpmm.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.full_like(x, np.nan), r"lora_A\.weight has weights that are NaN"),
        (lambda x: x.astype(jnp.float8_e4m3fn), r"lora_A\.weight holds F8_E4M3"),
    ],
)
def test_tensors_that_are_not_finite_or_quantised(tmp_path, base, change, message):
    make(tmp_path / "a", base)
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = change(tensors[name])
    save_file(tensors, path)
    with pytest.raises(BadInput, match=message):
        tpmm.load(tmp_path / "a")


def test_the_base_may_be_named_or_lie_beside(tmp_path, base):
    make(tmp_path / "a", "nowhere/at-all")
    found = tpmm.load(tmp_path / "a", base=base)
    assert found.config == CONFIG
    assert found.origin["base"] == {"source": str(base)}
    make(tmp_path / "b", "below")
    (tmp_path / "b" / "below").symlink_to(base)
    assert tpmm.load(tmp_path / "b").config == CONFIG
    with pytest.raises(BadInput, match="goes with a PEFT adapter, and there is none"):
        tpmm.load(base, base=base)
    make(tmp_path / "c", tmp_path / "b")
    with pytest.raises(BadInput, match="is an adapter too"):
        tpmm.load(tmp_path / "c")


def test_an_adapter_and_its_merge_in_one_directory(tmp_path, base, monkeypatch):
    """A config left behind says nothing; two sets of weights could be either."""
    from tpmm_jax.weights import loading

    folder = tmp_path / "both"
    make(folder, "nowhere/at-all")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    with pytest.raises(BadInput, match=r"adapter_model\.safetensors, beside .*move"):
        tpmm.load(folder)
    (folder / "adapter_model.safetensors").unlink()
    merged = tpmm.load(folder)
    jax.tree.map(np.testing.assert_array_equal, merged.params, tpmm.load(base).params)

    # The description of a hub's repository comes without the weights.
    described = tmp_path / "described"
    shutil.copytree(folder, described, ignore=shutil.ignore_patterns("*.safetensors"))
    found = iter((described, folder, folder))
    monkeypatch.setattr(loading, "fetch", lambda *_, **__: (next(found), "c0ffee"))
    assert tpmm.load("org/merged").origin == {
        "source": "org/merged",
        "commit": "c0ffee",
    }


def test_a_base_that_cannot_be_used(tmp_path, base):
    """The adapter's file and field are named, what is wrong, and the way out."""
    make(tmp_path / "gone", tmp_path / "no-base")
    wanted = (
        r"gone/adapter_config\.json names its base .*no-base, which cannot be used: "
        r".*no such directory\nName another .*--base BASE"
    )
    with pytest.raises(BadInput, match=wanted):
        tpmm.load(tmp_path / "gone")
    quantised = tmp_path / "base-bnb-4bit"
    shutil.copytree(base, quantised)
    fields = json.loads((base / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "bitsandbytes"}
    (quantised / "config.json").write_text(json.dumps(fields))
    adapters = make(tmp_path / "qlora", quantised)
    with pytest.raises(BadInput, match=r"base .*-4bit, which[^~]*full precision"):
        tpmm.load(tmp_path / "qlora")
    given = tpmm.load(tmp_path / "qlora", base=base).params
    expected = merge_adapters(tpmm.load(base).params, adapters, LORA)
    jax.tree.map(np.testing.assert_array_equal, given, expected)
    with pytest.raises(BadInput, match=r"no-base was given as the base of .*qlora"):
        tpmm.load(tmp_path / "qlora", base=tmp_path / "no-base")


def test_an_adapter_of_the_hub(tmp_path, base, monkeypatch):
    """Its weights are asked for by the commit that its description came from."""
    from tpmm_jax.weights import loading

    make(tmp_path / "c0ffee", base)
    asked = []

    def fetch(name, revision, files, ignore=()):
        asked.append((name, revision, files))
        return tmp_path / "c0ffee", "c0ffee"

    monkeypatch.setattr(loading, "fetch", fetch)
    model = tpmm.load("org/adapter", "main")
    assert model.origin == {"source": "org/adapter", "commit": "c0ffee"}
    assert [revision for _, revision, _ in asked] == ["main", "c0ffee"]


def test_dropout_is_written_and_changes_nothing_read(tmp_path, base):
    lora = dataclasses.replace(LORA, dropout=0.25)
    make(tmp_path / "a", base, lora)
    fields = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert fields["lora_dropout"] == 0.25
    assert resolve(tmp_path / "a").adapter.lora == LORA
