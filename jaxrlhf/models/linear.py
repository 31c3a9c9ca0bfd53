"""Products with the matrices of a block: biases, adapters beside them, and matrices that are kept in 8 bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrlhf.models.config import Activation
from jaxrlhf.ops.project import activated, project, project_activated

INIT_STD = 0.02
"""Standard deviation of fresh weights, as in the published configs (`initializer_range`)."""

_PROJECTION = "projection"

keep_projections = jax.checkpoint_policies.save_only_these_names(_PROJECTION)
"""A policy for `jax.checkpoint`: keeps what `Linear` gives, which is a sum where there are biases or adapters."""

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class Products(NamedTuple):
    """How products are computed.

    Attributes:
        dtype: of activations and products.
        adapter_scale: factor of what adapters add; None refuses parameters that have any.
        adapter_dropout: share of what adapters read that is left out where there is a key, in [0, 1).
    """

    dtype: Any
    adapter_scale: float | None = None
    adapter_dropout: float = 0.0


class Linear(nn.Module):
    """x @ kernel + bias, plus scale * (x @ lora_a) @ lora_b where the parameters have adapters (Hu et al. 2022).

    A kernel in 8 bits has a scale a column, `kernel_scale`, which the product is multiplied by.

    Attributes:
        width: of the result, F.
        bias: whether there is one.
        products: how products are computed.
    """

    width: int
    bias: bool
    products: Products

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., F]."""
        kernel = _kernel(self, x.shape[-1])
        return _finish(self, project(x, kernel), x)


class LinearAfterActivation(nn.Module):
    """The end of an MLP: `Linear` of the activated hidden layer, which is computed again in the backward pass.

    Attributes:
        width: of the result, D.
        bias: whether there is one.
        products: how products are computed.
        activation: name of the activation.
    """

    width: int
    bias: bool
    products: Products
    activation: Activation

    @nn.compact
    def __call__(self, hidden: tuple[jax.Array, ...]) -> jax.Array:
        """Maps `ops.project.activated`'s arguments, [..., F] each, to [..., D]."""
        activate = _ACTIVATIONS[self.activation]
        kernel = _kernel(self, hidden[0].shape[-1])
        product: Any = project_activated(activate, hidden, kernel)
        return _finish(self, product, activated(activate, hidden) if _has(self, "lora_a") else hidden[0])


def _kernel(module: Linear | LinearAfterActivation, inputs: int) -> jax.Array:
    kernel = module.param("kernel", nn.initializers.normal(INIT_STD), (inputs, module.width), jnp.float32)
    return kernel.astype(module.products.dtype)


def _finish(module: Linear | LinearAfterActivation, product: jax.Array, x: jax.Array) -> jax.Array:
    """What comes after the product with the kernel; x is what it was multiplied with."""
    dtype, scale, dropout = module.products

    def given(name: str) -> jax.Array:
        return module.get_variable("params", name).astype(dtype)

    def along(vector: jax.Array) -> jax.Array:
        return vector.reshape((1,) * (product.ndim - 1) + vector.shape)

    if _has(module, "kernel_scale"):
        scales = along(module.get_variable("params", "kernel_scale"))
        product = (product.astype(jnp.float32) * scales).astype(dtype)
    if _has(module, "lora_a"):
        if scale is None:
            raise ValueError("the parameters hold adapters; give make_model their LoraConfig, or merge them")
        kept = nn.Dropout(dropout, deterministic=not module.has_rng("dropout"))(x)
        product = product + scale * project(project(kept, given("lora_a")), given("lora_b"))
    if module.bias:
        bias = module.param("bias", nn.initializers.zeros, (module.width,), jnp.float32)
        product = product + along(bias.astype(dtype))
    return checkpoint_name(product, _PROJECTION)


def _has(module: nn.Module, name: str) -> bool:
    return module.has_variable("params", name)
