"""Reward models that are averaged in weights, once, into one (WARM)."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput
from tpmm_jax.merging import weighted_sum
from tpmm_jax.models import Decoder
from tpmm_jax.rewards import NamedScorer, ScorerConfig
from tpmm_jax.scoring.named import (
    REWARD,
    check_options,
    name_model,
    trained_with_chat,
)
from tpmm_jax.scoring.reward_scorer import RewardScorer, refuse_not_finite
from tpmm_jax.weights.architecture import check_same_architecture
from tpmm_jax.weights.loading import check_dtype, resolve_reward
from tpmm_jax.weights.source import Model, Source


def load_averaged(
    config: ScorerConfig,
    field: str,
    *,
    mesh: Mesh | None = None,
    date: datetime.date | None = None,
) -> NamedScorer:
    """Returns one reward model whose weights are the mean of several ones' (WARM).

    Source: Rame et al. 2024, arXiv 2401.12187.

    Raises:
      BadInput: one of them is no reward model, or they differ in architecture,
        tokenizer or chat template; names both.
    """
    try:
        for name in config.names:
            if not name.startswith(REWARD):
                raise BadInput(
                    f"{name!r} has no weights of a reward model, which "
                    'scorer.ensemble="weights" averages (each "reward:SOURCE"); use '
                    "predictions"
                )
            check_options(name, config.options)
        found = [_resolve(name, config.options) for name in config.names]
        chat = _same_reading(config, found)
        model, digests = _average(config, found, mesh)
        refuse_not_finite(model)
        title = str(model.origin["source"])
        scorer = name_model(title, model, chat, config.options, date)
        return replace(scorer, averaged=digests)
    except BadInput as error:
        raise BadInput(f"{field}: {error}") from None


def _resolve(name: str, options: Mapping[str, Any]) -> Source:
    source = {k: options[k] for k in ("revision", "base") if k in options}
    try:
        return resolve_reward(name.removeprefix(REWARD), **source)
    except BadInput as error:
        raise BadInput(f"{name!r}: {error}") from None


def _average(
    config: ScorerConfig, found: Sequence[Source], mesh: Mesh | None
) -> tuple[Model, list[str]]:
    """Returns the weighted mean of models, and the digest of each one.

    Raises:
      BadInput: two of them are one model.
    """
    dtype = check_dtype(config.options.get("dtype", "float32"))
    decoder = Decoder(found[0].config, compute_dtype=dtype, mesh=mesh)
    digests = dict[str, str]()

    def read(name: str, one: Source) -> Params:
        params = one.read(decoder, "float32")
        digest = RewardScorer(one.model(decoder, params)).digest
        if (other := digests.setdefault(digest, name)) != name:
            raise BadInput(f"{name} and {other} are one model; name it once")
        return params

    models = (read(name, one) for name, one in zip(config.names, found))
    params, _ = weighted_sum(models, config.shares)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    title = replace(config, length_penalty=0.0, normalise=False, clip=None).title
    mean = replace(found[0].model(decoder, params), origin={"source": title})
    return mean, list(digests)


def _same_reading(config: ScorerConfig, found: Sequence[Source]) -> bool | None:
    """Returns how models that are to be averaged read texts, see ``RewardScorer.chat``.

    Raises:
      BadInput: they differ in that, or in what their weights are of.
    """
    names, first = config.names, found[0]
    for name, other in zip(names[1:], found[1:]):
        check_same_architecture(first.config, other.config, name, names[0])
        both = [_reading(one) for one in (first, other)]
        for what in both[0]:
            if both[0][what] != both[1][what]:
                raise BadInput(
                    f"{name} has another {what} than {names[0]}; only the weights of "
                    "models that read texts alike can be averaged. Use "
                    'scorer.ensemble="predictions"'
                )
    if "chat" in config.options:
        return config.options["chat"]
    chats = {trained_with_chat(one.origin) for one in found}
    if len(chats) > 1:
        raise BadInput(
            "some of these models were trained with the chat template and some were "
            "not, or nothing says so; set scorer.options.chat to say how their mean "
            "is to read"
        )
    return chats.pop()


def _reading(found: Source) -> dict[str, Any]:
    """Returns what a model reads texts by."""
    tokenizer = found.tokenizer
    if tokenizer is None:
        return {"tokenizer": None}  # a mean of models without one is refused later
    return {
        "tokenizer": tokenizer.get_vocab(),
        "BOS": tokenizer.bos_token,
        "EOS": tokenizer.eos_token,
        "chat template": tokenizer.chat_template,
    }
