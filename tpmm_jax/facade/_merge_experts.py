"""Mixtures of experts as dense reward models again."""

import json
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tpmm_jax.data.codec import make_codec
from tpmm_jax.data.records import PairRow
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.data.reward_pairs import fitting, load_reward_pairs
from tpmm_jax.errors import BadInput
from tpmm_jax.facade._merging import as_model
from tpmm_jax.facade._prompts import codec_of
from tpmm_jax.merging import (
    ExpertMergeConfig,
    ExpertPairs,
    ExpertsContext,
    choose_experts,
    dense_decoder,
    expert_pairs,
)
from tpmm_jax.weights.source import Model, Source


def merge_experts(
    moe: Model | str | os.PathLike,
    rule: str = "uniform",
    pairs: str | os.PathLike | Sequence[Mapping[str, Any]] | None = None,
    *,
    chat: bool = False,
    steps: int = 100,
    learning_rate: float = 0.1,
    batch_size: int = 32,
    holdout: float = 0.2,
    seed: int = 0,
) -> Model:
    """Returns the ordinary dense reward model that a mixture's experts are merged into.

        theta = s theta_shared + (1 - s) sum_i m_i theta_i

    for gate, up and down of each layer that has experts, in float32. Its origin holds
    the rule, m of each of these layers, and the mixture's origin; of "learned" the
    start too, and the held-out loss there and at the end.

    Warns (UserWarning) of pairs that are left out, and where learned weights are no
    better on the held-out pairs than their start, which is then kept.

    >>> moe = tpmm.upcycle(tpmm.load_reward("my-reward-model"), experts=4)
    >>> dense = tpmm.merge_experts(moe)
    >>> dense.config.experts is None, dense.origin["rule"]
    (True, 'uniform')

    Args:
      moe: an upcycled reward model, or what ``load_reward`` takes.
      rule: "uniform": m = 1 / X; "gating": the mean gate probability over the tokens of
        the pairs; "learned": softmax(b), which starts there and is trained with
        Bradley-Terry on the pairs, experts frozen.
      pairs: rows with prompt, chosen and rejected, or a file of them, that the mixture
        was not trained on; "uniform" looks at none.
      chat: whether pairs are written with the chat template.
      steps, learning_rate, batch_size, holdout, seed: of "learned", see
        ``merging.ExpertMergeConfig``.

    Raises:
      BadInput: not an upcycled reward model, a rule without the pairs that it needs,
        or pairs that cannot be used.

    Source: our reconstruction of UMM-RM (2512.00724); see docs/umm_rm.md.
    """
    config = ExpertMergeConfig(
        rule=rule,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        holdout=holdout,
        seed=seed,
    )
    return _merge(as_model(moe), config, pairs, chat)


def _merge(model: Model, config: ExpertMergeConfig, pairs: Any, chat: bool) -> Model:
    config.validate(str)
    name = str(model.origin.get("source", "the model"))
    decoder = dense_decoder(model.decoder, name)
    needed = None
    if config.needs_pairs:
        if pairs is None:
            raise BadInput(
                f'rule "{config.rule}" needs pairs: rows with prompt, chosen and '
                "rejected, or a file of them, that the mixture was not trained on; "
                '"uniform" needs none'
            )
        needed = _given_pairs(model, pairs, config, chat)
    context = ExpertsContext(config, model.decoder, model.params, needed)
    weights_LX = choose_experts(context)
    if context.report.get("kept") == "start":
        warnings.warn(kept_start_text(context.report), stacklevel=3)
    origin = {
        "source": "merge_experts",
        "mixture": dict(model.origin),
        "rule": config.rule,
        "weights": weights_LX.tolist(),
        **context.report,
    }
    params = context.merge(weights_LX)
    return Model(decoder, params, model.tokenizer, origin, model.generation)


def kept_start_text(report: Mapping[str, Any]) -> str:
    """Returns what to say where learned weights did not beat their start."""
    loss = report["held_out_loss"]
    return (
        "on the held-out pairs the learned weights are no better than their start "
        f"(loss {loss['learned']:.4f} and {loss['start']:.4f}); the start is kept, "
        "which is the rule gating"
    )


def merge_pairs(
    model: Model | Source,
    data: RewardDataConfig,
    *,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[PairRow]:
    """Returns pairs as a reward model reads them; longer ones than it can are left out.

    Args:
      data: of kind "pairs".
      note, warn: see ``load_reward_pairs``.

    Raises:
      BadInput: no tokenizer, or rows that cannot be used.
    """
    if model.tokenizer is None:
        raise BadInput(
            f"{model.origin.get('source', 'the model')} has no tokenizer "
            "(tokenizer.json), which reads the pairs; copy it into that directory"
        )
    codec = make_codec(model.config, model.tokenizer, data.reading())
    rows, _ = load_reward_pairs(
        data,
        codec,
        seed=0,
        holdout_fraction=0.0,
        margins=False,
        note=note,
        warn=warn,
    )
    return fitting(rows, model.config.max_positions, warn, data.source)


def _given_pairs(
    model: Model, pairs: Any, config: ExpertMergeConfig, chat: bool
) -> ExpertPairs:
    """Returns the pairs of a file, or of rows."""

    def read(source: str, name: str) -> list[PairRow]:
        def warn(text: str) -> None:
            warnings.warn(text.replace(source, name), stacklevel=6)

        data = RewardDataConfig(pairs=source, chat=chat, max_length=2**31 - 1)
        try:
            return merge_pairs(model, data, note=lambda text: None, warn=warn)
        except BadInput as error:
            raise BadInput(str(error).replace(source, name)) from None

    if isinstance(pairs, str | os.PathLike):
        rows = read(os.fspath(pairs), os.fspath(pairs))
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "pairs.jsonl"
            path.write_text(_lines(pairs), encoding="utf-8")
            rows = read(str(path), "pairs")
    pad_id = codec_of(model).pad_id
    return expert_pairs(rows, config, model.config.max_positions, pad_id)


def _lines(rows: Any) -> str:
    try:
        return "".join(json.dumps(dict(row), allow_nan=False) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise BadInput(
            "pairs: wanted a file, or a list of dicts with prompt, chosen and rejected "
            f"as texts or messages ({error})"
        ) from None
