"""Small tokenizers: byte-level BPE without BOS, and SentencePiece-like with BOS."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tpmm_jax.data.codec import TextCodec, make_codec
from tpmm_jax.data.config import DataConfig

TEXT = [
    "the sky is blue and the grass is green",
    "Once upon a time there was a little dog",
    "user assistant system hello world answer question",
    "What colour is the sky?\n\nIt is blue.\n",
] * 4

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# BOS from the template, an end of turn that is not EOS, no system messages.
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    "<turn>{{ m['role'] }}\n{{ m['content'] | trim }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def _special(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def byte_level(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """GPT-2's kind: no BOS; pad is EOS."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=_special("<|im_end|>", "<|im_start|>"),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=chat_template,
    )


def metaspace(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Llama's kind: BOS added, a space marker put before every text; no pad."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=_special("<unk>", "<s>", "</s>", "<turn>", "</turn>"),
        show_progress=False,
    )
    # Words one by one, so that no token spans two.
    core.train_from_iterator([w for t in TEXT for w in t.split(" ")], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat_template,
    )


def codec(tokenizer: Any, *, eos_ids: Sequence[int] = (), **data: Any) -> TextCodec:
    """The codec of a tokenizer that belongs to no model.

    Args:
      eos_ids: further ids that end a completion.
      data: fields of DataConfig.
    """
    made = make_codec(None, tokenizer, DataConfig(**data))
    return dataclasses.replace(made, eos_ids=(*made.eos_ids, *eos_ids))
