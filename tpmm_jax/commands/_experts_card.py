"""The model card of a mixture that was upcycled, and of one that was merged back."""

import pathlib
from collections.abc import Mapping
from typing import Any

from tpmm_jax.commands._card import cell, code, local_name, write_card
from tpmm_jax.commands._reward_card import REWARD_TEMPLATE, pooling_facts, reader_facts
from tpmm_jax.errors import BadInput
from tpmm_jax.store import read_json
from tpmm_jax.weights.source import Model

# The records beside the weights.
UPCYCLED, MERGED = "upcycle.json", "merge_experts.json"
RULES = {
    "uniform": "the same weight for every routed expert",
    "gating": "the mean gate probabilities of the routers on pairs",
    "learned": "weights that were trained on pairs with the experts frozen, and that "
    "began at the mean gate probabilities",
}


def experts_text(directory: pathlib.Path) -> str:
    """Returns what a directory's record says of its experts; "" if it has none.

    Raises:
      BadInput: the record is damaged.
    """
    for name in (UPCYCLED, MERGED):
        path = directory / name
        if path.is_file():
            try:
                return _text(read_json(path))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise BadInput(
                    f"{path} is not such a record ({type(error).__name__}: {error}); "
                    "put it back, or remove it to export without it"
                ) from None
    return ""


def made_card(output: pathlib.Path, model: Model, content: Mapping[str, Any]) -> str:
    """Returns the card of what tpmm upcycle or tpmm merge_experts writes.

    Args:
      content: of the record beside the weights.
    """
    config = model.config
    tags = ["tpmm_jax", "reward-model"]
    tags.append("mixture-of-experts" if config.experts is not None else "merge")
    return write_card(
        REWARD_TEMPLATE,
        **pooling_facts(config),
        **reader_facts(config, peft=False),
        name=output.absolute().name,
        tags=tags,
        base_model="",
        lora=None,
        license=None,
        parameters=f"{model.decoder.num_params:,}",
        family=config.family,
        dtype=content["dtype"],
        chat=bool(getattr(model.tokenizer, "chat_template", None)),
        run=None,
        merge=None,
        experts=_text(content),
        source="",
        commit=None,
        digest=content["digest"],
        versions=list(content["versions"].items()),
    )


def _text(content: Mapping[str, Any]) -> str:
    """Returns Markdown: how the model was made."""
    experts, source = content["experts"], content["source"]
    named = cell(local_name(str(source["source"])))
    layers = ", ".join(map(str, content["layers"]))
    mixed = (
        f"of a shared expert with the share {experts['shared']} and "
        f"{experts['count']} routed experts, {experts['top_k']} for a token"
    )
    reconstruction = "This is our reconstruction of UMM-RM (arXiv 2512.00724)."
    kept = ""
    if content.get("learning", {}).get("kept") == "start":
        kept = " On held-out pairs they were no better than that start, which was kept."
    if "rule" not in content:
        noise = experts["noise"]
        copies = (
            f"copies with noise of {noise} standard deviations" if noise else "copies"
        )
        lines = [
            f"Upcycled from {named}: the feed-forwards of the layers {layers} became "
            f"mixtures {mixed}. The experts are {copies} of these feed-forwards, and "
            f"were not trained since. {reconstruction}",
        ]
    else:
        lines = [
            "A mixture of experts merged back into a dense model. The mixture is "
            f"{named}; the feed-forwards of its layers {layers} were mixtures {mixed}. "
            f"Their weighted sums in float32 are this model's, by the rule "
            f"`{code(content['rule'])}`: {RULES[content['rule']]}.{kept} "
            f"{reconstruction}",
            "",
            "| layer | weights of the routed experts |",
            "|---|---|",
        ]
        for layer, row in zip(content["layers"], content["weights"], strict=True):
            lines.append(f"| {layer} | {', '.join(f'{w:.3f}' for w in row)} |")
        lines += _scores(content)
    lines += ["", "| | |", "|---|---|", f"| {named} | `{code(source['digest'])}` |"]
    return "\n".join(lines)


def _scores(content: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a table of scores, if there are any."""
    if not content.get("scores"):
        return []
    pairs = content["pairs"]
    number = pairs["held_out"] or pairs["used"]
    lines = [
        "",
        f"On {number} pairs, none of which the weights were learned on "
        "(95 % intervals of the share that is ordered right):",
        "",
        "| model | accuracy | loss, nats |",
        "|---|---|---|",
    ]
    for row in content["scores"]:
        interval = f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(f"| {cell(row['model'])} | {interval} | {row['loss']:.4f} |")
    return lines
