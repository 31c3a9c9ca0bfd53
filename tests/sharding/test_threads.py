import os

import pytest

from jaxrlhf.sharding.threads import spare_threads


@pytest.mark.parametrize(("cores", "devices", "threads"), [(2, 1, "16"), (2, 8, "72"), (128, 8, "128")])
def test_a_device_has_threads_to_wait_in(monkeypatch: pytest.MonkeyPatch, cores: int, devices: int, threads: str):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    environ: dict[str, str] = {}
    spare_threads(environ, devices)
    assert environ == {"PJRT_NPROC": threads}


def test_a_number_that_is_set_is_left_alone():
    environ = {"PJRT_NPROC": "3"}
    spare_threads(environ, 8)
    assert environ == {"PJRT_NPROC": "3"}
