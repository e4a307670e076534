"""Makes a dense reward model a mixture of experts: tpmm upcycle runs/rm --output moe

Exit codes: 0 done, 2 bad input, 3 corrupt checkpoint, 4 storage, 75 stopped.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tpmm_jax.commands._experts_card import UPCYCLED, made_card
from tpmm_jax.commands._line import guarded
from tpmm_jax.commands.options.upcycle import parse_args
from tpmm_jax.errors import BadInput
from tpmm_jax.facade import upcycle
from tpmm_jax.log.console import RunConsole
from tpmm_jax.log.versions import versions
from tpmm_jax.models import Decoder
from tpmm_jax.models.upcycling import UpcyclingConfig
from tpmm_jax.scoring import row_rewards
from tpmm_jax.store import tree_digest
from tpmm_jax.weights.loading import check_dtype, resolve_any
from tpmm_jax.weights.saving import check_output, save
from tpmm_jax.weights.source import Model

# Fields of UpcyclingConfig by their options.
OPTIONS = {
    "count": "experts",
    "top_k": "top-k",
    "shared": "shared",
    "layers": "layers",
    "noise": "noise",
}
# Rows of made-up tokens on which noisy copies are compared with the dense model.
_ROWS, _LENGTH = 16, 32


def read_config(args: argparse.Namespace) -> UpcyclingConfig:
    """Returns what the feed-forwards become, validated."""
    if args.experts == 0:
        raise BadInput("--experts is 0; use at least 2 (4 is usual)")
    if args.seed < 0:
        raise BadInput(f"--seed is {args.seed}; use 0 or more")
    config = UpcyclingConfig(
        count=args.experts,
        top_k=args.top_k,
        shared=args.shared,
        layers=args.layers,
        noise=args.noise,
    )
    config.validate(lambda field: f"--{OPTIONS[field]}")
    return config


def noise_error(dense: Model, moe: Model, seed: int) -> dict[str, float]:
    """Returns how far noisy copies move rewards, on made-up tokens.

    "most" and "root_mean_square" of the differences; "spread", the standard deviation
    of the dense model's rewards there.
    """
    config = dense.config
    rng = np.random.default_rng(seed)
    length = min(_LENGTH, config.max_positions)
    rows = rng.integers(0, config.vocab_size, (_ROWS, length)).tolist()
    before, after = (
        row_rewards(model.decoder, model.params, rows, batch_size=_ROWS)
        for model in (dense, moe)
    )
    moved = after - before
    return {
        "most": float(np.abs(moved).max()),
        "root_mean_square": float(np.sqrt(np.mean(moved**2))),
        "spread": float(before.std()),
    }


def record(args: argparse.Namespace, made: Model, digest: str) -> dict[str, Any]:
    """Returns the content of upcycle.json.

    Args:
      digest: of the dense model.
    """
    experts = made.config.experts
    assert experts is not None
    origin = dict(made.origin)
    settings, seed = origin.pop("experts"), origin.pop("experts_seed")
    return {
        "source": origin | {"digest": digest},
        "experts": settings,
        "layers": list(experts.places(made.config.num_layers)),
        "seed": seed,
        "digest": tree_digest(made.params),
        "dtype": check_dtype(args.dtype),
        "note": "our reconstruction of UMM-RM (arXiv 2512.00724)",
        "versions": versions(),
    }


def run(args: argparse.Namespace, console: RunConsole) -> None:
    """Checks everything, reads, writes."""
    dtype, config = check_dtype(args.dtype), read_config(args)
    check_output(args.output)
    (source,) = resolve_any([args.source], args.base)
    mixture = Decoder(config.of(source.config, args.source))
    each = 2 if dtype == "bfloat16" else 4
    check_output(args.output, each * mixture.num_params)
    decoder = Decoder(source.config)
    with console.phase("read", 1, "models") as bar:
        dense = source.model(decoder, source.read(decoder, "float32"))
        digest = tree_digest(dense.params)
        bar.advance(1)
    made = upcycle(
        dense,
        experts=config.count,
        top_k=config.top_k,
        shared=config.shared,
        layers=config.layers,
        seed=args.seed,
        noise=config.noise,
    )
    content = record(args, made, digest)
    layers = len(content["layers"])
    console.note(
        f"{layers} of {source.config.num_layers} layers have {config.count} routed "
        f"experts: {decoder.num_params:,} weights became {mixture.num_params:,}"
    )
    if config.noise:
        content["error"] = noise_error(dense, made, args.seed)
        console.note(
            f"noisy copies: on {_ROWS} rows of made-up tokens rewards differ from the "
            f"dense model's by up to {content['error']['most']:.3g} "
            f"({content['error']['root_mean_square']:.3g} root mean square); its own "
            f"have a standard deviation of {content['error']['spread']:.3g}"
        )
    made_params = jax.tree.map(lambda x: x.astype(dtype), made.params)
    model = source.model(made.decoder, made_params)
    files = {
        UPCYCLED: json.dumps(content, indent=2, sort_keys=True) + "\n",
        "README.md": made_card(pathlib.Path(args.output), model, content),
    }
    with console.phase("write", 1, "models") as bar:
        save(model, args.output, files=files)
        bar.advance(1)
    if source.tokenizer is None:
        console.warn(f"{args.source} has no tokenizer, so {args.output} has none")
    console.next_steps(
        [
            f"--set model.source={args.output}   in tpmm train_reward",
            f'tpmm.load_reward("{args.output}")   in Python',
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    return guarded(run, parse_args(argv))
