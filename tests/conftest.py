"""What every test runs under: eight simulated CPU devices, one compilation cache, and strict numpy promotion."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

# All of this is read once, when jax is imported, and by the processes that tests start.
_CACHE = Path(__file__).parents[1] / ".cache" / "jax"
_CACHE.mkdir(parents=True, exist_ok=True)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network must say so
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PJRT_NPROC", "72")  # threads to wait in for each of eight devices: see sharding/threads.py

_xla_flags = ["--xla_force_host_platform_device_count=8", os.environ.get("XLA_FLAGS", "")]  # a flag given later wins
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker is one core's worth: pools of threads would only fight
    _xla_flags.insert(0, "--xla_cpu_multi_thread_eigen=false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = " ".join(_xla_flags).strip()

import jax  # noqa: E402  (after the environment it reads)

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Generator[None, None, None]:
    """Drops the compiled programs of a module behind it: of a thousand tests they would fill gigabytes."""
    yield
    jax.clear_caches()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-parity", action="store_true", help="a parity test that is skipped fails")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.get_closest_marker("parity") and not hasattr(report, "wasxfail"):
        _fail_if_required(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and "could not import" in str(report.longrepr):  # a module without what it compares with
        _fail_if_required(collector.config, report)
    return report


def _fail_if_required(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    if config.getoption("--require-parity"):
        report.longrepr = f"skipped, but --require-parity is given: {report.longrepr}"
        report.outcome = "failed"
