"""Compiled programs, kept for the next process: where, which, and how much of them.

jax reads its settings from the environment when it is imported, so nothing here needs jax, and processes that a command
starts inherit them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

log = logging.getLogger(__name__)

OFF = "off"
"""Stands for a folder where no programs are to be kept."""

MOST_BYTES = 2**31
"""Of all programs in the folder; those that were not used for longest go first. A train step has 0.3 MB on a CPU."""

WORTH_KEEPING_S = 0.2
"""Programs that compile faster are not kept."""


def keep_programs(folder: str | None, environ: MutableMapping[str, str]) -> None:
    """Makes jax look for programs in a folder, and keep there what it compiles; call it before jax is imported.

    A program is found again by all that it was made from: computation, shapes, devices, flags, versions. It is the same
    machine code, so nothing that is computed changes. Several processes may share a folder, which is locked while one
    of them reads or writes. Where it cannot be written, this is logged, and every program is compiled anew.

    Args:
        folder: where; "off" for nowhere. None: what JAX_COMPILATION_CACHE_DIR says, with jax's own limits, or else
            jaxrlhf/compiled in the user's cache folder.
        environ: the environment that jax will read.
    """
    if folder == OFF:
        environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    if folder is None and "JAX_COMPILATION_CACHE_DIR" in environ:
        return
    try:
        path = _user_cache(environ) / "jaxrlhf" / "compiled" if folder is None else Path(folder).absolute()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # the user's alone: what lies there is run
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RuntimeError) as error:
        log.warning("compiled programs are not kept for the next time (%s); name a folder with --cache", error)
        return
    environ["JAX_COMPILATION_CACHE_DIR"] = str(path)
    environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MOST_BYTES))
    environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(WORTH_KEEPING_S))


def _user_cache(environ: MutableMapping[str, str]) -> Path:
    """The folder for what can be made again, as the XDG base directory specification has it."""
    named = Path(environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"  # a relative one is to be ignored
