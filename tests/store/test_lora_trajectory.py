"""A trajectory of adapters: what comes back, and every base that is not the run's."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpmm_jax.errors import BadInput, CorruptCheckpoint
from tpmm_jax.mesh import MeshConfig, make_mesh
from tpmm_jax.models import Decoder, LoraConfig
from tpmm_jax.models.families import make_config
from tpmm_jax.models.lora import abstract_adapters, init_adapters, merge_adapters
from tpmm_jax.store import Base, Trajectory, tree_digest

LORA = LoraConfig(rank=2, alpha=5.0, targets="q_proj,o_proj,down_proj")
CONFIG = make_config(
    "llama", vocab_size=23, width=16, mlp_width=12, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=4, max_positions=32,
)  # fmt: skip
DECODER = Decoder(CONFIG, lora=LORA)
STEPS = 3


def base_of(params, name="the model"):
    # A fresh copy each time, as a read from a disk is.
    return Base(lambda: jax.tree.map(jnp.array, params), name, "put it back")


def adapters(step):
    """B = 0 at step 0, as in a run."""
    made = init_adapters(DECODER.abstract_params(), LORA, jax.random.key(1))
    rng = np.random.default_rng(step)
    return jax.tree.map(
        lambda x: x + min(step, 1) * rng.standard_normal(x.shape).astype(np.float32),
        made,
    )


@pytest.fixture(scope="module")
def base():
    return DECODER.init(jax.random.key(0))


@pytest.fixture(scope="module")
def three(tmp_path_factory, base):
    """A folder with three committed steps, and their digests."""
    folder = tmp_path_factory.mktemp("three") / "t"
    trajectory = Trajectory(folder, storage="lora", lora=LORA, base=base_of(base))
    digests = [trajectory.append(k, adapters(k), {"k": k}) for k in range(STEPS)]
    return folder, digests


def reader(folder, base):
    return Trajectory(folder, base=base_of(base), read_only=True)


def test_adapters_come_back_bit_for_bit(three, base, same_bits):
    trajectory = reader(three[0], base)
    assert trajectory.holds_adapters()
    assert [trajectory.digest(k) for k in range(STEPS)] == three[1]
    assert len(set(three[1])) == STEPS
    for k in range(STEPS):
        found = trajectory.restore_adapters(k, DECODER.abstract_trained())
        assert same_bits(found, adapters(k))
        assert trajectory.meta(k) == {"k": k}
    assert trajectory.lora_of(1) == LORA


def test_a_restore_is_the_dense_policy(three, base, same_bits):
    trajectory, target = reader(three[0], base), DECODER.abstract_params()
    assert same_bits(trajectory.restore(0, target), base)
    for k in (1, 2):
        found = trajectory.restore(k, target)
        assert same_bits(found, merge_adapters(base, adapters(k), LORA))
        assert not same_bits(found, base)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), trajectory.abstract(2))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), target)


def test_a_part_is_some_leaves_of_the_dense_policy(three, base, same_bits):
    trajectory, target = reader(three[0], base), DECODER.abstract_params()
    under = trajectory.restore_base()
    whole = merge_adapters(base, adapters(2), LORA)
    for names in (*((name,) for name in target), tuple(target)[:2]):
        part = {name: target[name] for name in names}
        for known in (under, None):
            found = trajectory.restore_part(2, part, known)
            assert same_bits(found, {name: whole[name] for name in names})
    with pytest.raises(BadInput, match="leaf embeddin of the target is not in step 2"):
        trajectory.restore_part(2, {"embeddin": target["embedding"]}, under)


def test_a_restore_on_a_mesh_has_the_same_bits(three, base, same_bits):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    many = Decoder(CONFIG, mesh=mesh, lora=LORA)
    target = many.abstract_params()
    split = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), base, target)
    trajectory = reader(three[0], split)
    found = trajectory.restore(2, target)
    assert same_bits(found, merge_adapters(base, adapters(2), LORA))
    where = jax.tree.map(lambda x: x.sharding, found)
    assert where == jax.tree.map(lambda x: x.sharding, target)
    own = trajectory.restore_adapters(2, many.abstract_trained())
    assert same_bits(own, adapters(2))


def test_the_base_is_not_stored(three):
    stored = sum(
        path.stat().st_size for path in three[0].glob("*/policy/**/*") if path.is_file()
    )
    numbers = sum(x.size for x in jax.tree.leaves(adapters(0)))
    assert numbers < Decoder(CONFIG).num_params / 3
    integrity = [
        json.loads((three[0] / str(k) / "integrity" / "metadata").read_text())
        for k in range(STEPS)
    ]
    assert all(list(found["layout"]) for found in integrity)
    names = {name for found in integrity for name in found["layout"]}
    assert names == {
        f"layers/{place}/{part}"
        for place in ("attention/query", "attention/output", "mlp/down")
        for part in "ab"
    }
    assert stored > 0


def test_a_base_with_one_changed_bit_is_refused_by_name(three, base):
    bits = np.asarray(base["layers"]["mlp"]["up"]).copy()
    bits.view(np.uint32)[1, 3, 4] ^= 1
    other = jax.tree.map(lambda x: x, base)
    other["layers"]["mlp"]["up"] = jnp.asarray(bits)
    for call in (
        lambda t: t.restore(1, DECODER.abstract_params()),
        lambda t: t.restore_base(),
    ):
        with pytest.raises(
            BadInput, match=r"leaf layers/mlp/up of the base the model .*put it back"
        ):
            call(reader(three[0], other))


def test_a_base_that_is_gone_says_what_to_do(three):
    def read():
        raise BadInput("somewhere: no such directory")

    trajectory = Trajectory(
        three[0], base=Base(read, "somewhere", "make w/base a link"), read_only=True
    )
    with pytest.raises(BadInput, match=r"no such directory\n.*make w/base a link"):
        trajectory.restore_base()


def test_a_base_of_another_shape_is_refused_by_name(three, base):
    other = jax.tree.map(lambda x: x, base)
    other["embedding"] = jnp.zeros((29, 16))
    with pytest.raises(BadInput, match="leaf embedding: the base the model has shape"):
        reader(three[0], other).restore_base()


def test_without_a_base_only_adapters_are_read(three):
    trajectory = Trajectory(three[0], read_only=True)
    trajectory.restore_adapters(1, DECODER.abstract_trained())
    with pytest.raises(BadInput, match="holds adapters, and their base"):
        trajectory.restore(1, DECODER.abstract_params())


def test_one_trajectory_has_one_kind(tmp_path, three, base):
    shutil.copytree(three[0], tmp_path / "t")
    other = LoraConfig(rank=2, alpha=6.0, targets=LORA.targets)
    trajectory = Trajectory(
        tmp_path / "t", storage="lora", lora=other, base=base_of(base)
    )
    with pytest.raises(BadInput, match=r"adapters of .*5\.0.*these are of .*6\.0"):
        trajectory.append(STEPS, adapters(3), {})
    whole = Trajectory(tmp_path / "t")
    with pytest.raises(BadInput, match="started with storage lora, not float32"):
        whole.append(STEPS, base, {})
    rank3 = LoraConfig(rank=3, alpha=5.0, targets=LORA.targets)
    target = abstract_adapters(DECODER.abstract_params(), rank3)
    with pytest.raises(BadInput, match="the target has shape"):
        trajectory.restore_adapters(1, target)


def test_a_changed_step_is_refused(tmp_path, three, base):
    """Another step's arrays in the place of step 2's: whole files, wrong bits."""
    shutil.copytree(three[0], tmp_path / "t")
    line = (tmp_path / "t" / "trajectory.jsonl").read_text().splitlines()[2]
    folder = tmp_path / "t" / "2"
    shutil.rmtree(folder / "policy")
    shutil.copytree(three[0] / "1" / "policy", folder / "policy")
    trajectory = reader(tmp_path / "t", base)
    assert json.loads(line)["storage"] == "lora"
    with pytest.raises(CorruptCheckpoint, match="step 2"):
        trajectory.restore(2, DECODER.abstract_params())
    # The integrity item of another step is not taken for this one's.
    shutil.rmtree(folder)
    shutil.copytree(three[0] / "2", folder)
    target = folder / "integrity" / "metadata"
    saved = json.loads(target.read_text())
    saved["lora"]["alpha"] = 6.0
    size = target.stat().st_size
    target.write_text(json.dumps(saved, separators=(",", ":")).ljust(size)[:size])
    with pytest.raises(CorruptCheckpoint, match="step 2"):
        trajectory.restore(2, DECODER.abstract_params())


def test_the_digest_covers_base_and_scale(tmp_path, base, three):
    other = jax.tree.map(lambda x: x, base)
    other["embedding"] = base["embedding"] + 1
    digests = set(three[1][:1])
    for name, params, lora in (
        ("base", other, LORA),
        ("scale", base, LoraConfig(rank=2, alpha=6.0, targets=LORA.targets)),
    ):
        trajectory = Trajectory(
            tmp_path / name, storage="lora", lora=lora, base=base_of(params)
        )
        digests.add(trajectory.append(0, adapters(0), {}))
    assert len(digests) == 3
    assert tree_digest(base) not in digests


# ---- a reward model's: its head is trained whole

REWARD = Decoder(dataclasses.replace(CONFIG, output="reward"), lora=LORA)


def reward_adapters(base, step):
    """The head as the base has it at step 0, as in a run; later its own."""
    whole = {"score": base["score"] + step}
    made = init_adapters(REWARD.abstract_params(), LORA, jax.random.key(1), **whole)
    rng = np.random.default_rng(step)
    return jax.tree.map(
        lambda x: x + min(step, 1) * rng.standard_normal(x.shape).astype(np.float32),
        made,
    )


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    """The base of a reward model, and a folder with two committed steps."""
    base = REWARD.init(jax.random.key(2))
    folder = tmp_path_factory.mktemp("rewards") / "reward"
    trajectory = Trajectory(folder, storage="lora", lora=LORA, base=base_of(base))
    digests = [trajectory.append(k, reward_adapters(base, k), {}) for k in range(2)]
    assert len(set(digests)) == 2
    return base, folder


def test_a_reward_head_is_stored_whole(rewards, same_bits):
    base, folder = rewards
    trajectory, target = reader(folder, base), REWARD.abstract_params()
    assert same_bits(trajectory.restore(0, target), base)
    for k in range(2):
        mine = reward_adapters(base, k)
        found = trajectory.restore_adapters(k, REWARD.abstract_trained())
        assert same_bits(found, mine)
        whole = trajectory.restore(k, target)
        assert same_bits(whole, merge_adapters(base, mine, LORA))
        assert same_bits(whole["score"], mine["score"])
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), trajectory.abstract(1))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), target)


def test_a_reward_head_on_a_mesh_has_the_same_bits(rewards, same_bits):
    base, folder = rewards
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    many = dataclasses.replace(REWARD, mesh=mesh)
    target = many.abstract_params()
    split = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), base, target)
    trajectory = reader(folder, split)
    found = trajectory.restore(1, target)
    assert same_bits(found, merge_adapters(base, reward_adapters(base, 1), LORA))
    where = jax.tree.map(lambda x: x.sharding, found)
    assert where == jax.tree.map(lambda x: x.sharding, target)
    own = trajectory.restore_adapters(1, many.abstract_trained())
    assert same_bits(own, reward_adapters(base, 1))


def test_the_head_under_a_reward_model_may_be_another(rewards, tmp_path, same_bits):
    """Another device or version of jax draws other last bits of it."""
    base, folder = rewards
    other = base | {"score": base["score"] * 1.000001}
    assert not same_bits(other["score"], base["score"])
    mine, target = reward_adapters(base, 1), REWARD.abstract_params()
    found = reader(folder, other).restore(1, target)
    assert same_bits(found, merge_adapters(base, mine, LORA))
    for number, under in enumerate((base, other)):
        trajectory = Trajectory(
            tmp_path / str(number), storage="lora", lora=LORA, base=base_of(under)
        )
        trajectory.append(0, mine, {})
    digests = {reader(tmp_path / n, base).digest(0) for n in "01"}
    assert len(digests) == 1
