"""Accelerators: what one device computes, holds and moves (vendors' data sheets)."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device, as JAX counts them.

    Attributes:
      kind: how its device_kind begins.
      flops: bfloat16 products, FLOP/s, dense.
      flops_32: float32 products: TPUs make them of six bfloat16 ones.
      memory: bytes that a program may use.
      bandwidth: of its memory, bytes/s.
      link: to other devices of its slice or node, bytes/s in one direction.
    """

    kind: str
    flops: float
    flops_32: float
    memory: int
    bandwidth: float
    link: float

    def peak(self, dtype: str) -> float:
        """Returns FLOP/s of products in a compute dtype."""
        return self.flops if dtype == "bfloat16" else self.flops_32


# TPUs: cloud.google.com/tpu/docs, halves of the bidirectional link, and of the memory
# what the compiler lets a program use. GPUs: NVIDIA's data sheets of the SXM cards,
# halves of NVLink, and 92 % of the memory (XLA_PYTHON_CLIENT_MEM_FRACTION=.92).
CHIPS = {
    "v5e": Chip("TPU v5 lite", 197e12, 197e12 / 6, int(15.75 * GIB), 819e9, 200e9),
    "v5p": Chip("TPU v5", 459e12, 459e12 / 6, int(95.74 * GIB), 2765e9, 600e9),
    "v6e": Chip("TPU v6 lite", 918e12, 918e12 / 6, int(31.25 * GIB), 1638e9, 400e9),
    "v4": Chip("TPU v4", 275e12, 275e12 / 6, 32 * GIB, 1228e9, 300e9),
    "a100": Chip("NVIDIA A100", 312e12, 19.5e12, int(0.92 * 80e9), 2039e9, 300e9),
    "h100": Chip("NVIDIA H100", 989e12, 67e12, int(0.92 * 80e9), 3350e9, 450e9),
    "h200": Chip("NVIDIA H200", 989e12, 67e12, int(0.92 * 141e9), 4800e9, 450e9),
}
# Those that the TPU compiler knows as Cloud has them, one device a chip.
TPUS = ("v5e", "v5p", "v6e")
GPUS = ("a100", "h100", "h200")


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip that JAX calls so, or None."""
    # The longest first: "TPU v5" begins "TPU v5 lite" too.
    for chip in sorted(CHIPS.values(), key=lambda chip: -len(chip.kind)):
        if device_kind.startswith(chip.kind):
            return chip
    return None
