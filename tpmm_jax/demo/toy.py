"""The demonstration's model, prompts and reward, named in configs/quickstart.py."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from tpmm_jax.demo.grammar import (
    PLACES,
    SENTENCES,
    WORD,
    all_prompts,
    make_texts,
    place_of,
    read_sentence,
)
from tpmm_jax.log.console import RunConsole
from tpmm_jax.losses import Batch
from tpmm_jax.mesh import put_batch
from tpmm_jax.models import Decoder
from tpmm_jax.models.families import make_config
from tpmm_jax.steps import (
    TrainConfig,
    abstract_state,
    fit,
    init_state,
    language_model_loss,
    make_learning_rate,
    make_train_step,
)
from tpmm_jax.weights.saving import save
from tpmm_jax.weights.source import Model

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
# The longest text: 9 tokens of prompt, 3 sentences of 7, and EOS.
TEXT_LENGTH = 31
MAX_POSITIONS = 64

_PRETRAIN = TrainConfig(batch_size=32, learning_rate=1e-2, warmup_fraction=0.05)


def prompts() -> list[str]:
    """Returns the beginnings of reviews, all different."""
    return all_prompts()


def reward(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the mean sentiment of each response's sentences, [B, R] in [-1, 1].

        r = sum_i s_i / max(n, 3),  n sentences, fewer than 3 counted as missing

    s_i is the sentence's sentiment (grammar.read_sentence). It is -1 for a sentence
    that is missing, broken, cut short, about something the place does not have, or
    about an aspect that was spoken of before: so neither gibberish, nor silence, nor
    one phrase over and over is worth more than an honest bad review.
    """
    return np.array(
        [
            [review_sentiment(prompt, text) for text in texts]
            for prompt, texts in zip(prompts, responses, strict=True)
        ]
    )


def grammatical(
    prompts: Sequence[str], responses: Sequence[Sequence[str]]
) -> np.ndarray:
    """Returns the share of each response's sentences that the grammar knows, [B, R].

    It does not look at the mood: a judge that no cheerful phrase can please.
    """
    return np.array(
        [
            [
                sum(read_sentence(s) is not None for s in sentences_of(text))
                / max(len(sentences_of(text)), 1)
                for text in texts
            ]
            for texts in responses
        ]
    )


def sentences_of(text: str) -> list[str]:
    """Returns the sentences, one that is cut short at the end included."""
    return [s.strip() for s in re.findall(r"[^.]*\.|[^.]+$", text) if s.strip()]


def review_sentiment(prompt: str, text: str) -> float:
    """Returns the reward of one response."""
    place = place_of(prompt)
    left = None if place is None else set(PLACES[place])
    scores, seen = [], set()
    for sentence in sentences_of(text):
        aspect, score = read_sentence(sentence) or (None, -1.0)
        if aspect in seen or (left is not None and aspect not in left):
            score = -1.0
        seen.add(aspect)
        scores.append(score)
    scores += [-1.0] * (SENTENCES - len(scores))
    return sum(scores) / len(scores)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns the tokenizer whose tokens are words with the space before them."""
    texts = make_texts(all_prompts() * 4, seed=0)  # enough that every word occurs
    words = {word for text in texts for word in re.findall(WORD, text)}
    vocab = {word: i for i, word in enumerate([*SPECIAL, *sorted(words)])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(s, special=True) for s in SPECIAL])
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def build_model(directory: pathlib.Path, console: RunConsole, steps: int = 250) -> None:
    """Pretrains a small Gemma on texts of the grammar and writes it.

    Args:
      directory: empty or missing; becomes a Hugging Face directory.
      steps: optimizer steps of 32 texts.
    """
    tokenizer = make_tokenizer()
    config = make_config(
        "gemma",
        vocab_size=len(tokenizer),
        width=64,
        mlp_width=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=1,
        head_dim=16,
        max_positions=MAX_POSITIONS,
        bos_id=tokenizer.bos_token_id,
        eos_ids=(tokenizer.eos_token_id,),
        pad_id=tokenizer.pad_token_id,
    )
    decoder = Decoder(config, remat=False)
    params = decoder.init(jax.random.key(0))
    params = _pretrain(decoder, params, tokenizer, steps, console)
    save(Model(decoder, params, tokenizer), directory)


def _pretrain(
    decoder: Decoder, params: Any, tokenizer: Any, steps: int, console: RunConsole
) -> Any:
    loss_fn = language_model_loss(decoder)
    beginnings = all_prompts()

    def batch(step: int) -> Batch:
        places = np.random.default_rng([0, step]).integers(
            len(beginnings), size=_PRETRAIN.batch_size
        )
        texts = make_texts([beginnings[i] for i in places], seed=step)
        return put_batch(text_batch(tokenizer, texts), decoder.mesh)

    with console.phase("pretrain a small Gemma", steps, "steps") as bar:
        state = fit(
            init_state(params, _PRETRAIN),
            make_train_step(
                lambda _: loss_fn, _PRETRAIN, abstract_state(params, _PRETRAIN)
            ),
            batch,
            steps,
            learning_rate=make_learning_rate(_PRETRAIN, steps),
            log=lambda state, step, metrics: bar.advance(
                1, loss=f"{float(metrics['loss']):.3f}"
            ),
        )
    return state.params


def text_batch(tokenizer: Any, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns texts with BOS and EOS as a batch for steps.language_model_loss."""
    tokens_BT = np.full((len(texts), TEXT_LENGTH), tokenizer.pad_token_id, np.int32)
    mask_BT = np.zeros_like(tokens_BT)
    for b, ids in enumerate(tokenizer(list(texts))["input_ids"]):
        tokens_BT[b, : len(ids) + 1] = [*ids, tokenizer.eos_token_id]
        mask_BT[b, : len(ids) + 1] = 1
    weight_B = (mask_BT.sum(axis=1) - 1).astype(np.float32)
    return {"tokens_BT": tokens_BT, "mask_BT": mask_BT, "weight_B": weight_B}
