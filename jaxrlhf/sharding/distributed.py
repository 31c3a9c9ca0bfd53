"""Many processes, one program: start-up of `jax.distributed`."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

_VARIABLES = ("JAXRLHF_COORDINATOR", "JAXRLHF_NUM_PROCESSES", "JAXRLHF_PROCESS_ID")


def initialize() -> None:
    """Joins the other processes of a run, if there are any; call it before anything else touches a device.

    Processes find each other through, in this order:

    - JAXRLHF_COORDINATOR (host:port), JAXRLHF_NUM_PROCESSES and JAXRLHF_PROCESS_ID, set by a launcher;
    - JAXRLHF_CLUSTER, the `cluster_detection_method` of `jax.distributed.initialize`: Cloud TPU virtual machines need
      "gcetpu" here, since no variable tells them from a machine by itself;
    - what jax detects, where the variables of SLURM (one task a device), TPUs on Kubernetes, indexed Kubernetes jobs
      (needs the `kubernetes` package) or Open MPI speak of several processes.

    Calling it again does nothing, nor does calling it on a machine by itself.

    Raises:
        ValueError: if a launcher set some of its variables and not others, or not to numbers.
    """
    if jax.distributed.is_initialized():
        return
    launched = _launched(os.environ)
    if launched is not None:
        coordinator, processes, process = launched
        jax.distributed.initialize(coordinator, processes, process)
        return
    if _in_cluster(os.environ):
        jax.distributed.initialize(cluster_detection_method=os.environ.get("JAXRLHF_CLUSTER"))


def is_main() -> bool:
    """Whether this is process 0, which writes what must be written once."""
    return jax.process_index() == 0


def _launched(environ: Mapping[str, str]) -> tuple[str, int, int] | None:
    found = {name: environ[name] for name in _VARIABLES if name in environ}
    if not found:
        return None
    missing = [name for name in _VARIABLES if name not in found]
    if missing:
        raise ValueError(f"{', '.join(found)} are set but {', '.join(missing)} are not; set all three or none")
    coordinator, processes, process = (found[name] for name in _VARIABLES)
    if not processes.isdigit() or not process.isdigit() or int(process) >= int(processes):
        raise ValueError(
            f"JAXRLHF_NUM_PROCESSES={processes!r} and JAXRLHF_PROCESS_ID={process!r} must be whole numbers, "
            "the second from 0 and below the first"
        )
    return coordinator, int(processes), int(process)


def _in_cluster(environ: Mapping[str, str]) -> bool:
    # One task of SLURM by itself is left alone: jax would hide all but one of its devices.
    slurm = "SLURM_STEP_NODELIST" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1
    tpus = "," in environ.get("TPU_WORKER_HOSTNAMES", "") or int(environ.get("MEGASCALE_NUM_SLICES", "1")) > 1
    kubernetes = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
    open_mpi = int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    return "JAXRLHF_CLUSTER" in environ or slurm or tpus or kubernetes or open_mpi
