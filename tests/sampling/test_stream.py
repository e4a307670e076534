"""Streaming: the draws of generate, and text that is never taken back."""

import dataclasses

import jax
import pytest
from tokenizers_for_stream import TEXTS, byte_level, metaspace

import tpmm_jax as tpmm
from tpmm_jax.data.codec import TextCodec
from tpmm_jax.errors import BadInput
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config
from tpmm_jax.sampling import SamplingConfig, stream, stream_tokens, text_pieces
from tpmm_jax.sampling.stream import padded_length, settled
from tpmm_jax.weights.source import Model

TOKENIZERS = {"byte_level": byte_level, "metaspace": metaspace}


def codec_of(tokenizer):
    return TextCodec(tokenizer=tokenizer, num_embeddings=len(tokenizer), eos_ids=())


def model_of(tokenizer, eos=()):
    config = make_config(
        "llama", vocab_size=len(tokenizer), width=10, mlp_width=13, num_layers=2,
        num_heads=3, num_kv_heads=1, head_dim=4, max_positions=300, eos_ids=eos,
    )  # fmt: skip
    decoder = Decoder(config)
    return Model(decoder, decoder.init(jax.random.key(1)), tokenizer)


HOWS = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.8},
    {"top_k": 5, "seed": 3},
)


# How tokens are drawn and how they become text have nothing to do with each other.
@pytest.mark.parametrize(
    "name, how",
    [
        pytest.param(
            name,
            how,
            marks=pytest.mark.slow if how and name != "byte_level" else (),
        )
        for name in TOKENIZERS
        for how in HOWS
    ],
    ids=str,
)
def test_a_stream_is_generate_piece_by_piece(name, how):
    model = model_of(TOKENIZERS[name]())
    prompts = ["the sky is", "a little dog", "Once upon a time there was"]
    whole = tpmm.generate(model, prompts, max_new_tokens=24, num_samples=2, **how)
    how = {**how, "max_new_tokens": 24}
    for number, prompt in enumerate(prompts):
        for sample in range(2):
            pieces = list(
                tpmm.stream(
                    model,
                    prompt,
                    number=number,
                    sample=sample,
                    **how,
                )
            )
            assert "".join(pieces) == whole[number][sample]


def test_a_stream_ends_at_the_end_token():
    model = model_of(byte_level())
    config = SamplingConfig(max_new_tokens=40)
    common = {"key": jax.random.key(0), "config": config}
    free = list(
        stream_tokens(model.decoder, model.params, [5, 6], eos_ids=(), **common)
    )
    assert len(free) == 40
    eos = free[7]
    ended = list(
        stream_tokens(model.decoder, model.params, [5, 6], eos_ids=(eos,), **common)
    )
    assert ended == free[: free.index(eos) + 1]


def test_bfloat16_streams_what_it_generates():
    model = model_of(byte_level())
    half = jax.tree.map(lambda x: x.astype("bfloat16"), model.params)
    decoder = dataclasses.replace(model.decoder, compute_dtype="bfloat16")
    model = dataclasses.replace(model, decoder=decoder, params=half)
    whole = tpmm.generate(model, ["the sky"], max_new_tokens=12, temperature=0)
    pieces = tpmm.stream(model, "the sky", max_new_tokens=12, temperature=0)
    assert "".join(pieces) == whole[0][0]


def test_a_growing_conversation_compiles_a_program_a_doubling():
    model = model_of(byte_level())
    stream.start.clear_cache()
    stream.step.clear_cache()
    for length in range(3, 200, 7):
        config = SamplingConfig(max_new_tokens=2)
        list(
            stream_tokens(
                model.decoder, model.params, [4] * length,
                key=jax.random.key(length), config=config, eos_ids=(),
                number=length, sample=1,
            )
        )  # fmt: skip
    # Prompts of 3 to 199 tokens: padded to 32, 64, 128 and 256.
    assert stream.start._cache_size() == 4
    assert stream.step._cache_size() == 4


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_split_no_character(name, text):
    tokenizer = TOKENIZERS[name]()
    prompt = tokenizer("Once upon", add_special_tokens=False)["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    codec = codec_of(tokenizer)
    pieces = list(text_pieces(codec, prompt, ids))
    assert "".join(pieces) == codec.completion_texts(prompt, [ids])[0]
    assert not any("\ufffd" in piece for piece in pieces)
    seen = ""
    for piece in pieces[:-1]:
        seen += piece
        rest = codec.completion_texts(prompt, [ids])[0][len(seen) :]
        # A piece ends where a word ends, but in a script without spaces or a long word.
        wide = any(ord(c) > 0x2E80 for c in text) or len(seen.split()[-1]) > 24
        assert wide or not rest or rest[0].isspace() or seen[-1].isspace()


def test_bytes_that_are_no_character_come_at_the_end():
    tokenizer = byte_level()
    half = tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    codec = codec_of(tokenizer)
    pieces = list(text_pieces(codec, [], [*half]))
    assert "".join(pieces) == codec.completion_texts([], [half])[0] == "\ufffd"


def test_special_tokens_are_not_shown():
    tokenizer = byte_level()
    ids = tokenizer("a dog", add_special_tokens=False)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id]
    assert "".join(text_pieces(codec_of(tokenizer), [], ids)) == "a dog"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("word", ""),
        ("one two", "one"),
        ("one two ", "one two "),
        ("one\ntwo", "one\n"),
        ("one \ufffd", "one "),
        ("x" * 40, "x" * 40),
        ("我喜欢", "我喜欢"),
        ("one two\ufffd\ufffd", "one"),
    ],
)
def test_what_is_settled(text, shown):
    assert text[: settled(text)].rstrip(" ") == shown.rstrip(" ")


def test_padded_lengths_are_few_and_within_the_limit():
    assert [padded_length(n, 100) for n in (1, 32, 33, 64, 65, 100)] == [
        32, 32, 64, 64, 100, 100,
    ]  # fmt: skip


def test_what_cannot_be_streamed_is_refused_at_once():
    model = model_of(byte_level())
    with pytest.raises(BadInput, match="prompt 0 is empty"):
        tpmm.stream(model, "")
    with pytest.raises(BadInput, match=r"temperature is -1"):
        tpmm.stream(model, "a", temperature=-1)
    with pytest.raises(BadInput, match="tokens; wanted 1 to 100"):
        tpmm.stream(model, [1] * 150, max_new_tokens=200)
    with pytest.raises(BadInput, match="no tokenizer"):
        tpmm.stream(dataclasses.replace(model, tokenizer=None), [1, 2])
