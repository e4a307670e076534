"""Every case of TRL's losses: value and gradient in float64 and float32, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trl_cases

from tpmm_jax.losses import LOSSES, pair_metrics

INPUTS, CASES = trl_cases.load()
# Every name but those that TRL has not.
OURS_ALONE = {"cdpo", "beta_dpo", "dr_dpo", "madpo"}


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_value_and_gradient(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        loss, grad, _, loss_B = trl_cases.evaluate(INPUTS, case, dtype)
    assert loss.dtype == grad.dtype == dtype
    exact = dtype == "float64" and case["loss_f64"] is not None

    def bar(value):
        return 1e-6 * max(1.0, abs(value)) if exact else 1e-5 * abs(value)

    wanted = case["loss_f64"] if exact else case["loss"]
    assert abs(float(loss) - wanted) <= bar(wanted)
    if (error := trl_cases.gradient_error(INPUTS, case, grad)) is not None:
        assert error[0] <= bar(error[1])
    if "losses" in case:
        np.testing.assert_allclose(loss_B, case["losses"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_metrics(case):
    config = trl_cases.ours(case)
    _, _, logps, _ = trl_cases.evaluate(INPUTS, case, "float32")
    found = pair_metrics(logps, config.objective())
    for name, wanted in case["metrics"].items():
        mean = float(jnp.mean(found[name]))
        assert abs(mean - wanted) <= 1e-5 * max(1.0, abs(wanted)), name


def test_the_cases_are_all_there_and_configs_that_a_run_accepts():
    assert len(CASES) == 81
    for case in CASES:
        config = trl_cases.ours(case)
        # Its beta of 0.1 is TRL's for sums of log-probs.
        if config.names[0] not in ("simpo", "alphapo"):
            config.validate()
    seen = {name for case in CASES for name in trl_cases.ours(case).names}
    assert seen == set(LOSSES) - OURS_ALONE
