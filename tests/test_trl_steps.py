"""TRL's training replayed through the jitted step."""

import numpy as np
import pytest
import trl_replay

# Each compiles a step of its own; their values and gradients are losses/'s too.
SLOW = ("f32_hinge", "f32_ipo", "f32_sigmoid_sft")


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(r, marks=pytest.mark.slow if r in SLOW else ())
        for r in trl_replay.RUNS
    ],
)
def test_twenty_steps_of_trl(run):
    for name, error in trl_replay.errors(run).items():
        assert error <= trl_replay.TOLERANCE[name], name
    assert int(trl_replay.replay(run)[0].step) == 20


def test_reference_log_probs_are_trls():
    _, _, batches, expected = trl_replay.load()
    for batch, wanted in zip(batches, expected["runs"]["f32"]["steps"]):
        rows = np.asarray(wanted["ref_logps"]).reshape(2, 8).T
        np.testing.assert_allclose(batch["reference_BN"], rows, rtol=0, atol=5e-4)
