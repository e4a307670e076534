"""Scorers that do what may go wrong, one thing each."""

import os
import time

import jax
import numpy as np
import tiny_run

from tpmm_jax.mesh import MeshConfig, make_mesh, put_batch


def raises(prompts, responses):
    """Raises where it is asked about answers of a policy."""
    if "This is response" in responses[0][0]:
        return tiny_run.score(prompts, responses)
    raise RuntimeError("the scorer's database is gone")


def slow(prompts, responses):
    """Takes longer, once, than a collective of the CPU would wait."""
    if "This is response" not in responses[0][0]:
        time.sleep(float(os.environ.pop("SLOW", "0")))
    return tiny_run.score(prompts, responses)


def on_a_mesh(prompts, responses):
    """Computes on its own devices, as the others would not take part."""
    mesh = make_mesh(MeshConfig())
    assert list(mesh.devices.flat) == jax.local_devices()
    scores_BR = np.asarray(tiny_run.score(prompts, responses), np.float32)
    return np.asarray(jax.jit(lambda x: x + 0)(put_batch(scores_BR, mesh)))
