"""A dense reward model as a mixture of experts that begin as its feed-forwards.

Source: sparse upcycling (2212.05055); a shared expert beside them is our reconstruction
of UMM-RM (2512.00724).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput
from tpmm_jax.models.config import LIMITS, ExpertsConfig, ModelConfig
from tpmm_jax.models.experts import ROUTER_STD

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class UpcyclingConfig:
    """What a dense model's feed-forwards become.

    Attributes:
      count: routed experts of a layer, copies of its feed-forward; 0: none, the model
        stays dense. 4 to 8 is usual.
      top_k: how many of them a token passes through; at least 2, since with one its
        gate is 1 and the router learns nothing of preferences.
      shared: share s of the shared expert, another copy, which is always active.
      layers: which layers: "all", or numbers from 0 and ranges, such as "0,4-7".
      noise: what is added to each routed copy, in standard deviations of the matrix;
        with 0 the model's rewards are the dense one's.
    """

    count: int = 0
    top_k: int = 2
    shared: float = 0.5
    layers: str = ALL
    noise: float = 0.0

    def validate(self, name: Callable[[str], str] = "experts.{}".format) -> None:
        """Raises BadInput for a value out of range, or one that nothing would read.

        Args:
          name: what a field is called in messages.
        """
        if self.count == 0:
            for f in fields(self):
                if getattr(self, f.name) != f.default:
                    raise BadInput(
                        f"{name(f.name)} is {getattr(self, f.name)!r}, but there are "
                        f"no experts: {name('count')} is 0; set it (4 is usual)"
                    )
            return
        if not 2 <= self.count <= LIMITS["expert_count"]:
            raise BadInput(
                f"{name('count')} is {self.count}; use 2 to {LIMITS['expert_count']:,} "
                "experts, or 0: the model stays dense"
            )
        if not 2 <= self.top_k <= self.count:
            raise BadInput(
                f"{name('top_k')} is {self.top_k}; use 2 to {self.count}, the number "
                "of experts (with 1 the gate is always 1, and the router learns "
                "nothing of preferences)"
            )
        if not 0 < self.shared < 1:
            raise BadInput(f"{name('shared')} is {self.shared}; use a number in (0, 1)")
        if not 0 <= self.noise < math.inf:
            raise BadInput(f"{name('noise')} is {self.noise}; use 0 or more")

    def of(self, dense: ModelConfig, source: str) -> ModelConfig:
        """Returns the architecture that a dense reward model becomes.

        Raises:
          BadInput: it has experts already, is no reward model, or has other layers.
        """
        if dense.experts is not None:
            raise BadInput(
                f"{source} is a mixture of experts already; wanted a dense model"
            )
        if dense.output != "reward":
            raise BadInput(
                f"{source} is a causal language model; only reward models are "
                "upcycled. Train one with tpmm train_reward, which can upcycle it on "
                "the way (experts.count)"
            )
        if dense.mlp_bias:
            raise BadInput(
                f"{source} has biases in its feed-forwards, which routed experts here "
                "have not: its copies would be other functions"
            )
        layers = read_layers(self.layers, dense.num_layers)
        has = tuple(number in layers for number in range(dense.num_layers))
        experts = ExpertsConfig(
            count=self.count,
            top_k=self.top_k,
            shared=self.shared,
            layers=() if all(has) else has,
        )
        return dataclasses.replace(dense, experts=experts)


def read_layers(text: str, num_layers: int) -> set[int]:
    """Returns the layers that a text such as "all" or "0,4-7" names.

    Raises:
      BadInput: not numbers, or not those of layers.

    >>> sorted(read_layers("0,4-6", 8))
    [0, 4, 5, 6]
    """
    if text.strip() == ALL:
        return set(range(num_layers))
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise BadInput(
                f"layers {text!r}: {part.strip()!r} is neither a number nor a range; "
                'use "all", or numbers and ranges such as "0,4-7"'
            )
        some = range(int(first), int(last or first) + 1)
        if not some or some[-1] >= num_layers:
            raise BadInput(
                f"layers {text!r}: {part.strip()!r} is not among the layers 0 to "
                f"{num_layers - 1}"
            )
        found.update(some)
    return found


@functools.partial(jax.jit, static_argnames=("config", "noise"))
def upcycle_params(
    params: Params, config: ModelConfig, noise: float, key: jax.Array
) -> Params:
    """Returns a dense model's parameters with routers and copies of its feed-forwards.

    Args:
      params: of the dense model.
      config: what it becomes.
      noise: see UpcyclingConfig.
      key: of the routers, N(0, 0.02^2), and of the noise.
    """
    experts = config.experts
    assert experts is not None
    places = jnp.asarray(experts.places(config.num_layers))
    shape = (len(places), config.width, experts.count)
    routers = ROUTER_STD * jax.random.normal(jax.random.fold_in(key, 0), shape)
    dtype = params["score"].dtype
    routed: Params = {"router": routers.astype(dtype)}
    for number, name in enumerate(("gate", "up", "down"), start=1):
        w = jnp.take(params["layers"]["mlp"][name], places, axis=0)
        copies = jnp.repeat(w[:, None], experts.count, axis=1)
        if noise:
            std = jnp.std(w.astype(jnp.float32), axis=(1, 2))[:, None, None, None]
            own = jax.random.fold_in(key, number)
            drawn = jax.random.normal(own, copies.shape, jnp.float32)
            copies = (copies + noise * std * drawn).astype(dtype)
        routed[name] = copies
    return params | {"experts": routed}
