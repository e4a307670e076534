"""Tokenizers that split characters: byte-level BPE, and SentencePiece's kind."""

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "the sky is blue and the grass is green",
    " and the dog said: hello, world.\n\nA question? An answer!",
    "Grüße, naïve café – déjà vu",
    "emoji 😀👩‍👩‍👧 in a sentence 🎉 and on",
    "我喜欢吃苹果。日本語も。",
    "tab\tand  two   spaces and a_very_long_identifier_that_goes_on_and_on_and_on x",
)
_WORDS = [*TEXTS[:2], "Once upon a time there was a little dog"] * 3


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind; a letter outside ASCII is several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[AddedToken("<end>", special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_WORDS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<end>"
    )


def metaspace() -> PreTrainedTokenizerFast:
    """Llama 2's kind: a marker for the space, bytes for letters that it lacks."""
    specials = ["<unk>", "<s>", "</s>"]
    table = {name: i for i, name in enumerate(specials)}
    for byte in range(256):
        table[f"<0x{byte:02X}>"] = len(table)
    for letter in sorted({c for t in _WORDS for c in t if ord(c) < 128} - {" "}):
        table.setdefault(letter, len(table))
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "d"), ("▁d", "o")]
    table["▁"] = len(table)
    for one, other in merges:
        table[one + other] = len(table)
    core = Tokenizer(
        models.BPE(table, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
