"""A directory's tokenizer splits texts as its tokenizer.json does."""

import json
import warnings

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

from tpmm_jax.weights.tokenizer import read_tokenizer, write_tokenizer

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
LLAMA_2 = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
)
GEMMA = normalizers.Replace(" ", "▁")
QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3 = QWEN_2.replace(r"\p{N}|", r"\p{N}{1,3}|")


def sentencepiece(normalizer, splitter=None):
    """One token per byte, the space marker among those, and two words."""
    words = ["▁", "▁▁", "a", "b", "▁a", "▁▁a"]
    table = [*SPECIAL.values(), *(f"<0x{i:02X}>" for i in range(256)), *words]
    core = Tokenizer(
        models.BPE(
            {text: i for i, text in enumerate(table)},
            [("▁", "▁"), ("▁", "a"), ("▁▁", "a")],
            unk_token="<unk>", byte_fallback=True, fuse_unk=True,
        )
    )  # fmt: skip
    core.normalizer = normalizer
    if splitter is not None:
        core.pre_tokenizer = splitter
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return core


def byte_level(splitter, normalizer=None, first="1"):
    """One token per byte, and one of two."""
    table = [*SPECIAL.values(), *sorted(pre.ByteLevel.alphabet()), f"{first}2"]
    core = Tokenizer(models.BPE({x: i for i, x in enumerate(table)}, [(first, "2")]))
    core.pre_tokenizer = splitter
    core.decoder = decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    return core


def split(regex):
    bytes_of = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre.Sequence([pre.Split(Regex(regex), "isolated", False), bytes_of])


def folder(path, core, family, kind, **fields):
    core.add_special_tokens(
        [AddedToken(x, special=True, normalized=False) for x in SPECIAL.values()]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)
    made.save_pretrained(path)
    file = path / "tokenizer_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"tokenizer_class": kind} | fields)
    )
    (path / "config.json").write_text(json.dumps({"model_type": family}))
    return path


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "core, family, kind, text",
    [
        # A space marker behind BOS, as every prompt of Llama 2 has it.
        (sentencepiece(LLAMA_2), "llama", "LlamaTokenizer", "<s>a"),
        (sentencepiece(LLAMA_2), "llama", "LlamaTokenizerFast", " a"),
        (byte_level(split(LLAMA_3)), "qwen2", "PreTrainedTokenizerFast", "12"),
        # Fails at its first text: the class wants an unknown token.
        (byte_level(split(LLAMA_3)), "gemma2", "CodeLlamaTokenizer", "12"),
    ],
)
def test_where_the_class_splits_otherwise_the_file_is_taken(
    tmp_path, core, family, kind, text
):
    path = folder(tmp_path / "made", core, family, kind)
    with pytest.warns(UserWarning, match=r"otherwise than tokenizer\.json"):
        found = read_tokenizer(path)
    written = Tokenizer.from_file(str(path / "tokenizer.json"))
    assert ids(found, text) == written.encode(text, add_special_tokens=False).ids
    assert (found.bos_token, found.eos_token) == ("<s>", "</s>")
    if family == "qwen2":
        return
    # What is written is read without a word, and by transformers alike.
    again = tmp_path / "again"
    again.mkdir()
    (again / "config.json").write_text((path / "config.json").read_text())
    write_tokenizer(found, again)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids(read_tokenizer(again), text) == ids(found, text)


@pytest.mark.parametrize(
    "core, family, kind, fields",
    [
        (byte_level(split(QWEN_2), normalizers.NFC()), "qwen2", "Qwen2Tokenizer", {}),
        (byte_level(split(QWEN_2), normalizers.NFC()), "qwen3", "Qwen2Tokenizer", {}),
        (
            byte_level(
                pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)]),
                first="a",
            ),
            "llama", "GPT2Tokenizer", {},
        ),
        (byte_level(split(LLAMA_3)), "llama", "LlamaTokenizerFast", {}),
        (sentencepiece(LLAMA_2), "llama", "PreTrainedTokenizerFast", {}),
        (
            sentencepiece(GEMMA, pre.Split(" ", "merged_with_previous", False)),
            "gemma2", "GemmaTokenizer", {},
        ),
        # What the directory's other files ask for stays.
        (
            byte_level(split(QWEN_2), normalizers.NFC()), "qwen2", "Qwen2Tokenizer",
            {"split_special_tokens": True},
        ),
    ],
)  # fmt: skip
def test_published_kinds_are_read_as_transformers_reads_them(
    tmp_path, core, family, kind, fields
):
    path = folder(tmp_path, core, family, kind, **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_tokenizer(path)
