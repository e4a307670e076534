"""Exported reward models in transformers and PEFT: the same rewards, both ways."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
import reward_run_folder

import tpmm_jax as tpmm
from tpmm_jax.commands import export
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import FAMILIES, make_config
from tpmm_jax.weights.loading import load_reward
from tpmm_jax.weights.source import Model

pytestmark = pytest.mark.parity

# No pad id in a text: transformers reads where we do.
TOKENS = np.random.default_rng(0).integers(3, 31, (3, 9))
MASK = (np.arange(9) < np.array([[9], [5], [1]])).astype(np.int64)


def ours(name, **options):
    return np.asarray(tpmm.score_tokens(load_reward(name, **options), TOKENS, MASK))


def theirs(model):
    """Rewards in float64, so that one side's rounding alone is judged."""
    torch = pytest.importorskip("torch")
    model.double().eval()
    ids = torch.tensor(TOKENS * MASK)
    with torch.no_grad():
        return model(ids, attention_mask=torch.tensor(MASK)).logits[:, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_reward_model_in_transformers(tmp_path, family):
    """transformers finds every weight, its head among them, in its own class."""
    pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    config = make_config(
        family, vocab_size=31, width=24, mlp_width=22, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=6, max_positions=32, pad_id=0,
    )  # fmt: skip
    decoder = Decoder(dataclasses.replace(config, output="reward"))
    params = decoder.init(jax.random.key(0))
    tpmm.save(Model(decoder, params), tmp_path / "rm")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "rm", output_loading_info=True
        )
    assert type(model).__name__ == model.config.architectures[0]
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.config.num_labels == 1
    np.testing.assert_allclose(ours(tmp_path / "rm"), theirs(model), atol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_a_runs_best_model_in_transformers_and_peft(tmp_path, lora):
    pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    run = reward_run_folder.make(tmp_path / "run", lora=lora)
    step, out = f"{run}/reward@best", tmp_path / "out"
    assert export.main([step, "--output", str(out)]) == 0
    wanted = ours(step)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    np.testing.assert_allclose(theirs(model), wanted, atol=1e-4)
    if not lora:
        return
    peft, adapter = pytest.importorskip("peft"), tmp_path / "adapter"
    assert export.main([step, "--peft", "--output", str(adapter)]) == 0
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        adapter, num_labels=1
    )
    np.testing.assert_allclose(theirs(model), wanted, atol=1e-4)
    np.testing.assert_array_equal(ours(adapter), wanted)
    # Saved by PEFT again, whose config is then its own.
    model.float().save_pretrained(tmp_path / "again")
    np.testing.assert_allclose(ours(tmp_path / "again"), wanted, atol=1e-5)
