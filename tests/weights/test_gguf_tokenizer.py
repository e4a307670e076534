"""Tokenizers from .gguf metadata cut text as their kind and pre-tokenizer say."""

import io
import json
import pathlib
import random

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from tpmm_jax.errors import BadInput
from tpmm_jax.weights._gguf_tokenizer import build_tokenizer, merges_from_scores
from tpmm_jax.weights.tokenizer import write_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _, BYTE = range(1, 7)
# Byte-level spellings: space, newline, carriage return.
SPACE, NEWLINE, RETURN = "Ġ", "Ċ", "č"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(pre="gpt-2", merges=(), **fields):
    """Metadata of a byte-level BPE: three added tokens, 256 bytes, the merges."""
    added = ["<bos>", "<eos>", "<think>"]
    joined = [merge.replace(" ", "") for merge in merges]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": added + ALPHABET + joined,
        "tokenizer.ggml.token_type": [CONTROL, CONTROL, USER_DEFINED]
        + [NORMAL] * (len(ALPHABET) + len(joined)),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    } | {f"tokenizer.{name}": value for name, value in fields.items()}


PIECES = {
    "▁": -9.0, "a": -9.0, "b": -9.0, "c": -9.0, "▁a": -1.0, "bc": -2.0, "ab": -3.0,
    "abc": -4.0, "▁abc": -5.0,
}  # fmt: skip


def sentencepiece(**fields):
    """Metadata of a SentencePiece BPE with byte fallback."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL]
        + [BYTE] * 256
        + [NORMAL] * len(PIECES),
        "tokenizer.ggml.scores": [0.0] * 259 + list(PIECES.values()),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.{name}": value for name, value in fields.items()}


def words(pre, text):
    """The words that the merges never cross, with readable spaces and newlines."""
    backend = build_tokenizer(byte_level(pre), "m.gguf").backend_tokenizer
    cut = backend.pre_tokenizer.pre_tokenize_str(text)
    return [
        word.replace(SPACE, " ").replace(NEWLINE, "\n").replace(RETURN, "\r")
        for word, _ in cut
    ]


@pytest.mark.parametrize(
    ("pre", "wanted"),
    [
        ("gpt-2", ["It", "'s", "  ", " 2024", ".", "\n", "\n", "X"]),
        ("smollm", ["It", "'s", "   ", "2", "0", "2", "4", ".", "\n", "\n", "X"]),
        ("llama-bpe", ["It", "'s", "  ", " ", "202", "4", ".\n\n", "X"]),
        ("qwen2", ["It", "'s", "  ", " ", "2", "0", "2", "4", ".\n\n", "X"]),
    ],
)
def test_each_pre_tokenizer_has_its_own_split(pre, wanted):
    assert words(pre, "It's   2024.\n\nX") == wanted


def test_only_llama3_and_qwen_split_capital_contractions():
    assert words("llama-bpe", "IT'S") == words("qwen2", "IT'S") == ["IT", "'S"]
    assert words("smollm", "IT'S") == words("gpt-2", "IT'S") == ["IT", "'", "S"]


def test_qwen_composes_characters_first():
    plain, qwen = (
        build_tokenizer(byte_level(pre), "m.gguf") for pre in ("gpt-2", "qwen2")
    )
    assert qwen("e\u0301").input_ids == qwen("é").input_ids == plain("é").input_ids
    assert plain("e\u0301").input_ids != plain("é").input_ids


def test_merges_apply_in_their_order():
    tokenizer = build_tokenizer(byte_level(merges=["b c", "a b", "a bc"]), "m.gguf")
    assert tokenizer.tokenize("abc ab") == ["abc", SPACE, "ab"]
    assert tokenizer.tokenize("abbc") == ["ab", "bc"]


def test_llama3_takes_whole_words_and_adds_bos():
    # "ab" is a token that no merge makes.
    metadata = byte_level("llama-bpe", merges=["b c", "a b"])
    metadata["tokenizer.ggml.merges"] = ["b c"]
    tokenizer = build_tokenizer(metadata, "m.gguf")
    assert tokenizer("ab").tokens() == ["<bos>", "ab"]
    metadata["tokenizer.ggml.pre"] = "gpt-2"
    assert build_tokenizer(metadata, "m.gguf")("ab").tokens() == ["a", "b"]


@pytest.mark.parametrize("add", [None, False, True])
@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_bos_follows_the_file_then_the_kind(kind, add):
    fields = {} if add is None else {"ggml.add_bos_token": add}
    tokenizer = build_tokenizer(kind(**fields), "m.gguf")
    wanted = kind is sentencepiece if add is None else add
    ids = tokenizer("a").input_ids
    assert (ids[0] == tokenizer.bos_token_id) is wanted
    assert tokenizer.eos_token_id not in ids


def test_special_tokens_are_found_in_the_text():
    tokenizer = build_tokenizer(byte_level(), "m.gguf")
    ids = tokenizer("a<think><eos>").input_ids
    assert ids == [tokenizer.convert_tokens_to_ids("a"), 2, 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>"
    assert (tokenizer.pad_token, tokenizer.unk_token) == (None, None)


def test_the_best_scored_pair_is_joined_first():
    tokenizer = build_tokenizer(sentencepiece(), "m.gguf")
    # ▁a (-1) comes before ab, so ▁abc is only made of ▁a and bc.
    assert tokenizer.tokenize("abc") == ["▁abc"]
    assert tokenizer.tokenize("ab abc") == ["▁a", "b", "▁abc"]


def test_merges_are_the_cuts_into_pieces():
    merges = merges_from_scores(list(PIECES), [NORMAL] * 9, list(PIECES.values()))
    assert merges == [
        ("▁", "a"),
        ("b", "c"),
        ("a", "b"),
        ("ab", "c"),
        ("a", "bc"),
        ("▁a", "bc"),
        ("▁", "abc"),
    ]


def test_unknown_characters_fall_back_to_bytes():
    tokenizer = build_tokenizer(sentencepiece(), "m.gguf")
    tokens = ["▁a", "<0xC3>", "<0xA9>", "<0x0A>"]
    assert tokenizer.tokenize("aé\n") == tokens
    ids = tokenizer("aé\n").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "aé\n"
    # The text "<0x0A>" is no newline.
    assert "<0x0A>" not in tokenizer.tokenize("<0x0A>")


@pytest.mark.parametrize("prefix", [True, False])
def test_the_space_prefix_follows_the_file(prefix):
    fields = {"ggml.add_space_prefix": prefix}
    tokenizer = build_tokenizer(sentencepiece(**fields), "m.gguf")
    assert tokenizer.tokenize("a") == ["▁a" if prefix else "a"]
    for text in ("a", " a", "  a b  ", ""):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parity
@pytest.mark.parametrize("prefix", [True, False])
def test_tokens_equal_sentencepiece(prefix):
    spm = pytest.importorskip("sentencepiece")
    text = pathlib.Path(random.__file__).read_text().split("\n")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text + ["naïve café 日本語 Привет"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=1000,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    theirs = spm.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(theirs.vocab_size())
    types = {0: UNKNOWN, 1: CONTROL, 2: CONTROL}
    fields = {
        "ggml.tokens": [theirs.id_to_piece(i) for i in ids],
        "ggml.scores": [theirs.get_score(i) for i in ids],
        "ggml.token_type": [
            BYTE if theirs.is_byte(i) else types.get(i, NORMAL) for i in ids
        ],
        "ggml.add_space_prefix": prefix,
    }
    ours = build_tokenizer(sentencepiece(**fields), "m.gguf")
    for line in [*text, "  😀é  ", "<0x0A>", "   ", "\t\n"]:
        tokens = ours(line, add_special_tokens=False).input_ids
        assert tokens == theirs.encode(line), line
        assert ours.decode(tokens) == theirs.decode(tokens)


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_a_saved_tokenizer_is_the_same(kind, tmp_path):
    fields = {"chat_template": "{{ messages[0]['content'] }}"}
    tokenizer = build_tokenizer(kind(**fields), "m.gguf")
    tokenizer.extra_special_tokens = ["<think>"]
    write_tokenizer(tokenizer, tmp_path)
    # transformers 4 knows no TokenizersBackend and no list of extra special tokens.
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<think>"]
    assert "extra_special_tokens" not in written
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.extra_special_tokens == ["<think>"]
    rng = random.Random(0)
    for _ in range(50):
        text = "".join(rng.choices("abc 019\n<s>é", k=20))
        assert again(text).input_ids == tokenizer(text).input_ids
    assert again.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (byte_level("tekken"), "tokenizer.ggml.pre is 'tekken'.*gpt-2"),
        (byte_level(None), "tokenizer.ggml.pre is None"),
        (byte_level("default"), "tokenizer.ggml.pre is 'default'"),
        (byte_level(**{"ggml.model": "bert"}), "model is 'bert'.*gpt2, llama"),
        (byte_level(**{"ggml.model": None}), "model is None"),
        (byte_level(**{"ggml.token_type": None}), "token_type is missing"),
        (byte_level(**{"ggml.token_type": [1]}), "259 .*tokens, but 1 "),
        (byte_level(**{"ggml.merges": ["no such"]}), "vocabulary cannot be used"),
        (byte_level(**{"ggml.eos_token_id": 999}), "eos_token_id = 999"),
        (
            byte_level(**{"ggml.add_bos_token": True, "ggml.bos_token_id": None}),
            "adds a bos token",
        ),
        (
            byte_level(**{"ggml.tokens": ["a", "a"], "ggml.token_type": [1, 1]}),
            "holds 'a' twice",
        ),
        (sentencepiece(**{"ggml.scores": [1.0]}), "one score for each"),
        (sentencepiece(**{"ggml.remove_extra_whitespaces": True}), "not supported"),
    ],
)
def test_what_would_tokenize_wrongly_is_refused(metadata, message):
    with pytest.raises(BadInput, match=message):
        build_tokenizer(metadata, "m.gguf")
