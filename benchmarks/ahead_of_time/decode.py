"""What the sampler's programs need of each device, and what a step of decoding copies: an 8B model in bfloat16."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.ahead_of_time.hlo import Program, exchanged
from benchmarks.ahead_of_time.targets import compile_for, mesh_for
from jaxrlhf.generation.decode import advance
from jaxrlhf.generation.prefill import prefill
from jaxrlhf.generation.seating import no_slots, seat, seat_all
from jaxrlhf.generation.settings import SamplingSettings, per_row
from jaxrlhf.generation.slots import Requests, Slots, no_answers, over_mesh
from jaxrlhf.models.config import ComputeConfig, LayerKind, ModelConfig
from jaxrlhf.models.decoder import make_model, param_shapes
from jaxrlhf.sharding.place import over_rows
from jaxrlhf.sharding.rules import shardings_for
from jaxrlhf.types import Model, PromptBatch

MODEL = ModelConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_positions=8192,
    pattern=(LayerKind(rope_theta=500_000.0),),
)
PROMPTS, WIDTH, ANSWERS = 8, 2048, 8
CHUNK, ROOM, SEATED = 64, 512, 2560
"""Steps of a chunk, tokens of an answer, and columns of slots that take prompts of `WIDTH`."""

BANDWIDTH = {"h200": 4.8e12, "v5e": 0.82e12}
"""Bytes a second between a device and its memory, as published."""

_LARGE = 2**20  # bytes of an array whose copying counts


class Place(NamedTuple):
    """Devices, and what is measured on them beside a chunk for 64 slots of 2048 columns.

    Attributes:
        target: see `targets.devices`.
        axes: sizes of the mesh.
        more: further (slots, columns) of a chunk.
        all_programs: whether the other programs are measured too.
    """

    target: str
    axes: dict[str, int]
    more: tuple[tuple[int, int], ...] = ()
    all_programs: bool = True


PLACES = (
    Place("h200", {"data": 1}, more=((256, 1024),)),
    Place("v5e:2x4", {"data": 1, "tensor": 8}),
    Place("v5e:2x4", {"data": 2, "tensor": 4}),
    Place("v5e:2x4", {"data": 1, "fsdp": 8}, all_programs=False),
)


def decode_rows() -> list[dict[str, Any]]:
    """Bytes a device, copies and collectives of the programs at every place; each row is printed."""
    rows = []
    for place in PLACES:
        mesh = mesh_for(place.target, **place.axes)
        name = ", ".join(f"{axis} {size}" for axis, size in place.axes.items() if size > 1)
        found = _programs(mesh) if place.all_programs else []
        for row in [*found, *(_chunk(mesh, *shape) for shape in ((64, 2048), *place.more))]:
            row = {"target": place.target, "mesh": name, **row}
            print(row, flush=True)
            rows.append(row)
    return rows


def decode_table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table in Markdown."""
    titles = ["target", "mesh", "program", "slots x columns", "weights, GiB", "cache, GiB", "arguments, GiB"]
    titles += ["in place, GiB", "temporaries, MiB", "copied in a step, MiB", "arrays as large as a layer's keys"]
    titles += ["collectives in a step", "bound of a step, ms", "GFLOP of a step"]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for row in rows:
        cells = [row["target"], row["mesh"], row["program"], f"{row['slots']} x {row['columns']}"]
        cells += [f"{row[name] / 2**30:.2f}" for name in ("weights", "cache", "arguments", "aliased")]
        cells += [f"{row['temporaries'] / 2**20:,.0f}", *_of_step(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _of_step(row: dict[str, Any]) -> list[str]:
    if row["copied"] is None:
        return [""] * 5
    collectives = (f"{count} {name}: {size / 2**20:.1f} MiB" for name, (count, size) in row["collectives"].items())
    cells = [f"{row['copied'] / 2**20:,.0f}", ", ".join(row["as_large"]) or "none", ", ".join(collectives)]
    cells += [f"{row['bound'] * 1e3:.1f}" if row["bound"] else "", f"{row['flops'] / 1e9:,.0f}" if row["flops"] else ""]
    return cells


class _Made(NamedTuple):
    """A compiled program and the shapes of what it returns, where it leaves that."""

    compiled: Any
    result: Any


def _programs(mesh: Mesh) -> list[dict[str, Any]]:
    """Prompts, seats for all of them, and new seats in slots that decode: each takes what the one before it left."""
    model = _model()
    params = _prepared(model, mesh)
    rows, ids = PROMPTS * ANSWERS, functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    tokens, row_ids = (ids(shape, sharding=over_rows(mesh)) for shape in ((PROMPTS, WIDTH), (PROMPTS,)))
    prompts: Any = PromptBatch(tokens=tokens, segment_ids=tokens, row_ids=row_ids)  # pyright: ignore[reportArgumentType]
    store = _make(mesh, functools.partial(prefill, model), params, prompts)
    every = functools.partial(seat_all, model, columns=SEATED, room=ROOM)
    seated = _make(mesh, every, params, store.result, _requests(rows))
    slots = _slots(mesh, model, params, rows, SEATED)
    answers = _make(mesh, functools.partial(no_answers, 4 * rows, ROOM)).result
    numbers = (ids((rows,)),) * 3
    new = _make(mesh, seat, slots, answers, store.result, _requests(4 * rows), *numbers, donate=(0, 1))
    shape, step = {"slots": rows, "columns": SEATED}, _step(new, slots.cache)
    return [
        {"program": "prefill", "slots": PROMPTS, "columns": WIDTH - 1, **_bytes(store, params, store.result.cache)},
        {"program": "seat_all", **shape, **_bytes(seated, params, seated.result.cache)},
        {"program": "seat", **shape, **_bytes(new, params, slots.cache), **step, "bound": None, "flops": None},
    ]


def _chunk(mesh: Mesh, slots: int, columns: int) -> dict[str, Any]:
    params, held, made = compile_chunk(mesh, MODEL, slots, columns)
    sizes = _bytes(made, params, held)
    table = 0 if MODEL.tie_embeddings else _size(params["embed_tokens"])  # of which a step reads a few rows
    read = sizes["weights"] - table + sizes["cache"]
    bound = read / BANDWIDTH["h200" if mesh.devices.flat[0].platform != "tpu" else "v5e"]
    row = {"program": "advance", "slots": slots, "columns": columns, **sizes, **_step(made, held)}
    return row | {"bound": bound, "flops": _flops(mesh, slots, columns)}


def compile_chunk(mesh: Mesh, config: ModelConfig, slots: int, columns: int, unroll: int = 1) -> tuple[Any, Any, Any]:
    """A compiled chunk of decoding.

    Args:
        mesh: of devices that need not be there.
        config: the model.
        slots: rows that decode.
        columns: of their cache.
        unroll: see `ComputeConfig.scan_unroll`.

    Returns:
        Shapes of the prepared parameters and of the cache, with their shardings, and (compiled, result).
    """
    model = _model(config, unroll)
    params = _prepared(model, mesh, config)
    held = _slots(mesh, model, params, slots, columns)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    chunk = functools.partial(advance, model, chunk=CHUNK)
    return params, held.cache, _make(mesh, chunk, params, held, scalar, scalar, donate=1)


def _flops(mesh: Mesh, slots: int, columns: int) -> float | None:
    """What XLA counts for a step, where it does: from models of one and two layers, since it counts loops once."""
    if mesh.devices.flat[0].platform != "tpu":
        return None

    def count(layers: int) -> float:
        config = dataclasses.replace(MODEL, num_layers=layers)
        return compile_chunk(mesh, config, slots, columns, unroll=layers)[2].compiled.cost_analysis()["flops"]

    one, two = count(1), count(2)
    return one + (MODEL.num_layers - 1) * (two - one)


def _step(made: _Made, cache: Any) -> dict[str, Any]:
    """What a step copies and exchanges; of `seat`, what a prompt that is seated does."""
    keys = jax.tree.leaves(cache.keys)[0]
    local = keys.sharding.shard_shape(keys.shape)
    carried = f"bf16[{','.join(map(str, local))}]"
    program = Program(made.compiled.as_text())
    step = program.step(carried, inner=MODEL.num_layers)
    of_layer = _size(keys) // (keys.shape[0] if len(local) == 5 else 1)
    copied, large = program.copied(step, _LARGE), sorted(set(program.as_large(step, of_layer)))
    return {"copied": copied, "as_large": large, "collectives": exchanged(step)}


def _bytes(made: _Made, params: Any, cache: Any) -> dict[str, Any]:
    memory = made.compiled.memory_analysis()
    return {
        "weights": _size(params),
        "cache": _size((cache.keys, cache.values)),
        "arguments": memory.argument_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "copied": None,
    }


def _size(tree: Any) -> int:
    """Bytes of arrays on a device."""

    def size(leaf: Any) -> int:
        return leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))

    return sum(map(size, jax.tree.leaves(tree)))


def _model(config: ModelConfig = MODEL, unroll: int = 1) -> Model:
    return make_model(config, ComputeConfig(dtype="bfloat16", scan_unroll=unroll))


def _prepared(model: Model, mesh: Mesh, config: ModelConfig = MODEL) -> Any:
    trained = param_shapes(config)
    return _make(mesh, model.prepare, _placed(trained, shardings_for(trained, mesh)[0])).result


def _slots(mesh: Mesh, model: Model, params: Any, slots: int, columns: int) -> Any:
    def wide(params: Any, requests: Requests) -> Slots:
        empty = no_slots(model, params, requests, slots=slots, room=ROOM)
        return over_mesh(dataclasses.replace(empty, cache=model.init_cache(slots, columns)))

    return _make(mesh, wide, params, _requests(slots)).result


def _requests(rows: int) -> Requests:
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    settings = jax.eval_shape(lambda own: own, per_row(SamplingSettings(), rows, ROOM))
    return Requests(keys=keys, settings=settings)


def _make(mesh: Mesh, function: Callable[..., Any], *shapes: Any, donate: Any = ()) -> _Made:
    compiled = compile_for(mesh, jax.jit(function, donate_argnums=donate), *shapes)
    with jax.set_mesh(mesh):
        return _Made(compiled, _placed(jax.eval_shape(function, *shapes), compiled.output_shardings))


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own), tree, shardings)
