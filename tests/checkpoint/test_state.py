import io
import logging
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrlhf.checkpoint import manifest
from jaxrlhf.checkpoint.state import Checkpoints
from jaxrlhf.sharding.launch import launch
from jaxrlhf.types import TrainState


def _tree(value=1.0):
    return {"w": jnp.full((4, 2), value), "n": jnp.int32(7)}


def _fill(folder, steps, **options):
    with Checkpoints(folder, keep=9, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, _tree(step), {"step": step})


def _flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_train_state_round_trips_with_its_record(tmp_path):
    params = {"layers": [jnp.arange(6.0).reshape(2, 3), jnp.ones(3, jnp.bfloat16) / 3]}
    state = TrainState(params=params, opt_state=optax.adam(1.0).init(params), step=jnp.int32(5))
    record = {"seed": 3, "data": {"position": 40}, "versions": ["a"]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, record)
    read = Checkpoints(tmp_path)
    assert read.latest() == 5
    assert read.record(5) == record
    _assert_equal(read.restore(5, jax.eval_shape(lambda: state)), state)


def test_numpy_leaves_stay_numpy_and_may_change_after_save(tmp_path):
    counts = np.arange(3, dtype=np.int64)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"counts": counts}, {})
        counts += 1
    restored = Checkpoints(tmp_path).restore(0, {"counts": counts})["counts"]
    assert isinstance(restored, np.ndarray)
    np.testing.assert_array_equal(restored, [0, 1, 2])


def test_restores_onto_another_mesh(tmp_path):
    devices = np.array(jax.devices())
    saved = NamedSharding(Mesh(devices.reshape(4, 2), ("a", "b")), PartitionSpec("a", "b"))
    wanted = NamedSharding(Mesh(devices[:2], ("c",)), PartitionSpec(None, "c"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jax.device_put(jnp.arange(32.0).reshape(4, 8), saved)}, {})
    like = {"w": jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=wanted)}
    restored = Checkpoints(tmp_path).restore(1, like)["w"]
    assert restored.sharding == wanted
    np.testing.assert_array_equal(restored, np.arange(32.0).reshape(4, 8))


def test_state_may_be_donated_while_it_is_written(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    array = jax.jit(lambda: jnp.arange(1 << 20, dtype=jnp.float32))()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": array}, {})
        jax.block_until_ready(overwrite(array))
    like = {"x": jax.ShapeDtypeStruct((1 << 20,), jnp.float32)}
    np.testing.assert_array_equal(Checkpoints(tmp_path).restore(1, like)["x"], np.arange(1 << 20, dtype=np.float32))


def test_all_differences_are_listed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.ones(3)}, {})
    like = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((3, 1)), "d": {"e": jnp.int32(0)}}
    with pytest.raises(ValueError) as error:
        Checkpoints(tmp_path).restore(1, like)
    assert str(error.value).splitlines()[1:] == [
        "a: float32[3] in the checkpoint, bfloat16[3] expected",
        "b: float32[3] in the checkpoint, float32[3, 1] expected",
        "d/e: nothing in the checkpoint, int32[] expected",
        "c: float32[3] in the checkpoint, nothing expected",
    ]


def test_what_cannot_be_stored_is_refused_together(tmp_path):
    tree = {"key": jax.random.key(0), "count": 3, "empty": jnp.ones((0, 2)), "fine": jnp.ones(1)}
    with pytest.raises(TypeError) as error:
        Checkpoints(tmp_path).save(1, tree, {})
    assert [line.split()[0] for line in str(error.value).splitlines()] == ["count", "empty", "key"]


def test_record_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        Checkpoints(tmp_path).save(1, _tree(), {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_there_is_not_replaced(tmp_path):
    _fill(tmp_path, [1])
    with pytest.raises(ValueError, match="1 is there already"):
        Checkpoints(tmp_path).save(1, _tree(), {})


def test_empty_folder_has_no_step(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert (checkpoints.latest(), checkpoints.best(), checkpoints.steps()) == (None, None, [])


def test_newest_and_best_are_kept(tmp_path):
    rewards = {1: 0.1, 2: 0.9, 3: math.nan, 4: 0.3, 5: 0.2}
    with Checkpoints(tmp_path, keep=2, best_metric="reward") as checkpoints:
        for step, reward in rewards.items():
            checkpoints.save(step, _tree(), {}, {"reward": reward})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]
    assert Checkpoints(tmp_path, best_metric="reward").best() == 2
    assert Checkpoints(tmp_path, best_metric="reward", best_mode="min").best() == 5
    assert Checkpoints(tmp_path).best() is None


def test_a_step_is_listed_only_when_complete(tmp_path, monkeypatch):
    seen = []
    checkpoints = Checkpoints(tmp_path)
    write = manifest.write_manifest

    def write_and_look(folder, facts):
        seen.append(checkpoints.steps())
        write(folder, facts)
        seen.append(checkpoints.steps())

    monkeypatch.setattr(manifest, "write_manifest", write_and_look)
    with checkpoints:
        checkpoints.save(1, _tree(), {})
    assert seen == [[], []]
    assert checkpoints.steps() == [1]


def test_failed_save_is_told_and_leaves_the_steps_before(tmp_path, monkeypatch):
    _fill(tmp_path, [1])
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_manifest", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
        checkpoints.save(2, _tree(), {})
        with pytest.raises(OSError, match="step 2 was not written: No space left on device"):
            checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    with checkpoints:
        checkpoints.save(2, _tree(), {})
    assert checkpoints.latest() == 2


def test_leftovers_are_removed_by_the_first_save_and_not_by_readers(tmp_path):
    _fill(tmp_path, [1])
    (tmp_path / "2.partial/arrays").mkdir(parents=True)
    (tmp_path / "0.deleted").mkdir()
    assert Checkpoints(tmp_path).latest() == 1
    assert (tmp_path / "2.partial").exists()
    _fill(tmp_path, [3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_foreign_files_are_ignored_with_one_line_each(tmp_path, caplog):
    _fill(tmp_path, [1])
    (tmp_path / "999").mkdir()
    (tmp_path / "4").write_text("a file")
    (tmp_path / "1 (copy)").mkdir()
    (tmp_path / "5").symlink_to(tmp_path / "1")
    checkpoints = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING, logger="jaxrlhf"):
        assert checkpoints.latest() == 1
        assert checkpoints.steps() == [1]
    assert len([record for record in caplog.records if record.name == "jaxrlhf.checkpoint.state"]) == 4


def test_flipped_bit_in_any_file_is_named_and_the_step_before_is_used(tmp_path, caplog):
    _fill(tmp_path, [1, 2])
    files = [path for path in (tmp_path / "2").rglob("*") if path.is_file() and path.stat().st_size]
    assert {"record.json", "manifest.json", "_METADATA"} < {path.name for path in files}
    for path in files:
        intact = path.read_bytes()
        _flip_a_bit(path)
        caplog.clear()
        checkpoints = Checkpoints(tmp_path)
        assert checkpoints.latest() == 1, path
        assert str(path) in caplog.text
        with pytest.raises(ValueError, match=path.name):
            Checkpoints(tmp_path).restore(2, _tree())
        path.write_bytes(intact)
    assert Checkpoints(tmp_path).latest() == 2


@pytest.mark.parametrize("harm", ["truncate", "delete"])
def test_missing_bytes_and_files_are_named(tmp_path, harm):
    _fill(tmp_path, [1])
    path = tmp_path / "1/record.json"
    path.write_bytes(b"{") if harm == "truncate" else path.unlink()
    with pytest.raises(ValueError, match=r"1/record.json (has 1 bytes, expected \d+|is missing)"):
        Checkpoints(tmp_path).record(1)


def test_no_step_intact_is_an_error_and_not_a_fresh_start(tmp_path):
    _fill(tmp_path, [1, 2])
    for step in (1, 2):
        (tmp_path / f"{step}/manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint is intact\n.*2/manifest.json is missing\n.*1/manifest.json"):
        Checkpoints(tmp_path).latest()


def test_damaged_step_is_set_aside_when_the_run_saves_it_again(tmp_path):
    _fill(tmp_path, [1, 2])
    _flip_a_bit(tmp_path / "2/record.json")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, _tree(20), {"again": True})
    assert Checkpoints(tmp_path).record(2) == {"again": True}
    assert (tmp_path / "2.damaged/record.json").exists()


def test_step_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="7 is not there"):
        Checkpoints(tmp_path).restore(7, _tree())


def test_states_without_arrays_round_trip(tmp_path):
    state = (optax.EmptyState(), {"x": jnp.ones(2)}, None)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    _assert_equal(Checkpoints(tmp_path).restore(1, state), state)


_TWO_PROCESSES = """
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrlhf.checkpoint.state import Checkpoints
from jaxrlhf.sharding.distributed import initialize

initialize()
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
rows = np.arange(8.0, dtype=np.float32)
array = jax.make_array_from_callback((8,), sharding, lambda index: rows[index])
like = {"x": jax.ShapeDtypeStruct((8,), np.float32, sharding=sharding)}
with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": array * step}, {"step": step})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    if jax.process_index() == 0:
        open(f"{sys.argv[1]}/3/record.json", "w").close()  # damage that process 1 hears of
    assert checkpoints.latest() == 2
    restored = checkpoints.restore(2, like)["x"]
    for shard in restored.addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index] * 2)
print("done", jax.process_count())
"""


def test_two_processes_save_agree_and_restore(tmp_path):
    stream = io.StringIO()
    command = [sys.executable, "-c", _TWO_PROCESSES, str(tmp_path)]
    assert launch(command, processes=2, devices=2, stream=stream) == 0, stream.getvalue()
    assert {"[0] done 2", "[1] done 2"} <= set(stream.getvalue().splitlines())
