"""An exported policy in transformers: the same greedy answer, the same chat text."""

import command_runs
import numpy as np
import pytest

import tpmm_jax as tpmm
from tpmm_jax.commands import export

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_answers_the_same_in_transformers(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    step = f"{command_runs.finished_run()}/trajectory@2"
    out = tmp_path / "exported"
    assert export.main([step, "--output", str(out), "--dtype", dtype]) == 0
    # Compared in float32: the stored weights, not two ways to round sums.
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ours = tpmm.load(out)

    turns = [{"role": "user", "content": "Grüße, 😀 and goodbye"}]
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    text = ours.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(ids) == text
    assert ours.tokenizer(text, add_special_tokens=False)["input_ids"] == ids

    with torch.no_grad():
        found = theirs.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=20
        )[0, len(ids) :].tolist()
        logits = theirs(torch.tensor([ids])).logits[0].numpy()
    wanted = tpmm.generate(ours, [ids], max_new_tokens=20, temperature=0)[0][0]
    assert found == wanted
    mask = np.ones((1, len(ids)), np.int32)
    near = np.asarray(tpmm.logits(ours, np.asarray([ids]), mask))[0]
    assert np.abs(near - logits).max() < 1e-4
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id
