"""Dense reward models as mixtures of experts."""

from dataclasses import asdict, replace

import jax

from tpmm_jax.errors import BadInput
from tpmm_jax.models.upcycling import ALL, UpcyclingConfig, upcycle_params
from tpmm_jax.weights.source import Model


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
    made = config.of(rm.config, str(rm.origin.get("source", "the model")))
    decoder = replace(rm.decoder, config=made)
    params = upcycle_params(rm.params, made, noise, jax.random.key(seed))
    where = jax.tree.map(lambda x: x.sharding, decoder.abstract_params())
    if decoder.mesh is not None:
        params = jax.device_put(params, where)
    origin = rm.origin | {"experts": asdict(config), "experts_seed": seed}
    return replace(rm, decoder=decoder, params=params, origin=origin)
