"""The tokenizer that a .gguf file's metadata describes, as a Hugging Face tokenizer.

Two kinds: byte-level BPE with its merges ("gpt2"), and SentencePiece BPE ("llama"),
whose merges are the pairs of pieces that join into a scored piece.

Where a file leaves room, llama.cpp and the model's own tokenizer.json decide; a
pre-tokenizer that is not known by name is refused, since another split would give
other tokens without a sign of it.
"""

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
)
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tpmm_jax.errors import BadInput

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

SPACE = "▁"
SPECIAL_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def _words(digits: str) -> str:
    """The split of Llama 3 and Qwen, which differ in how many digits stay together."""
    parts = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        rf"\p{{N}}{digits}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
    return "|".join(parts)


@dataclass(frozen=True, kw_only=True)
class ByteLevelRule:
    """How text is cut before the merges, and what else the name of the cut implies.

    Attributes:
      split: the pattern of one word; None is GPT-2's own.
      single_digits: every digit is a word, cut out before the split.
      nfc: text is composed (Unicode NFC) first.
      whole_words: a word that is a token is taken as it is, whatever the merges.
      add_bos: the beginning-of-sequence token is added where the file is silent.
    """

    split: str | None = None
    single_digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


_LLAMA3 = ByteLevelRule(split=_words("{1,3}"), whole_words=True, add_bos=True)

# tokenizer.ggml.pre
BYTE_LEVEL_RULES: dict[str, ByteLevelRule] = {
    "gpt-2": ByteLevelRule(),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": ByteLevelRule(split=_words(""), nfc=True),
    "smollm": ByteLevelRule(single_digits=True),
}


def build_tokenizer(
    metadata: Mapping[str, Any], origin: str
) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of a .gguf file.

    Args:
      metadata: the file's fields by name, arrays as lists.
      origin: the file's name, for messages.

    Raises:
      BadInput: a field that is missing or inconsistent, or a kind of tokenizer
        that is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in TOKENIZERS:
        raise BadInput(
            f"{origin}: tokenizer.ggml.model is {kind!r}; supported are "
            f"{', '.join(sorted(TOKENIZERS))}"
        )
    tokens, types = _vocabulary(metadata, origin)
    special = _special_tokens(metadata, tokens, origin)
    try:
        backend, add_bos = TOKENIZERS[kind](metadata, tokens, types, special, origin)
    except BadInput:
        raise
    # tokenizers' Rust errors are bare Exceptions.
    except Exception as error:
        raise BadInput(f"{origin}: the vocabulary cannot be used: {error}") from error
    _add_tokens(backend, tokens, types)
    adds = {
        "bos": bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)),
        "eos": bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
    }
    for end, add in adds.items():
        if add and f"{end}_token" not in special:
            raise BadInput(
                f"{origin}: the tokenizer adds a {end} token, but "
                f"tokenizer.ggml.{end}_token_id is missing"
            )
    architecture = metadata.get("general.architecture")
    limit = metadata.get(f"{architecture}.context_length")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=adds["bos"],
        add_eos_token=adds["eos"],
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **({"model_max_length": limit} if limit else {}),
        **special,
    )


def _vocabulary(
    metadata: Mapping[str, Any], origin: str
) -> tuple[list[str], list[int]]:
    """Returns the tokens' texts and types, both by id."""
    found = []
    for name in ("tokens", "token_type"):
        values = metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(values, list) or not values:
            raise BadInput(
                f"{origin}: tokenizer.ggml.{name} is missing; without it text cannot "
                "be tokenized faithfully: convert the model again"
            )
        found.append(values)
    tokens, types = found
    if len(tokens) != len(types):
        raise BadInput(
            f"{origin}: {len(tokens)} tokenizer.ggml.tokens, but {len(types)} "
            "tokenizer.ggml.token_type"
        )
    if len(set(tokens)) != len(tokens):
        double = collections.Counter(tokens).most_common(1)[0][0]
        raise BadInput(f"{origin}: tokenizer.ggml.tokens holds {double!r} twice")
    return tokens, types


def _special_tokens(
    metadata: Mapping[str, Any], tokens: list[str], origin: str
) -> dict[str, str]:
    """Returns the named special tokens' texts."""
    special = {}
    for name, key in SPECIAL_IDS.items():
        index = metadata.get(key)
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise BadInput(
                f"{origin}: {key} = {index}, but there are {len(tokens)} tokens"
            )
        special[name] = tokens[index]
    return special


def _add_tokens(backend: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Marks the tokens that are found in the text before anything else."""
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        backend.add_tokens(
            [
                AddedToken(token, normalized=False, special=special)
                for token, its_kind in zip(tokens, types)
                if its_kind == kind
            ]
        )


def _byte_level(
    metadata: Mapping[str, Any],
    tokens: list[str],
    types: list[int],
    special: Mapping[str, str],
    origin: str,
) -> tuple[Tokenizer, bool]:
    """Returns byte-level BPE and whether it adds a bos token by default."""
    pre = metadata.get("tokenizer.ggml.pre")
    rule = BYTE_LEVEL_RULES.get(str(pre))
    if rule is None:
        raise BadInput(
            f"{origin}: tokenizer.ggml.pre is {pre!r}, a split into words that is not "
            f"known; supported are {', '.join(sorted(BYTE_LEVEL_RULES))}. If the model "
            "uses one of these, write its name with the gguf package's "
            "gguf-new-metadata --pre-tokenizer"
        )
    if "tokenizer.ggml.merges" not in metadata:
        raise BadInput(
            f"{origin}: tokenizer.ggml.merges is missing: convert the model again"
        )
    # A piece may itself start with a space, hence from the second character.
    cuts = [(m, m.find(" ", 1)) for m in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(
        BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[(merge[:cut], merge[cut + 1 :]) for merge, cut in cuts],
            ignore_merges=rule.whole_words,
        )
    )
    if rule.nfc:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if rule.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.split is not None:
        steps.append(pre_tokenizers.Split(Regex(rule.split), behavior="isolated"))
    steps.append(
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.split is None)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend, rule.add_bos


def _sentencepiece(
    metadata: Mapping[str, Any],
    tokens: list[str],
    types: list[int],
    special: Mapping[str, str],
    origin: str,
) -> tuple[Tokenizer, bool]:
    """Returns SentencePiece's BPE and whether it adds a bos token by default."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise BadInput(
            f"{origin}: tokenizer.ggml.scores must hold one score for each of the "
            f"{len(tokens)} tokens: convert the model again"
        )
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces"):
        raise BadInput(
            f"{origin}: tokenizer.ggml.remove_extra_whitespaces is not supported"
        )
    unknown = special.get("unk_token")
    if unknown is None and UNKNOWN in types:
        unknown = tokens[types.index(UNKNOWN)]
    num_bytes = types.count(BYTE)
    if num_bytes not in (0, 256) or (unknown is None and not num_bytes):
        raise BadInput(
            f"{origin}: {num_bytes} byte tokens and unknown token {unknown!r}: "
            "characters outside the vocabulary would be lost"
        )
    backend = Tokenizer(
        BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges_from_scores(tokens, types, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=num_bytes > 0,
        )
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    escape = normalizers.Replace(" ", SPACE)
    # As llama.cpp does, every stretch of text between special tokens gets its space.
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), escape]) if prefix else escape
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    backend.decoder = decoders.Sequence(steps)
    return backend, True


def merges_from_scores(
    tokens: list[str], types: list[int], scores: list[float]
) -> list[tuple[str, str]]:
    """Returns the merges that a SentencePiece BPE vocabulary implies, best first.

    SentencePiece joins the neighbours whose joint piece scores highest, so every
    cut of a piece into two pieces is a merge with that piece's score.
    """
    pieces = {t for t, kind in zip(tokens, types) if kind == NORMAL}
    ranked = sorted(
        (-score, index, -cut)
        for index, (token, score) in enumerate(zip(tokens, scores))
        if token in pieces
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    )
    return [(tokens[index][:-cut], tokens[index][-cut:]) for _, index, cut in ranked]


# tokenizer.ggml.model
TOKENIZERS = {"gpt2": _byte_level, "llama": _sentencepiece}
