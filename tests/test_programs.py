import os
import subprocess
import sys

import pytest

from jaxrlhf.programs import MOST_BYTES, keep_programs


def test_programs_are_kept_in_the_users_cache(tmp_path):
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_programs(None, environ)
    assert environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "jaxrlhf" / "compiled")
    assert environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(MOST_BYTES)


@pytest.mark.parametrize("named", [{}, {"XDG_CACHE_HOME": "relative"}])
def test_the_users_cache_is_in_the_home(tmp_path, monkeypatch, named):
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_programs(None, named)
    assert named["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache" / "jaxrlhf" / "compiled")


def test_folder_is_the_users_alone(tmp_path):
    keep_programs(str(tmp_path / "programs"), {})
    assert (tmp_path / "programs").stat().st_mode & 0o777 == 0o700


def test_folder_of_the_environment_and_its_limits_stay(tmp_path):
    environ = {"JAX_COMPILATION_CACHE_DIR": "there", "XDG_CACHE_HOME": str(tmp_path)}
    keep_programs(None, environ)
    assert environ == {"JAX_COMPILATION_CACHE_DIR": "there", "XDG_CACHE_HOME": str(tmp_path)}
    assert list(tmp_path.iterdir()) == []


def test_named_folder_goes_before_that_of_the_environment(tmp_path):
    environ = {"JAX_COMPILATION_CACHE_DIR": "there", "JAX_COMPILATION_CACHE_MAX_SIZE": "7"}
    keep_programs(str(tmp_path), environ)
    assert environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
    assert environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == "7"


def test_off_keeps_nothing():
    environ = {"JAX_COMPILATION_CACHE_DIR": "there"}
    keep_programs("off", environ)
    assert environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"


def test_folder_that_cannot_be_written_is_said_and_left(tmp_path, caplog):
    (tmp_path / "file").touch()
    environ = {}
    keep_programs(str(tmp_path / "file" / "programs"), environ)
    assert environ == {}
    assert len(caplog.records) == 1
    assert "name a folder with --cache" in caplog.text


_PROGRAM = """
import os, sys
from jaxrlhf.programs import keep_programs
keep_programs(sys.argv[1], os.environ)
import jax, jax.numpy as jnp, numpy as np
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
product = jax.jit(lambda x: jnp.sin(x) @ x.T)(np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8))
print(events.count("/jax/compilation_cache/cache_hits"), np.asarray(product).tobytes().hex())
"""


def test_next_process_finds_the_program_and_computes_the_same_bits(tmp_path):
    environ = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    runs = [subprocess.run(command, env=environ, capture_output=True, text=True, check=True) for _ in range(2)]
    (_, compiled), (hits, loaded) = (run.stdout.split() for run in runs)
    assert int(hits) > 0
    assert loaded == compiled
