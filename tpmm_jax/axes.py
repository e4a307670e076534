"""Glossary of axis letters and the type aliases built from them.

An array's name ends in its axes (``logits_BTV``); einsums use the same capitals.

    B  prompts (or rows)        R  responses of one prompt
    N  2: chosen, rejected      T, S  positions (S: keys that are attended to)
    L  layers                   K  checkpoints of a trajectory
    D  model width              F  feed-forward width
    V  vocabulary               H  query heads
    G  key/value heads          E  head width
    Z  rank of an adapter
"""

from typing import Any, TypeAlias

CHOSEN, REJECTED = 0, 1

# A nested dict of jax.Array (or of ShapeDtypeStruct, numpy arrays, scalars).
Params: TypeAlias = dict[str, Any]
