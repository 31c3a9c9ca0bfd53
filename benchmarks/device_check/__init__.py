"""What the library does on the accelerator of this machine: is it right, how fast, beside which other libraries.

`scripts/gpu_check` and `scripts/tpu_check` run it; see docs/device_check.md.
"""
