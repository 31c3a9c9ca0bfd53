import io
import os
import subprocess
import sys
import time

import pytest

from jaxrlhf.sharding.launch import launch


def _launch(code, **options):
    stream = io.StringIO()
    status = launch([sys.executable, "-c", code], stream=stream, **options)
    return status, sorted(stream.getvalue().splitlines())


def test_each_process_is_told_its_place():
    code = (
        "import os; e = os.environ; "
        "print(e['JAXRLHF_PROCESS_ID'], e['JAXRLHF_NUM_PROCESSES'], e['JAXRLHF_COORDINATOR'].split(':')[0])"
    )
    assert _launch(code, processes=2) == (0, ["[0] 0 2 127.0.0.1", "[1] 1 2 127.0.0.1"])


def test_devices_are_asked_for_after_the_users_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    code = "import os; print(os.environ['XLA_FLAGS'])"
    assert _launch(code, processes=1, devices=3) == (0, ["[0] --mine --xla_force_host_platform_device_count=3"])


def test_first_failure_stops_the_others():
    code = "import os, sys, time; sys.exit(7) if os.environ['JAXRLHF_PROCESS_ID'] == '1' else time.sleep(60)"
    start = time.monotonic()
    assert _launch(code, processes=2)[0] == 7
    assert time.monotonic() - start < 30


def test_death_by_signal_is_a_failure():
    assert _launch("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", processes=1)[0] == 128 + 9


def test_no_process_is_an_error():
    with pytest.raises(ValueError, match="processes=0"):
        launch(["true"], processes=0)


def test_script_passes_the_command_and_its_status_on():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    script = [sys.executable, os.path.join(root, "scripts/launch/local.py"), "--processes", "2"]
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)", "--config", "x"]
    environment = os.environ | {"PYTHONPATH": root}
    result = subprocess.run([*script, *command], capture_output=True, text=True, env=environment)
    assert result.returncode == 3
    assert "] ['--config', 'x']" in result.stdout
