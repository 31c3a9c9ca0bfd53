"""Host memory while a checkpoint of random weights is loaded, beyond what its parameters take.

    python benchmarks/load_memory.py --gigabytes 2

writes a Llama of that size, in bfloat16 and in several files, to a temporary folder and loads it in a process of its
own, whose peak it prints. On a CPU the parameters themselves are in the memory of the host. What the first load of a
process compiles is there before: a model of a few megabytes is loaded first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WIDTH, HEAD_DIM, LAYERS, FILES = 2048, 64, 4, 3
MIB = 2**20


def main() -> None:
    """Writes the checkpoint, loads it in another process, and prints what that measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the checkpoint")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the model; its largest tensor grows with it")
    parser.add_argument("--devices", type=int, default=1, help="simulated devices that share the parameters")
    parser.add_argument("--dtype", default="float32", help="that the parameters are kept in")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        print(json.dumps(measure(Path(options.load), options.devices, options.dtype)))
        return
    print(json.dumps(measured_apart(options.gigabytes, options.width, options.devices, options.dtype), indent=1))


def write_checkpoint(folder: Path, size: float, width: int) -> dict[str, float]:
    """Writes a random Llama of about `size` bytes, and returns its size and that of its largest tensor in MiB."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from jaxrlhf.models.config import ModelConfig
    from jaxrlhf.models.folder import FAMILIES
    from jaxrlhf.models.tensors import tensor_entries

    layer = size / 4 / LAYERS  # numbers in a block; all blocks are half of the model, and the unembedding is a quarter
    config = ModelConfig(
        vocab_size=int(size / 8 / width),
        hidden_size=width,
        intermediate_size=max(width, int(layer / width - 4 * width) // 3),
        num_layers=LAYERS,
        num_heads=max(1, width // HEAD_DIM),
        num_kv_heads=max(1, width // HEAD_DIM),
        head_dim=min(width, HEAD_DIM),
        max_positions=1024,
    )
    (folder / "config.json").write_text(json.dumps(FAMILIES["llama"].write_config(config)))
    entries = tensor_entries(config)
    draw = np.random.default_rng(0).normal
    block = draw(size=MIB).astype(ml_dtypes.bfloat16)
    weight_map = {}
    for number in range(FILES):
        file = f"model-{number + 1:05}-of-{FILES:05}.safetensors"
        own = entries[number * len(entries) // FILES : (number + 1) * len(entries) // FILES]
        save_file({entry.name: np.resize(block, entry.shape) for entry in own}, folder / file)
        weight_map |= {entry.name: file for entry in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sizes = [2 * math.prod(entry.shape) / MIB for entry in entries]
    return {"checkpoint_mib": round(sum(sizes), 1), "largest_tensor_mib": round(max(sizes), 1)}


def measured_apart(gigabytes: float, width: int, devices: int = 1, dtype: str = "float32") -> dict[str, float]:
    """Writes a checkpoint, and returns its sizes and what `measure` says of it in a process of its own."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("first", 4e6), ("model", gigabytes * 1e9)):
            (Path(folder) / name).mkdir()
            written = write_checkpoint(Path(folder) / name, size, min(width, 256) if name == "first" else width)
        command = [sys.executable, __file__, "--load", folder, "--devices", str(devices), "--dtype", dtype]
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return written | json.loads(output.splitlines()[-1])


def measure(folder: Path, devices: int, dtype: Any) -> dict[str, float]:
    """Loads the checkpoint `model` after `first`, and returns MiB at the peak, MiB of the parameters, and seconds."""
    import time

    import jax

    from jaxrlhf.models.load import load_policy
    from jaxrlhf.sharding.mesh import make_mesh

    mesh = make_mesh(1, devices, 1)
    load_policy(folder / "first", mesh=mesh, dtype=dtype)
    before, start = _status("VmRSS"), time.perf_counter()
    loaded = load_policy(folder / "model", mesh=mesh, dtype=dtype)
    seconds = time.perf_counter() - start
    parameters = sum(shard.data.nbytes for leaf in jax.tree.leaves(loaded.params) for shard in leaf.addressable_shards)
    peak = _status("VmHWM") - before
    return {
        "parameters_mib": round(parameters / MIB, 1),
        "peak_mib": round(peak, 1),
        "beyond_parameters_mib": round(peak - parameters / MIB, 1),
        "seconds": round(seconds, 2),
    }


def _status(field: str) -> float:
    """A size that Linux knows of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


if __name__ == "__main__":
    main()
