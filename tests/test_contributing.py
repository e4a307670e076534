"""CONTRIBUTING.md's steps: few, about files that exist, and enough for a new entry.

Each Python block is run as a part of the module that its first line names, the
registry it extends being a copy; then the new entry is used as a run would use it.
"""

import importlib
import pathlib
import re
import runpy
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax import Model, logits
from tpmm_jax.losses import LOSSES, LossConfig, PairLogProbs, loss_at_zero, pair_loss
from tpmm_jax.merging import RULES, MergeContext, ReferenceConfig, choose
from tpmm_jax.models import Decoder, ModelConfig, from_mask
from tpmm_jax.models.families import FAMILIES, make_config
from tpmm_jax.models.feed_forward import FEED_FORWARD
from tpmm_jax.rewards import ScorerConfig, load_scorer
from tpmm_jax.weights.hf_config import parse_config

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (How to .+?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STEP = re.compile(r"^\d+\. ", re.MULTILINE)
FILE = re.compile(r"(?:tpmm_jax|tests|docs)/[\w/]*(?:\.\w+)?")


def entries(section: str, registry: str) -> dict[str, Any]:
    """What a section's block adds to a registry of its module; the real one stays."""
    path, code = BLOCK.search(SECTIONS[section]).groups()
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    space = {**vars(module), registry: {}}
    exec(code, space)
    return space[registry]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_steps_are_few_and_name_what_is_there(section):
    text = SECTIONS[section]
    assert 1 <= len(STEP.findall(text)) <= 5
    for path in FILE.findall(text):
        assert (ROOT / path).exists(), path


def test_a_loss(monkeypatch):
    [(name, loss)] = entries("How to add a loss", "PAIRWISE").items()
    monkeypatch.setitem(LOSSES, name, loss)
    config = LossConfig(name=name, beta=0.5)
    config.validate()
    policy = jnp.asarray([[-3.0, -5.0], [-4.0, -4.0]])
    logps = PairLogProbs(policy, jnp.full((2, 2), -4.0), jnp.full((2, 2), 3))
    losses_B = pair_loss(logps, config.objective())
    # D is 2, then 0.
    np.testing.assert_allclose(losses_B, [0.0, 1.0], atol=1e-6)
    assert loss_at_zero(config.objective()) == 1.0


def test_a_merge_rule(monkeypatch):
    [(name, rule)] = entries("How to add a merge rule", "RULES").items()
    monkeypatch.setitem(RULES, name, rule)
    config = ReferenceConfig(rule=name)
    config.validate(tuple(RULES))
    weights_GK = choose(MergeContext(config, count=4, names=["model"]))
    np.testing.assert_array_equal(weights_GK, [[0.5, 0, 0, 0.5]])


def test_a_model_family(monkeypatch):
    [(name, family)] = entries("How to add a model family", "FAMILIES").items()
    monkeypatch.setitem(FAMILIES, name, family)
    described = {
        "model_type": name,
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    decoder = Decoder(parse_config(described, "config.json"))
    tokens, mask = np.array([[1, 2, 3]]), np.ones((1, 3), np.int32)
    params = decoder.init(jax.random.key(0))
    found = logits(Model(decoder, params), tokens, mask)
    assert found.shape == (1, 3, 11) and np.isfinite(found).all()


def test_a_feed_forward(monkeypatch):
    [(name, module)] = entries("How to add a feed-forward", "FEED_FORWARD").items()
    monkeypatch.setitem(FEED_FORWARD, name, module)
    monkeypatch.setattr(ModelConfig, "feed_forward", name)
    decoder = Decoder(
        make_config(
            "llama", vocab_size=11, width=8, mlp_width=14, num_layers=3,
            num_heads=2, num_kv_heads=1, head_dim=4, max_positions=16,
        )
    )  # fmt: skip
    params = decoder.init(jax.random.key(0))
    assert set(params["layers"]["mlp"]) == {"up", "down"}
    tokens, mask = jnp.asarray([[1, 2, 3]]), jnp.ones((1, 3), jnp.int32)
    forward = decoder.forward(params, from_mask(tokens, mask))
    assert forward.hidden.shape == (1, 3, 8) and forward.aux["active"].shape == (3,)


def test_a_scorer(tmp_path, monkeypatch):
    path, code = BLOCK.search(SECTIONS["How to add a scorer"]).groups()
    (tmp_path / path).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    function, module = re.search(r"def (\w+)", code)[1], pathlib.Path(path).stem
    # Other documents' tests import another module of this name.
    monkeypatch.setitem(sys.modules, module, None)
    del sys.modules[module]
    name = f"{module}:{function}"
    scorer = load_scorer(ScorerConfig(name=name))
    rewards_BR = scorer(["Tea?"], [["Tea?", "Or not?? No."]])
    np.testing.assert_array_equal(rewards_BR, [[1, 2]])


def test_the_page_of_fields_says_what_the_docstrings_say():
    fields = runpy.run_path(str(ROOT / "benchmarks" / "fields.py"))
    page = (ROOT / "docs" / "fields.md").read_text(encoding="utf-8")
    assert page == fields["page"](), "python benchmarks/fields.py"


def test_the_picture_of_the_rooms_is_drawn_from_their_order():
    rooms = runpy.run_path(str(ROOT / "benchmarks" / "rooms.py"))
    picture = (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8")
    assert picture == rooms["picture"](rooms["order"]()), "python benchmarks/rooms.py"
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for row in rooms["order"]():
        for room in row:
            assert f"`{room}" in text, room
