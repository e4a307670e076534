"""Dense reward models as mixtures of experts."""

from dataclasses import replace

from tpmm_jax.errors import BadInput
from tpmm_jax.models.upcycling import ALL, UpcyclingConfig
from tpmm_jax.weights.loading import upcycled
from tpmm_jax.weights.source import Model, Source


def upcycle(
    rm: Model,
    experts: int = 4,
    top_k: int = 2,
    shared: float = 0.5,
    layers: str = ALL,
    seed: int = 0,
    noise: float = 0.0,
) -> Model:
    """Returns a reward model whose feed-forwards are shared and routed experts.

        y = s E_shared(x) + (1 - s) sum_{i in top k} g_i(x) E_i(x)

    All experts begin as copies of the dense feed-forward, so that the rewards are the
    dense model's until it is trained, unless there is noise. The router begins at
    N(0, 0.02^2).

    >>> rm = tpmm.load_reward("my-reward-model")
    >>> tpmm.upcycle(rm, experts=4, top_k=2).config.experts.count
    4

    Args:
      rm: a dense reward model.
      experts: routed experts of a layer.
      top_k: how many of them a token passes through, at least 2.
      shared: s, the share of the expert that is always active.
      layers: "all", or numbers from 0 and ranges, such as "0,4-7".
      seed: of the routers and the noise.
      noise: standard deviation of what is added to each routed copy, in those of its
        matrix.

    Raises:
      BadInput: not a dense reward model, or a value out of range.

    Source: our reconstruction of UMM-RM (2512.00724); see docs/umm_rm.md.
    """
    config = UpcyclingConfig(
        count=experts, top_k=top_k, shared=shared, layers=layers, noise=noise
    )
    if experts == 0:
        raise BadInput("experts is 0; use at least 2 (4 is usual)")
    config.validate(lambda field: "experts" if field == "count" else field)
    dense = Source(
        rm.config,
        rm.tokenizer,
        rm.origin,
        lambda *_: rm.params,
        generation=rm.generation,
    )
    made = upcycled(dense, config, seed)
    decoder = replace(rm.decoder, config=made.config)
    return made.model(decoder, made.read(decoder, "float32"))
