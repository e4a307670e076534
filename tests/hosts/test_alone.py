"""What process 0 does while it acts without the others."""

import types

import jax
import pytest

from tpmm_jax.hosts import acts_alone, meeting
from tpmm_jax.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize("alone", [0, 1])
def test_a_mesh_made_alone_is_of_its_own_devices(
    monkeypatch: pytest.MonkeyPatch, alone: int
) -> None:
    own = jax.devices()[:2]
    monkeypatch.setattr(meeting, "_group", types.SimpleNamespace(alone=alone))
    monkeypatch.setattr(jax, "local_devices", lambda: own)
    assert acts_alone() == bool(alone)
    wanted = own if alone else jax.devices()
    assert list(make_mesh(MeshConfig()).devices.flat) == wanted
    assert list(make_mesh(MeshConfig(), wanted[:1]).devices.flat) == wanted[:1]
