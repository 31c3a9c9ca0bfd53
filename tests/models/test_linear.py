import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.models.linear import Linear, LinearAfterActivation, Products

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
KERNEL, A, B = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in [(4, 5), (4, 2), (2, 5)])


def apply(params, products=Products(jnp.float32), bias=False, **options):  # noqa: B008, a NamedTuple
    return Linear(5, bias, products).apply({"params": params}, X, **options)


def test_a_bias_is_added():
    bias = jnp.arange(5.0)
    np.testing.assert_allclose(apply({"kernel": KERNEL, "bias": bias}, bias=True), X @ KERNEL + bias[None, None], 1e-6)


def test_adapters_add_their_scaled_product():
    out = apply({"kernel": KERNEL, "lora_a": A, "lora_b": B}, Products(jnp.float32, 0.5))
    np.testing.assert_allclose(out, X @ (KERNEL + 0.5 * A @ B), rtol=1e-5, atol=1e-5)


def test_adapters_whose_scale_nobody_gave_are_refused():
    with pytest.raises(ValueError, match="the parameters hold adapters; give make_model their LoraConfig"):
        apply({"kernel": KERNEL, "lora_a": A, "lora_b": B})


def test_adapters_whose_b_is_zero_change_no_bit():
    out = apply({"kernel": KERNEL, "lora_a": A, "lora_b": jnp.zeros_like(B)}, Products(jnp.float32, 0.5))
    np.testing.assert_array_equal(out, apply({"kernel": KERNEL}))


def test_dropout_leaves_out_what_adapters_read_and_nothing_else_and_needs_a_key():
    params = {"kernel": KERNEL, "lora_a": jnp.eye(4), "lora_b": jnp.eye(4, 5)}
    products = Products(jnp.float32, 1.0, 0.5)
    added = apply(params, products, rngs={"dropout": jax.random.key(0)}) - X @ KERNEL
    kept = jnp.abs(added[..., :4]) > 1e-4
    assert 4 < int(kept.sum()) < 20
    np.testing.assert_allclose(added[..., :4], jnp.where(kept, 2 * X, 0.0), atol=1e-5)
    np.testing.assert_allclose(apply(params, products)[..., :4], X @ KERNEL[:, :4] + X, atol=1e-5)


def test_a_kernel_in_8_bits_is_multiplied_by_the_scales_of_its_columns():
    kernel, scales = jnp.asarray(RNG.integers(-127, 128, (4, 5)), jnp.int8), jnp.asarray([0.5, 1.0, 2.0, 0.1, 0.01])
    out = apply({"kernel": kernel, "kernel_scale": scales})
    np.testing.assert_allclose(out, X @ (kernel.astype(jnp.float32) * scales[None]), rtol=1e-5, atol=1e-5)


def test_adapters_of_the_end_of_an_mlp_read_the_activated_layer():
    module = LinearAfterActivation(5, False, Products(jnp.float32, 0.5), "silu")
    out = module.apply({"params": {"kernel": KERNEL, "lora_a": A, "lora_b": B}}, (X, X + 1))
    np.testing.assert_allclose(out, (jax.nn.silu(X) * (X + 1)) @ (KERNEL + 0.5 * A @ B), rtol=1e-5, atol=1e-5)


def test_only_adapters_have_gradients_where_only_they_are_differentiated():
    kernel, scaled = jnp.asarray(RNG.integers(-127, 128, (4, 5)), jnp.int8), Products(jnp.float32, 1.0)

    def loss(adapters):
        return jnp.sum(jnp.square(apply({"kernel": kernel, "kernel_scale": jnp.ones(5), **adapters}, scaled)))

    grads = jax.grad(loss)({"lora_a": A, "lora_b": B})
    out = apply({"kernel": kernel, "kernel_scale": jnp.ones(5), "lora_a": A, "lora_b": B}, scaled)
    np.testing.assert_allclose(grads["lora_b"], jnp.einsum("btr,btf->rf", X @ A, 2 * out), rtol=1e-4)
