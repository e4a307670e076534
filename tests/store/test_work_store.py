"""Work checkpoints: exact states back, two kept, failures raised."""

import gc
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import CheckpointManager

from tpmm_jax.errors import BadInput, CorruptCheckpoint, StorageError
from tpmm_jax.store import WorkStore, tree_digest

# Orbax drops futures of reads that failed; nothing here waits for them.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


OPTIMIZERS = {
    "adamw": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(1e-2, 10)),
    ),
    "adafactor": optax.adafactor(1e-2),
    "sgd": optax.sgd(1e-2),
    "masked": optax.masked(
        optax.adam(1e-2),
        {"layers": True, "embed": True, "norm": False, "scale": False},
    ),
    "accumulated": optax.MultiSteps(optax.adam(1e-2), 2),
    "hyper": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
}


def make(lab, mesh, optimizer):
    params = lab.policy(0, mesh)
    return {
        "params": params,
        "opt": jax.jit(optimizer.init)(params),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8), 3),
        "step": 3,
        "empty": jnp.zeros((0, 4)),
        "count": np.int32(4),
        "flag": True,
        "rows": np.arange(5, dtype=np.int32),
    }


def abstract(state):
    def one(x):
        if isinstance(x, jax.Array):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        return x

    return jax.tree.map(one, state)


def plain(state):
    """Keys as their data, everything as NumPy."""

    def one(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.asarray(x)

    return jax.tree.map(one, state)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_states_come_back_bit_for_bit(tmp_path, lab, mesh_222, same_bits, name):
    state = make(lab, mesh_222, OPTIMIZERS[name])
    loop = {"position": 5, "generator": 2**127 + 1, "loss": 0.1 + 0.2}
    with WorkStore(tmp_path) as work:
        work.save(10, state, loop)
    with WorkStore(tmp_path) as work:
        assert work.latest() == 10
        found, found_loop = work.restore(10, abstract(state))
    assert found_loop == loop
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert same_bits(plain(found), plain(state))
    assert type(found["step"]) is int and found["flag"] is True
    assert isinstance(found["count"], np.int32)
    assert isinstance(found["rows"], np.ndarray)
    assert found["keys"].dtype == state["keys"].dtype
    jax.random.normal(found["key"])


def test_restore_on_another_mesh(tmp_path, lab, mesh_222):
    other = lab.mesh(1, 4, 2)
    with WorkStore(tmp_path) as work:
        work.save(0, {"p": lab.policy(0, mesh_222)}, {})
        work.wait()
        found, _ = work.restore(0, {"p": lab.target(other)})
    assert tree_digest(found["p"]) == tree_digest(lab.policy(0, mesh_222))
    assert found["p"]["embed"].sharding.mesh == other


def test_saved_is_what_the_arrays_held_at_the_call(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(1 << 20)
    rows = np.zeros(4, np.int32)
    with WorkStore(tmp_path) as work:
        for i in range(4):
            work.save(i, {"x": x, "rows": rows}, {"i": i})
            x = step(x)
            rows += 1
        work.wait()
        for i in (2, 3):
            target = {"x": abstract(x), "rows": rows}
            found, loop = work.restore(i, target)
            assert loop == {"i": i}
            assert float(found["x"].min()) == float(found["x"].max()) == i
            assert found["rows"].tolist() == [i] * 4


def test_the_newest_two_are_kept_and_clear_removes_all(tmp_path):
    with WorkStore(tmp_path) as work:
        assert work.latest() is None
        for i in range(5):
            work.save(3 * i, {"x": jnp.full(3, i)}, {})
        work.wait()
        assert work.steps() == [9, 12] and sorted(os.listdir(tmp_path)) == ["12", "9"]
        work.clear()
        assert work.steps() == [] and os.listdir(tmp_path) == []
        work.save(0, {"x": jnp.zeros(3)}, {})
    assert WorkStore(tmp_path).latest() == 0


def test_a_replay_replaces_what_followed(tmp_path):
    with WorkStore(tmp_path) as work:
        for i in (4, 8):
            work.save(i, {"x": jnp.full(3, i)}, {"first": True})
        work.save(8, {"x": jnp.full(3, 80)}, {"first": False})
        work.wait()
        assert work.steps() == [4, 8]
        assert work.restore(8, {"x": jnp.zeros(3, jnp.int32)})[1] == {"first": False}
        work.save(2, {"x": jnp.full(3, 2)}, {})
        work.wait()
        assert work.steps() == [2]


def test_stray_folders_do_not_count_and_are_swept(tmp_path):
    (tmp_path / "77").mkdir()
    (tmp_path / "78" / "state").mkdir(parents=True)
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    with WorkStore(tmp_path) as work:
        assert work.latest() is None
        work.save(3, {"x": jnp.zeros(3)}, {})
        work.wait()
        assert work.latest() == 3
    assert os.listdir(tmp_path) == ["3"]


@pytest.mark.parametrize(
    ("leaf", "word"),
    [
        (np.zeros(3), "float64"),
        (0.5, "float"),
        ("text", "str"),
        (2**40, "32 bits"),
        (np.array([object()]), "object"),
    ],
)
def test_what_cannot_be_stored_exactly_is_named(tmp_path, leaf, word):
    with WorkStore(tmp_path) as work, pytest.raises(BadInput) as error:
        work.save(0, {"a": {"b": leaf}}, {})
    assert word in str(error.value) and "['a']['b']" in str(error.value)
    assert os.listdir(tmp_path) == []


def test_wrong_targets_are_refused_by_name(tmp_path, lab, mesh_222):
    saved = make(lab, mesh_222, OPTIMIZERS["adamw"])
    with WorkStore(tmp_path) as work:
        work.save(0, saved, {})
        work.wait()
        other = abstract(make(lab, mesh_222, OPTIMIZERS["sgd"]))
        with pytest.raises(BadInput, match=r"\['opt'\].*missing"):
            work.restore(0, other)
        target = abstract(saved)
        target["params"]["norm"] = jnp.zeros(7, jnp.bfloat16)
        with pytest.raises(BadInput, match=r"'norm'.*bfloat16"):
            work.restore(0, target)
        with pytest.raises(BadInput, match="no step 1"):
            work.restore(1, target)
        with pytest.raises(BadInput, match="JSON"):
            work.save(1, saved, {"x": float("nan")})


def test_an_error_in_the_loop_is_raised_and_the_save_is_kept(tmp_path):
    with pytest.raises(ZeroDivisionError), WorkStore(tmp_path) as work:
        work.save(0, {"x": jnp.zeros(1 << 20)}, {})
        1 / 0  # noqa: B018
    assert WorkStore(tmp_path).latest() == 0


def failing(monkeypatch):
    wait = CheckpointManager.wait_until_finished

    def fail(self):
        wait(self)
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmore")

    monkeypatch.setattr(CheckpointManager, "wait_until_finished", fail)


def test_a_failure_in_the_background_is_raised_at_the_next_call(tmp_path, monkeypatch):
    x = {"x": jnp.zeros(3)}
    with WorkStore(tmp_path) as work:
        work.save(0, x, {})
        with monkeypatch.context() as patch:
            failing(patch)
            with pytest.raises(StorageError, match=r"/0 could not.*No space left"):
                work.save(1, x, {})
        work.save(1, x, {})
    assert WorkStore(tmp_path).latest() == 1


def test_the_first_error_is_shown_and_the_second_noted(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        with pytest.raises(ZeroDivisionError) as error, WorkStore(tmp_path) as work:
            work.save(0, {"x": jnp.zeros(3)}, {})
            failing(patch)
            1 / 0  # noqa: B018
        assert "No space left" in error.value.__notes__[0]
    with pytest.raises(StorageError), WorkStore(tmp_path) as work:
        work.save(1, {"x": jnp.zeros(3)}, {})
        failing(monkeypatch)


def test_harm_is_refused_and_the_older_step_offered(tmp_path):
    x = {"x": jax.random.normal(jax.random.key(0), (1000,))}
    with WorkStore(tmp_path) as work:
        for i in (1, 2):
            work.save(i, x, {"i": i})
        work.wait()
        outcomes = set()
        for path in sorted(p for p in (tmp_path / "2").rglob("*") if p.is_file()):
            before = path.read_bytes()
            flipped = bytearray(before)
            flipped[len(flipped) // 2] ^= 4
            for harm in (flipped, before[:-1], bytes(len(before)), None):
                path.write_bytes(harm) if harm is not None else path.unlink()
                try:
                    found, loop = work.restore(2, x)
                    assert loop == {"i": 2} and tree_digest(found) == tree_digest(x)
                except CorruptCheckpoint as error:
                    outcomes.add(
                        "offered" if "continues from step 1" in str(error) else ""
                    )
                except BadInput as error:
                    assert "it holds [1]" in str(error)
                path.write_bytes(before)
        assert "offered" in outcomes
        assert work.restore(2, x)[1] == {"i": 2}


def test_nothing_grows_over_many_saves(tmp_path):
    def held():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    with WorkStore(tmp_path) as work:
        for i in range(3):
            work.save(i, {"x": jnp.zeros(3)}, {})
        work.wait()
        before = held()
        for i in range(3, 23):
            work.save(i, {"x": jnp.zeros(3)}, {})
        work.wait()
        assert held() <= before + 4
