"""Harm done to a step's files is refused, or the bits are the right ones."""

import collections
import random
import shutil

import jax
import pytest

from tpmm_jax.errors import CorruptCheckpoint
from tpmm_jax.store import Trajectory, tree_digest
from tpmm_jax.store import trajectory as module

# Orbax drops futures of reads that failed; nothing here waits for them.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, lab, mesh_222):
    folder = tmp_path_factory.mktemp("saved") / "t"
    with Trajectory(folder, storage="bfloat16_delta") as trajectory:
        for k in range(2):
            trajectory.append(k, lab.policy(k, mesh_222, width=1024), {"k": k})
    return folder


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def flip(path, rng):
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def harm(folder, target, how, path):
    """What a restore says after a file was changed; the file is put back."""
    before = path.read_bytes()
    how(path)
    try:
        with Trajectory(folder, read_only=True) as trajectory:
            found = trajectory.restore(1, target)
            if tree_digest(found) != trajectory.digest(1) or trajectory.meta(1) != {
                "k": 1
            }:
                return "silent"
            return "harmless"
    except CorruptCheckpoint as error:
        assert "step " in str(error) and str(folder) in str(error)
        return "refused"
    finally:
        path.write_bytes(before)


def flips(folder, target, count, seed):
    rng = random.Random(seed)
    outcomes = collections.Counter()
    files = [p for step in ("0", "1") for p in files_of(folder / step)]
    sizes = [p.stat().st_size for p in files]
    for path in rng.choices(files, weights=sizes, k=count):
        outcomes[harm(folder, target, lambda p: flip(p, rng), path)] += 1
    print(f"bit flips, seed {seed}: {dict(outcomes)}")
    return outcomes


def test_30_bit_flips_none_silent(saved, lab, mesh_222):
    outcomes = flips(saved, lab.target(mesh_222, width=1024), 30, seed=0)
    assert outcomes["silent"] == 0 and outcomes["refused"] >= 24


@pytest.mark.slow
def test_400_bit_flips_none_silent(saved, lab, mesh_222):
    outcomes = flips(saved, lab.target(mesh_222, width=1024), 400, seed=1)
    assert outcomes["silent"] == 0 and outcomes["refused"] >= 350


def test_every_file_truncated_or_deleted_is_refused_by_name(saved, lab, mesh_222):
    target = lab.target(mesh_222, width=1024)
    for path in files_of(saved / "1"):
        for how in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1])):
            before = path.read_bytes()
            how(path)
            with Trajectory(saved, read_only=True) as trajectory:
                assert trajectory.steps() == [0]
                with pytest.raises(CorruptCheckpoint, match=path.name) as error:
                    trajectory.restore(1, target)
                assert "step 1" in str(error.value)
            path.write_bytes(before)


def test_every_file_zeroed_is_refused_or_harmless(saved, lab, mesh_222):
    target = lab.target(mesh_222, width=1024)
    zero = lambda p: p.write_bytes(bytes(p.stat().st_size))  # noqa: E731
    outcomes = {p.name: harm(saved, target, zero, p) for p in files_of(saved / "1")}
    assert "silent" not in outcomes.values()
    assert outcomes["_METADATA"] == "refused"


def test_harm_to_step_0_is_told_as_step_0(saved, lab, mesh_222, tmp_path):
    shutil.copytree(saved, tmp_path / "t")
    shutil.rmtree(tmp_path / "t" / "0" / "policy" / "d")
    trajectory = Trajectory(tmp_path / "t", read_only=True)
    with pytest.raises(CorruptCheckpoint, match="step 0"):
        trajectory.restore(1, lab.target(mesh_222, width=1024))


def test_the_leaf_is_named(lab, mesh_222, tmp_path, monkeypatch):
    """A leaf swapped for another of its size and shape, as no file check can see."""
    with Trajectory(tmp_path / "t") as trajectory:
        params = lab.policy(0, mesh_222)
        trajectory.append(0, params, {})
        other = params | {"norm": params["norm"] + 1}
        with Trajectory(tmp_path / "u") as donor:
            donor.append(0, other, {})
        shutil.rmtree(tmp_path / "t" / "0" / "policy")
        shutil.copytree(
            tmp_path / "u" / "0" / "policy", tmp_path / "t" / "0" / "policy"
        )
        monkeypatch.setattr(module, "refuse_fault", lambda *a: None)
        with pytest.raises(CorruptCheckpoint, match="step 0, leaf norm"):
            trajectory.restore(0, lab.target(mesh_222))


def test_a_lack_of_memory_is_not_called_corruption(saved, lab, mesh_222, monkeypatch):
    def fail(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", fail)
    trajectory = Trajectory(saved, read_only=True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        trajectory.restore(0, lab.target(mesh_222, width=1024))
