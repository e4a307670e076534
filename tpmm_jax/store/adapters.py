"""Steps stored as low-rank adapters over a base that is kept elsewhere.

    stored = A, B of each adapted matrix,    restored = W + s A B

The base is never copied. Each step pins it by the fingerprint of every leaf; it is
read from its source whenever a policy is wanted, and compared. A reward model's head is
stored whole in each step, and the one under it, which may be drawn, counts for nothing:
another device or version of jax draws other last bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from tpmm_jax.axes import Params
from tpmm_jax.errors import BadInput
from tpmm_jax.models import LoraConfig
from tpmm_jax.models.lora import WHOLE, merge_adapters
from tpmm_jax.store import manager, trees
from tpmm_jax.store.fingerprint import changed_leaf, digest, fingerprint, layout

# What decides A B's scale and place; dropout and such are of the training alone.
SHAPING = ("rank", "alpha", "targets", "rslora")


@dataclass(frozen=True)
class Base:
    """The fixed weights under a trajectory's adapters.

    Attributes:
      read: returns them in float32, on the shardings that policies are wanted on.
      name: where they are read from, for messages.
      advice: what to do if they are not there or not the same.
    """

    read: Callable[[], Params]
    name: str
    advice: str

    def checked(self, pinned: dict[str, Any]) -> Params:
        """Returns the weights once they are known to be the pinned ones.

        Raises:
          BadInput: they differ; names the first leaf that does.
        """
        try:
            params = self.read()
        except BadInput as error:
            raise BadInput(
                f"{error}\nThe trajectory holds adapters only, and this is the base "
                f"they belong to; {self.advice}"
            ) from None
        flat = trees.flatten_params(params)
        came = f"base {self.name}"
        trees.check_same(flat, pinned["layout"], came=came, against="step 0")
        if changed := changed_leaf(flat, _fixed(pinned["fingerprints"])):
            name, now = changed
            raise BadInput(
                f"leaf {name} of the base {self.name} has changed since the run began "
                f"(fingerprint {now}, it was {pinned['fingerprints'][name]}): the "
                f"trajectory's adapters belong to other weights; {self.advice}"
            )
        return params


def pin(params: Params) -> dict[str, Any]:
    """Returns what tells these weights from all others, as JSON."""
    flat = trees.flatten_params(params)
    return {"fingerprints": fingerprint(_fixed(flat)), "layout": layout(flat)}


def _fixed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is not replaced by what a step stores whole."""
    return {name: x for name, x in flat.items() if name not in WHOLE}


def describe(config: LoraConfig) -> dict[str, Any]:
    """Returns what a restore needs of the config, as JSON."""
    return {name: value for name, value in asdict(config).items() if name in SHAPING}


def step_digest(saved: dict[str, Any]) -> str:
    """The digest of what a restore gives; of adapters, their base and their scale.

    Args:
      saved: the step's integrity item.
    """
    extra = saved["layout"]
    if saved.get("storage") == "lora":
        base = digest(saved["base"]["fingerprints"], saved["base"]["layout"])
        extra = {"layout": extra, "base": base, "lora": saved["lora"]}
    return digest(saved["fingerprints"], extra)


def wanted_adapters(
    saved: dict[str, Any], target: dict[str, Any]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a target for the adapters of some leaves: replicated where they lie.

    Args:
      target: those leaves.
    """
    first = next(iter(target.values()))
    where = getattr(first, "sharding", None) or manager.default_sharding()
    if isinstance(where, NamedSharding):
        where = NamedSharding(where.mesh, PartitionSpec())
    return {
        name: jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=where)
        for name, (dtype, shape) in saved["layout"].items()
        # A matrix's name leads those of its "a" and "b".
        if name in target or name.rpartition("/")[0] in target
    }


def join(
    base: dict[str, Any],
    flat: dict[str, Any],
    saved: dict[str, Any],
    target: dict[str, Any],
) -> dict[str, Any]:
    """Returns the policy by name, on the target's shardings, where it names any.

    Args:
      base, flat: the target's leaves, and their adapters.
    """
    config = LoraConfig(**saved["lora"])
    merged = merge_adapters(trees.nest(base), trees.nest(flat), config)
    policy = trees.flatten_params(merged)
    return {
        name: jax.device_put(leaf, getattr(target[name], "sharding", None))
        for name, leaf in policy.items()
    }
