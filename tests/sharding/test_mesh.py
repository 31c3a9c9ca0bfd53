import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec

from jaxrlhf.sharding.mesh import BATCH_AXES, check_batch, constrain, make_mesh, target_platform


def test_one_size_may_be_the_rest():
    mesh = make_mesh(data=-1, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_given_devices_are_used():
    assert make_mesh(devices=jax.devices()[:3]).devices.shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "data=3 x fsdp=1 x tensor=1: 3 is not the number of devices, 8"),
        ((-1, 3, 1), "data=-1 x fsdp=3 x tensor=1: 3 does not divide the number of devices, 8"),
        ((-1, -1, 1), "at most one of them -1"),
        ((0, 1, 8), "sizes must be positive"),
        ((-1, 16, 1), "16 does not divide the number of devices, 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_arithmetic(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(*sizes)


def test_a_batch_that_does_not_divide_is_refused_with_its_name():
    mesh = make_mesh(4, 2, 1)
    check_batch(mesh, "batch_size", 16)
    with pytest.raises(ValueError) as error:
        check_batch(mesh, "batch_size", 12)
    expected = "batch_size=12 does not divide over 8 devices on axes ('data', 'fsdp'); use a multiple of 8"
    assert str(error.value) == expected


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((4, 2))
    assert constrain(x, BATCH_AXES, None) is x


def test_with_a_mesh_dimensions_are_divided_where_they_can_be():
    with jax.set_mesh(make_mesh(2, 2, 2)):
        place = jax.jit(lambda x: constrain(x, BATCH_AXES, "tensor"))
        assert place(np.ones((8, 4))).sharding.spec == PartitionSpec(BATCH_AXES, "tensor")
        assert place(np.ones((8, 3))).sharding.spec == PartitionSpec(BATCH_AXES)
        assert place(np.ones((2, 4))).sharding.spec == PartitionSpec(None, "tensor")


def test_the_processor_is_divided_once():
    program = (
        "import jax; from jaxrlhf.sharding.config import MeshConfig; from jaxrlhf.sharding.mesh import open_mesh;"
        "print(dict(open_mesh(MeshConfig(cpu_devices=3)).shape)); open_mesh(MeshConfig(cpu_devices=2))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "{'data': 3, 'fsdp': 1, 'tensor': 1}" in done.stdout
    assert "mesh.cpu_devices=2, but this process has made 3 of its cores already" in done.stderr


@pytest.mark.parametrize(
    ("kind", "platform", "expected"),
    [("NVIDIA H200", "gpu", "cuda"), ("AMD Instinct MI300X", "gpu", "rocm"), ("TPU v5 lite", "tpu", "tpu")],
)
def test_the_mesh_tells_what_a_program_is_for(kind: str, platform: str, expected: str):
    assert target_platform() == "cpu"
    device = AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        assert target_platform() == expected


def test_without_a_mesh_the_default_device_tells(monkeypatch: pytest.MonkeyPatch):
    tpu, cpu = AbstractDevice(device_kind="TPU v5 lite", num_cores=None, platform="tpu"), jax.devices()[0]
    monkeypatch.setattr(jax, "devices", {None: [tpu], "cpu": [cpu]}.get)
    assert target_platform() == "tpu"
    for chosen in ("cpu", cpu):
        with jax.default_device(chosen):
            assert target_platform() == "cpu"
