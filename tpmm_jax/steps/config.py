"""How an iteration is optimised."""

from dataclasses import dataclass
from typing import Literal

from jax.sharding import Mesh

from tpmm_jax.errors import BadInput
from tpmm_jax.mesh import fill


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One iteration's optimisation.

    Attributes:
      epochs: passes over the iteration's training pairs.
      batch_size: pairs per optimizer step.
      accumulation: micro-batches that a step is computed in; divides batch_size.
      learning_rate: peak; 5e-7 is usual at 2B to 8B parameters.
      schedule: "cosine" and "linear" fall to 0 over the iteration's steps.
      warmup_fraction: share of the steps over which the rate rises from 0.
      weight_decay: decoupled, on matrices only (as transformers' Trainer does).
      b1, b2, eps: of AdamW.
      max_grad_norm: global norm above which gradients are scaled down.
      checkpoint_every: steps between saves inside an iteration; 0: none.
      lengths: how many different lengths pairs are padded to, at most: pairs of like
        length share a batch, which is padded no further than it must be, and a program
        is compiled for each. 1: all to the longest, in batches drawn freely.
    """

    epochs: int = 1
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    checkpoint_every: int = 50
    lengths: int = 4

    @property
    def micro_batch(self) -> int:
        """Pairs that are computed at once."""
        return self.batch_size // self.accumulation

    @property
    def batch_sizes(self) -> dict[str, int]:
        """The rows of the batches that devices share, by what sets them."""
        return {"train.batch_size / train.accumulation": self.micro_batch}

    def filled(self, mesh: Mesh | None) -> int:
        """Returns the pairs of a step's arrays, those that are filled in included."""
        return self.accumulation * fill(mesh, self.micro_batch, sides=2)

    def validate(self) -> None:
        """Raises BadInput for a value out of range."""
        checks = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "accumulation": (
                self.accumulation >= 1 and self.batch_size % self.accumulation == 0,
                f"a divisor of train.batch_size = {self.batch_size}",
            ),
            "learning_rate": (
                0 < self.learning_rate < float("inf"),
                "a positive, finite number",
            ),
            "warmup_fraction": (0 <= self.warmup_fraction < 1, "in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "b1": (0 <= self.b1 < 1, "in [0, 1)"),
            "b2": (0 <= self.b2 < 1, "in [0, 1)"),
            "eps": (self.eps > 0, "positive"),
            "max_grad_norm": (self.max_grad_norm > 0, "positive"),
            "checkpoint_every": (self.checkpoint_every >= 0, "0 (never) or more"),
            "lengths": (self.lengths >= 1, "at least 1"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise BadInput(f"train.{name} is {getattr(self, name)}; use {wanted}")
