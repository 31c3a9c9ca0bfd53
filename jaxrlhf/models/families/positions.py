"""What a published config says of positions: rotary options, in the spellings of versions 4 and 5, and windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrlhf.models.config import LayerKind, LinearScaling, Llama3Scaling, ModelConfig, pattern_of
from jaxrlhf.models.families.config_table import Raw, read_number

FULL = "full_attention"
SLIDING = "sliding_attention"
"""The kinds of layers, as `layer_types` names them."""

_SCALINGS: dict[str, tuple[type[LinearScaling] | type[Llama3Scaling], dict[str, str]]] = {
    "linear": (LinearScaling, {"factor": "factor"}),
    "llama3": (
        Llama3Scaling,
        {
            "factor": "factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_max_position_embeddings": "original_max_positions",
        },
    ),
}
"""`rope_type` -> its class, and published key -> field."""


def read_rope(raw: Raw, problems: list[str], *, theta_key: str = "rope_theta", partial: bool = False) -> dict[str, Any]:
    """Reads `rope_parameters` (transformers 5), or `rope_scaling` and a base beside it (before).

    Args:
        raw: contents of the file.
        problems: to add to.
        theta_key: older name of the base, 10000 where it is left out.
        partial: whether heads of the family may turn in part, see `read_rotary_dim`.

    Returns:
        `rope_theta` and `rope_scaling` of a `LayerKind`.
    """
    given = _rope_options(raw, problems)
    scalings = [_read_scaling(rope, problems) for rope in given]
    rope = given[0]
    share = rope.get("partial_rotary_factor", 1.0)
    if share != 1.0 and not partial:
        problems.append(f"partial_rotary_factor={share!r} is not supported; only 1.0 is")
    source, key = (rope, "rope_theta") if "rope_theta" in rope else (raw, theta_key)
    theta = read_number(source, key, 10000.0, problems)
    return {"rope_theta": theta, "rope_scaling": scalings[0]}


def read_rotary_dim(
    raw: Raw, head_dim: int, problems: list[str], *, share_key: str = "partial_rotary_factor", share: float = 1.0
) -> int | None:
    """Reads how much of a head turns.

    Args:
        raw: contents of the file.
        head_dim: width of a head.
        problems: to add to.
        share_key: name of the share beside the rotary options; within them it is `partial_rotary_factor`.
        share: where the file leaves it out.

    Returns:
        `rotary_dim`.
    """
    rope = _rope_options(raw, [])[0]
    within = {"partial_rotary_factor": rope.get("partial_rotary_factor", raw.get(share_key, share))}
    width = int(head_dim * read_number(within, "partial_rotary_factor", share, problems))
    return None if width == head_dim else width


def write_share(config: ModelConfig) -> float:
    """Writes how much of a head turns.

    Args:
        config: to write.

    Returns:
        The share that `read_rotary_dim` rounds down to just this width: a whole number of entries over the width of a
        head, or the next number above.
    """
    share = config.turned_dim / config.head_dim
    return share if int(config.head_dim * share) == config.turned_dim else math.nextafter(share, 1.0)


def write_rope(kind: LayerKind, *, theta_key: str = "rope_theta") -> dict[str, Any]:
    """Writes rotary options in the older spelling: version 5 reads both, version 4 would pass over the newer one.

    Args:
        kind: of the layers.
        theta_key: older name of the base.

    Returns:
        Keys and values.
    """
    raw: dict[str, Any] = {theta_key: kind.rope_theta}
    for name, (scaling, keys) in _SCALINGS.items():
        if isinstance(kind.rope_scaling, scaling):
            values = {key: getattr(kind.rope_scaling, field) for key, field in keys.items()}
            raw["rope_scaling"] = {"rope_type": name, **values}
    return raw


def read_window(raw: Raw, default: int | None, problems: list[str]) -> int | None:
    """Reads `sliding_window`, which counts the token itself, as `LayerKind.window` does.

    Args:
        raw: contents of the file.
        default: where the file leaves it out.
        problems: to add to.

    Returns:
        Tokens; None where there is no window.
    """
    window = raw.get("sliding_window", default)
    if window is None or (type(window) is int and window > 0):  # a bool is an int too
        return window
    problems.append(f"sliding_window={window!r} must be a positive whole number or null")
    return None


def read_pattern(
    raw: Raw, default: Sequence[str], full: LayerKind, sliding: LayerKind, problems: list[str]
) -> tuple[LayerKind, ...]:
    """Reads `layer_types`.

    Args:
        raw: contents of the file.
        default: types of all layers where the file leaves them out.
        full: the kind that `full_attention` means.
        sliding: the kind that `sliding_attention` means, which must have a window if there are such layers.
        problems: to add to.

    Returns:
        `ModelConfig.pattern`.
    """
    found = raw.get("layer_types")
    layer_types = list(default) if found is None else found
    kinds = {FULL: full, SLIDING: sliding}
    if not isinstance(layer_types, list) or any(name not in (FULL, SLIDING) for name in layer_types):
        problems.append(f"layer_types={layer_types!r} must be a list of {FULL!r} and {SLIDING!r}")
        return (full,)
    if len(layer_types) != len(default):
        problems.append(f"layer_types has {len(layer_types)} entries, expected one for each of {len(default)} layers")
    if SLIDING in layer_types and sliding.window is None:
        problems.append(f"layer_types names {SLIDING!r}, and there is no sliding_window")
    return pattern_of([kinds[name] for name in layer_types] or [full])


def write_pattern(config: ModelConfig) -> dict[str, Any]:
    """Writes which layers have a window, and which.

    Args:
        config: to write.

    Returns:
        `layer_types`, and `sliding_window` if there is one.
    """
    windows = [config.kind(layer).window for layer in range(config.num_layers)]
    layer_types = [FULL if window is None else SLIDING for window in windows]
    window = next((window for window in windows if window is not None), None)
    return {"layer_types": layer_types} | ({} if window is None else {"sliding_window": window})


def _rope_options(raw: Raw, problems: list[str]) -> list[Mapping[str, Any]]:
    """Those of each spelling that is given, the newer one first; without any, an empty mapping."""
    given = {key: raw[key] for key in ("rope_parameters", "rope_scaling") if raw.get(key)}
    if len(given) == 2:
        problems.append("rope_parameters and rope_scaling are both given, and only one can hold; leave one out")
    plain: list[Mapping[str, Any]] = []
    for key, rope in given.items():
        if isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
            plain.append(rope)
        else:
            problems.append(f"{key}={rope!r} must be an object of plain values, the same for all layers")
    return plain or [{}]


def _read_scaling(rope: Mapping[str, Any], problems: list[str]) -> LinearScaling | Llama3Scaling | None:
    name = rope.get("rope_type", rope.get("type", "default"))
    if name == "default":
        return None
    if not isinstance(name, str) or name not in _SCALINGS:
        problems.append(f"rope_type={name!r} is not supported; only 'default', {str(sorted(_SCALINGS))[1:-1]} are")
        return None
    scaling, keys = _SCALINGS[name]
    missing = [key for key in keys if not isinstance(rope.get(key), (int, float))]
    if missing:
        problems.append(f"rope_type={name!r} needs numbers for {', '.join(missing)}")
        return None
    return scaling(**{field: rope[key] for key, field in keys.items()})
