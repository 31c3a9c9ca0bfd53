"""A pytree as a flat dictionary of named arrays: what is stored, what is asked for, and how the two differ."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Layouts = dict[str, list[Any]]
"""Name of a leaf -> [dtype, shape], as JSON reads it back."""


def named(tree: Any) -> dict[str, Any]:
    """Returns path -> leaf, such as `params/layers/0/weight`, in the order of flattening.

    Raises:
        ValueError: two leaves have the same path.
    """
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"two leaves are called {max(names, key=names.count)!r}; rename one")
    return {name: leaf for name, (_, leaf) in zip(names, pairs, strict=True)}


def storable(tree: Any) -> dict[str, jax.Array | np.ndarray]:
    """Returns the named leaves of a tree that can be stored.

    Raises:
        TypeError: leaves are no arrays, typed PRNG keys, or empty; lists all of them.
    """
    leaves = named(tree)
    problems = [f"{name} {problem}" for name, leaf in leaves.items() if (problem := _problem(leaf))]
    if problems:
        raise TypeError("\n".join(problems))
    return leaves


def _problem(leaf: Any) -> str | None:
    if not isinstance(leaf, jax.Array | np.ndarray):
        return f"is of type {type(leaf).__name__}, expected an array; other values go into the record"
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "is a typed PRNG key; put the seed into the record, or store jax.random.key_data"
    return f"is empty, of shape {leaf.shape}, which Orbax does not store" if leaf.size == 0 else None


def layouts(leaves: dict[str, Any]) -> Layouts:
    """Returns the dtype and shape of each leaf, an array or a `jax.ShapeDtypeStruct`."""
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()}


def abstract(leaves: dict[str, Any]) -> dict[str, Any]:
    """Returns what Orbax restores each leaf like: numpy stays numpy, all else has a sharding (default: one device)."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def like(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return leaf
        sharding = device if leaf.sharding is None else leaf.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return {name: like(leaf) for name, leaf in leaves.items()}


def differences(stored: Layouts, wanted: Layouts) -> list[str]:
    """Returns one line for each leaf that only one side has, or whose dtype or shape differ."""

    def show(layout: list[Any] | None) -> str:
        return "nothing" if layout is None else f"{layout[0]}{layout[1]}"

    pairs = {name: (stored.get(name), wanted.get(name)) for name in [*wanted, *stored]}
    return [
        f"{name}: {show(there)} in the checkpoint, {show(here)} expected"
        for name, (there, here) in pairs.items()
        if there != here
    ]
