"""The trajectory: what is appended is what comes back, or an error with a name."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tpmm_jax.errors import BadInput, CorruptCheckpoint, StorageError
from tpmm_jax.store import Trajectory, tree_digest
from tpmm_jax.store.deltas import _difference, _sum
from tpmm_jax.store.fingerprint import fingerprint

STORAGES = ("float32", "bfloat16_delta")


@pytest.fixture(scope="module", params=STORAGES)
def three(request, tmp_path_factory, lab, mesh_222):
    """A folder with three committed steps, and their digests."""
    folder = tmp_path_factory.mktemp("three") / request.param
    with Trajectory(folder, storage=request.param) as trajectory:
        digests = [
            trajectory.append(k, lab.policy(k, mesh_222), {"k": k, "w": [0.25] * k})
            for k in range(3)
        ]
    return folder, request.param, digests


@pytest.fixture
def copied(three, tmp_path):
    """A copy of it, to be harmed."""
    shutil.copytree(three[0], tmp_path / "t")
    return tmp_path / "t"


@pytest.mark.parametrize(
    ("sizes", "devices"),
    [((2, 2, 2), 8), ((1, 8, 1), 8), ((8, 1, 1), 8), ((1, 2, 1), 2), ((1, 1, 1), 1)],
)
def test_restore_is_bit_equal_on_every_mesh(three, lab, same_bits, sizes, devices):
    folder, storage, digests = three
    mesh = lab.mesh(*sizes, devices=devices)
    target = lab.target(mesh)
    with Trajectory(folder, read_only=True) as trajectory:
        for k in range(3):
            found = trajectory.restore(k, target)
            assert tree_digest(found) == digests[k] == trajectory.digest(k)
            where = jax.tree.map(lambda x: x.sharding, found)
            assert where == jax.tree.map(lambda x: x.sharding, target)
            if storage == "float32":
                assert same_bits(found, lab.policy(k, mesh))


def test_a_part_is_some_leaves_of_the_policy(three, lab, mesh_222, same_bits):
    target = lab.target(mesh_222)
    part = {"layers": target["layers"], "scale": target["scale"]}
    with Trajectory(three[0], read_only=True) as trajectory:
        for k in range(3):
            whole = trajectory.restore(k, target)
            wanted = {name: whole[name] for name in part}
            found = trajectory.restore_part(k, part)
            assert same_bits(found, wanted)
            first = trajectory.restore(0, target)
            assert same_bits(trajectory.restore_part(k, part, first), wanted)
            assert same_bits(first, trajectory.restore(0, target))
            where = jax.tree.map(lambda x: x.sharding, found)
            assert where == jax.tree.map(lambda x: x.sharding, part)
        near = "leaf layers/down of the target is not in .* names are layers/up"
        with pytest.raises(BadInput, match=near):
            trajectory.restore_part(2, {"layers": {"down": target["layers"]["up"]}})
        small = jax.ShapeDtypeStruct((3, 16, 9), jnp.float32)
        with pytest.raises(BadInput, match=r"leaf layers/up: the target has shape"):
            trajectory.restore_part(2, {"layers": {"up": small}})


def test_a_changed_leaf_of_a_part_is_refused_by_name(three, lab, mesh_222):
    target = lab.target(mesh_222)
    with Trajectory(three[0], read_only=True) as trajectory:
        real = trajectory._integrity

        def changed(entry):
            saved = real(entry)
            if entry.step == 2:
                saved["fingerprints"]["layers/up"][0] ^= 1
            return saved

        trajectory._integrity = changed
        trajectory.restore_part(2, {"embed": target["embed"]})
        with pytest.raises(CorruptCheckpoint, match="step 2, leaf layers/up"):
            trajectory.restore_part(2, {"layers": target["layers"]})


@pytest.mark.parametrize("step", [0, 2])
def test_a_leaf_that_orbax_lost_is_damage(copied, lab, mesh_222, step):
    path = copied / str(step) / "policy" / "_METADATA"
    path.write_text(path.read_text().replace("embed", "embee"))
    target = lab.target(mesh_222)
    with Trajectory(copied, read_only=True) as trajectory:
        for restore in (trajectory.restore, trajectory.restore_part):
            with pytest.raises(CorruptCheckpoint, match=f"step {step}, leaf embed"):
                restore(step, target)
        trajectory.restore_part(step, {"norm": target["norm"]})


def test_deltas_are_the_documented_formula(three, lab, mesh_222, same_bits):
    folder, storage, _ = three
    if storage == "float32":
        pytest.skip("stores no deltas")
    first = jax.device_get(lab.policy(0, mesh_222))
    with Trajectory(folder) as trajectory:
        assert same_bits(trajectory.restore(0, lab.target(mesh_222)), first)
        found = jax.device_get(trajectory.restore(2, lab.target(mesh_222)))
    last = jax.device_get(lab.policy(2, mesh_222))
    stored = jax.tree.map(
        lambda a, b: np.subtract(a, b).astype(jnp.bfloat16), last, first
    )
    expected = jax.tree.map(lambda a, d: np.add(a, d.astype(np.float32)), first, stored)
    assert same_bits(found, expected)
    for a, b, c in zip(*map(jax.tree.leaves, (found, last, first))):
        rounding = 2.0**-8 * np.abs(b - c) + 2.0**-23 * np.abs(b)
        assert np.all(np.abs(a - b) <= rounding)


def test_a_delta_of_zero_keeps_every_bit():
    x = jnp.array([0.0, -0.0, 1e-45, -1e-45, 3e-39, jnp.pi, -1e38], jnp.float32)
    kept = jax.jit(_sum)(x, _difference(x, x))
    assert np.asarray(kept).tobytes() == np.asarray(x).tobytes()


def test_deltas_take_half_the_bytes(tmp_path, lab, mesh_222):
    sizes = {}
    for storage in STORAGES:
        with Trajectory(tmp_path / storage, storage=storage) as trajectory:
            for k in range(2):
                trajectory.append(k, lab.policy(k, mesh_222, width=8192), {})
        step = tmp_path / storage / "1" / "policy"
        sizes[storage] = sum(f.stat().st_size for f in step.rglob("*") if f.is_file())
    assert sizes["bfloat16_delta"] < 0.55 * sizes["float32"]


def test_leaves_that_are_not_float32_are_stored_as_they_are(tmp_path, same_bits):
    def tree(k):
        return {"h": jnp.full((4,), 0.1 * k, jnp.bfloat16), "n": jnp.int32(k)}

    with Trajectory(tmp_path, storage="bfloat16_delta") as trajectory:
        for k in range(2):
            trajectory.append(k, tree(k), {})
        assert same_bits(trajectory.restore(1, tree(0)), tree(1))


def test_meta_and_abstract(three, lab, mesh_222):
    with Trajectory(three[0], read_only=True) as trajectory:
        assert [trajectory.meta(k) for k in range(3)] == [
            {"k": k, "w": [0.25] * k} for k in range(3)
        ]
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), trajectory.abstract(1))
        target = lab.target(mesh_222)
        assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), target)


def test_a_target_without_sharding_goes_to_one_device(three, lab, mesh_222):
    with Trajectory(three[0], read_only=True) as trajectory:
        found = trajectory.restore(1, trajectory.abstract(1))
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(found))
    assert tree_digest(found) == three[2][1]


def test_empty_subtrees_of_a_target_are_kept(three, lab, mesh_222):
    target = lab.target(mesh_222) | {"nothing": {}}
    with Trajectory(three[0], read_only=True) as trajectory:
        assert trajectory.restore(0, target)["nothing"] == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(norm=_like(t["norm"], dtype=jnp.bfloat16)),
         ["norm", "bfloat16", "float32"]),
        (lambda t: t.update(norm=_like(t["norm"], shape=(8,))), ["norm", "[8]", "[7]"]),
        (lambda t: t.update(more=t["norm"]), ["leaf more", "not in step 1"]),
        (lambda t: t.pop("scale"), ["leaf scale", "missing"]),
        (lambda t: t["layers"].update(wup=t["layers"].pop("up")),
         ["layers/"]),
        (lambda t: t.update(norm=[t["norm"]]), ["norm", "nested dict"]),
    ],
    ids=["dtype", "shape", "extra", "missing", "renamed", "list"],
)  # fmt: skip
def test_a_wrong_target_is_refused_by_name(three, lab, mesh_222, change, words):
    target = lab.target(mesh_222)
    change(target)
    with Trajectory(three[0]) as trajectory, pytest.raises(BadInput) as error:
        trajectory.restore(1, target)
    assert all(word in str(error.value) for word in words), error.value


def _like(x, shape=None, dtype=None):
    return jax.ShapeDtypeStruct(shape or x.shape, dtype or x.dtype)


def test_an_abstract_mesh_is_refused(three, lab, mesh_222):
    target = lab.target(mesh_222)
    where = NamedSharding(mesh_222.abstract_mesh, PartitionSpec())
    target["norm"] = jax.ShapeDtypeStruct((7,), jnp.float32, sharding=where)
    with Trajectory(three[0]) as t, pytest.raises(BadInput, match=r"norm.*no devices"):
        t.restore(0, target)


@pytest.mark.parametrize("step", [0, 2, 4, -1])
def test_only_the_next_step_can_be_appended(three, lab, mesh_222, step):
    before = _everything(three[0])
    with Trajectory(three[0]) as t, pytest.raises(BadInput, match="the next one is 3"):
        t.append(step, lab.policy(3, mesh_222), {})
    assert _everything(three[0]) == before


def _everything(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("params", "meta", "word"),
    [
        ({"a": jnp.zeros((0, 3))}, {}, "leaf a"),
        ({"a": np.zeros(3)}, {}, "float64"),
        ({"a/b": jnp.zeros(3)}, {}, "a/b"),
        ({"a": [jnp.zeros(3)]}, {}, "nested dict"),
        ({}, {}, "no arrays"),
        ({"a": jax.random.key(0)}, {}, "leaf a"),
        ({"a": jnp.zeros(3)}, {"x": float("nan")}, "JSON"),
        ({"a": jnp.zeros(3)}, {"x": object()}, "JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, params, meta, word):
    with Trajectory(tmp_path) as trajectory, pytest.raises(BadInput, match=word):
        trajectory.append(0, params, meta)
    assert os.listdir(tmp_path) == []


def test_another_architecture_is_refused(copied, lab, mesh_222):
    with Trajectory(copied) as trajectory, pytest.raises(BadInput, match="layers/up"):
        trajectory.append(3, lab.policy(3, mesh_222, width=32), {})


def test_a_diverged_policy_has_no_delta(tmp_path):
    with Trajectory(tmp_path, storage="bfloat16_delta") as trajectory:
        trajectory.append(0, {"a": jnp.zeros(3)}, {})
        with pytest.raises(BadInput, match=r"leaf a.*NaN"):
            trajectory.append(1, {"a": jnp.array([0, jnp.nan, 0])}, {})
        assert trajectory.steps() == [0]


def test_read_only_reads_and_refuses_the_rest(three, lab, mesh_222, tmp_path):
    with (
        Trajectory(three[0], read_only=True) as trajectory,
        pytest.raises(BadInput, match="read-only"),
    ):
        trajectory.append(3, lab.policy(3, mesh_222), {})
    with pytest.raises(BadInput, match="no such"):
        Trajectory(tmp_path / "absent", read_only=True)


def test_a_reader_sees_new_steps_without_reopening(tmp_path):
    params = {"a": jnp.zeros(3)}
    with Trajectory(tmp_path) as writer, Trajectory(tmp_path, read_only=True) as reader:
        assert reader.steps() == []
        writer.append(0, params, {})
        assert reader.steps() == [0] and reader.digest(0) == tree_digest(params)
        with pytest.raises(BadInput, match="no step 1"):
            reader.digest(1)


def test_stray_folders_are_ignored(copied, lab, mesh_222, same_bits):
    (copied / "77").mkdir()
    (copied / "78" / "policy").mkdir(parents=True)
    (copied / "5.orbax-checkpoint-tmp").mkdir()
    (copied / "notes.txt").write_text("hello")
    (copied / "007").mkdir()
    (copied / "9").symlink_to(copied / "1")
    (copied / "10").write_text("a file")
    with Trajectory(copied) as trajectory:
        assert trajectory.steps() == [0, 1, 2]
        trajectory.append(3, lab.policy(3, mesh_222), {})
        assert trajectory.steps() == [0, 1, 2, 3]
        assert not (copied / "5.orbax-checkpoint-tmp").exists()
        assert (copied / "77").exists() and (copied / "notes.txt").exists()
        for k in range(4):
            found = trajectory.restore(k, lab.target(mesh_222))
            assert tree_digest(found) == trajectory.digest(k)


def test_a_step_killed_before_its_line_is_saved_again(copied, lab, mesh_222):
    lines = (copied / "trajectory.jsonl").read_bytes().splitlines(keepends=True)
    (copied / "trajectory.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:50])
    with Trajectory(copied, storage="float32") as trajectory:
        assert trajectory.steps() == [0, 1]
        trajectory.append(2, lab.policy(9, mesh_222), {"again": True})
        assert trajectory.meta(2) == {"again": True}
        found = trajectory.restore(2, lab.target(mesh_222))
        assert fingerprint(found) == fingerprint(lab.policy(9, mesh_222))
        assert sorted(os.listdir(copied)) == ["0", "1", "2", "trajectory.jsonl"]


def test_lost_lines_never_cost_a_finished_step(copied, lab, mesh_222):
    text = (copied / "trajectory.jsonl").read_text().splitlines(keepends=True)
    (copied / "trajectory.jsonl").write_text(text[0])
    trajectory = Trajectory(copied)
    with pytest.raises(CorruptCheckpoint, match="lines are missing"):
        trajectory.append(1, lab.policy(1, mesh_222), {})
    assert (copied / "1").is_dir() and (copied / "2").is_dir()


def test_every_changed_byte_of_the_list_is_refused(copied):
    path = copied / "trajectory.jsonl"
    text = path.read_bytes()
    with Trajectory(copied, read_only=True) as trajectory:
        for at in range(0, len(text) - 1, 37):
            changed = bytearray(text)
            changed[at] ^= 1
            path.write_bytes(changed)
            with pytest.raises(CorruptCheckpoint, match=r"line [123] "):
                trajectory.steps()


def test_a_damaged_step_can_be_given_up_as_the_message_says(copied, lab, mesh_222):
    shutil.rmtree(copied / "1" / "policy")
    with Trajectory(copied) as trajectory:
        assert trajectory.steps() == [0, 2] and list(trajectory.damaged()) == [1]
        with pytest.raises(
            CorruptCheckpoint, match=r"step 1.*`tpmm repair .* --give-up 1`"
        ):
            trajectory.append(3, lab.policy(3, mesh_222), {})
        for step in ("1", "2"):
            (copied / step).rename(copied.parent / step)
        path = copied / "trajectory.jsonl"
        path.write_text(path.read_text().splitlines(keepends=True)[0])
        trajectory.append(1, lab.policy(1, mesh_222), {})
        assert trajectory.steps() == [0, 1]


def test_a_failed_save_is_raised_by_append(tmp_path, lab, mesh_222, monkeypatch):
    with Trajectory(tmp_path) as trajectory:
        trajectory.append(0, lab.policy(0, mesh_222), {})
        with monkeypatch.context() as patch:
            name = "orbax.checkpoint.CheckpointManager.save"
            patch.setattr(name, lambda *a, **k: False)
            with pytest.raises(StorageError, match="skipped"):
                trajectory.append(1, lab.policy(1, mesh_222), {})
            patch.setattr(name, lambda *a, **k: True)
            with pytest.raises(StorageError, match="is missing"):
                trajectory.append(1, lab.policy(1, mesh_222), {})
        assert trajectory.steps() == [0]
        trajectory.append(1, lab.policy(1, mesh_222), {})
        assert trajectory.steps() == [0, 1]


def test_paths_with_spaces_and_letters_of_other_scripts(tmp_path):
    folder = tmp_path / "lauf nr. 1 \u00e4\u4e2d" / ("x" * 200)
    params = {"a": jnp.arange(3.0)}
    with Trajectory(folder) as trajectory:
        trajectory.append(0, params, {"\u00e4": "\u4e2d"})
        assert trajectory.meta(0) == {"\u00e4": "\u4e2d"}
        assert tree_digest(trajectory.restore(0, params)) == trajectory.digest(0)


def test_a_line_is_json_with_digest_and_files(three):
    for line in (three[0] / "trajectory.jsonl").read_text().splitlines():
        body = json.loads(line)
        assert body["digest"] == three[2][body["step"]]
        assert "policy/manifest.ocdbt" in body["files"]
