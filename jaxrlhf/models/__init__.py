"""The decoder as pure functions, and published weights in and out of it. Only here is flax.linen imported."""
