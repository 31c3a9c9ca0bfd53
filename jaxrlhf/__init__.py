"""jaxrlhf: learning from human preferences in JAX.

Importing this package imports nothing else: `import jaxrlhf.losses` costs jax and chex, `jaxrlhf --help` neither.
"""

__version__ = "0.1.0"
