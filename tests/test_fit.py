"""The training routine keeps its order: start, log the step before, save."""

import pytest

from tpmm_jax.steps import TrainState, fit


def run(first, steps, **options):
    """What fit did, in order, from a step function that only counts."""
    done = []

    def step_fn(state, batch, rate):
        done.append(f"start {batch} at {rate}")
        return state._replace(step=state.step + 1), {"loss": float(state.step)}

    def log(state, step, metrics):
        assert metrics == {"loss": float(step)}
        done.append(f"log {step}, state {state.step}")

    state = fit(
        TrainState({}, (), first), step_fn, lambda step: f"batch {step}", steps,
        learning_rate=lambda step: step / 10, log=log,
        **{"save": lambda state: done.append(f"save {state.step}"), **options},
    )  # fmt: skip
    return state, done


def test_metrics_are_logged_a_step_late_and_all_of_them():
    state, done = run(0, 3)
    assert done == [
        "start batch 0 at 0.0",
        "start batch 1 at 0.1",
        "log 0, state 2",
        "start batch 2 at 0.2",
        "log 1, state 3",
        "log 2, state 3",
    ]
    assert state.step == 3


def test_every_row_is_there_before_a_save_and_the_last_state_is_not_saved():
    _, done = run(0, 4, save_every=2)
    assert done == [
        "start batch 0 at 0.0",
        "start batch 1 at 0.1",
        "log 0, state 2",
        "log 1, state 2",
        "save 2",
        "start batch 2 at 0.2",
        "start batch 3 at 0.3",
        "log 2, state 4",
        "log 3, state 4",
    ]


def test_it_goes_on_from_the_state_and_in_segments_as_in_one_go():
    def started(done):
        return [line for line in done if line.startswith("start")]

    whole = run(0, 5)[1]
    state, first = run(0, 2)
    assert started(first) + started(run(state.step, 5)[1]) == started(whole)
    assert run(5, 5) == (TrainState({}, (), 5), [])


def test_who_asks_to_stop_gets_a_save_between_two_steps():
    class End(Exception):
        pass

    saved = []

    def save(state):
        saved.append(state.step)
        raise End

    asked = iter([False, True])
    with pytest.raises(End):
        run(0, 9, save=save, stop=lambda: next(asked))
    assert saved == [2]


def test_without_a_save_nothing_is_saved():
    assert not [
        line for line in run(0, 3, save=None, save_every=1)[1] if "save" in line
    ]
