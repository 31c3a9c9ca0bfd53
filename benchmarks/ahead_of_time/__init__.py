"""Compiling for accelerators that are not there: what a program needs of a device, and what the compiler made of it.

    python -m benchmarks.ahead_of_time head      # temporaries of the head: naive, linear_logprobs, fused_token_loss
    python -m benchmarks.ahead_of_time train     # the step of supervised fine-tuning of a 1B model: bytes a device
    python -m benchmarks.ahead_of_time decode    # the sampler with an 8B model: bytes a device, what a step copies

The compilers of TPU and of NVIDIA GPU run without either: `pip install "jax[tpu]" "jax[cuda13-local]"`, all in one
environment if wished, and for the latter `nvidia-cuda-nvcc` (`ptxas`) and `nvidia-cudnn-cu13` (attention). Bytes are
exact, since the compiler plans all memory; speed and numbers are not checked by this.
"""

from benchmarks.ahead_of_time.targets import compile_for as compile_for
from benchmarks.ahead_of_time.targets import devices as devices
from benchmarks.ahead_of_time.targets import mesh_for as mesh_for
