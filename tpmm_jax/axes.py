"""Glossary of axis letters and the type aliases built from them.

An array's name ends in its axes (``logits_BTV``); einsums use the same capitals.

    B  rows of a batch, prompts    R  responses (samples) of one prompt
    P  pairs of a set              N  2: chosen, rejected
    T  positions                   S  positions (slots of keys) that are attended to
    L  layers                      K  checkpoints of a trajectory
    D  model width                 F  feed-forward width
    X  routed experts of a layer   A  assignments of tokens to experts
    V  vocabulary                  C  parts of the vocabulary, one per tensor shard
    H  query heads                 G  key/value heads
    M  query heads per key head    E  head width
    Z  rank of an adapter          J  resamples of a bootstrap
"""

from typing import Any, TypeAlias

CHOSEN, REJECTED = 0, 1

# A nested dict of jax.Array (or of ShapeDtypeStruct, numpy arrays, scalars).
Params: TypeAlias = dict[str, Any]
