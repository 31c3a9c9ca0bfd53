import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.models.config import ComputeConfig
from jaxrlhf.models.load import load_policy, load_scalar
from jaxrlhf.sharding.mesh import make_mesh
from tests.models.tiny import SCALAR, STORIES, logits, random_params

CASES = json.loads((STORIES / "reference_outputs.json").read_text())["cases"]


@pytest.fixture(scope="module")
def stories():
    return load_policy(STORIES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:12])
def test_a_real_model_gives_the_published_numbers(stories, case):
    prompt, answer = case["input_ids"], case["greedy_new_ids"]
    row = prompt + answer
    tokens = jnp.asarray([row + [0] * (64 - len(row))])  # one length, one compilation
    out = logits(stories.model, stories.params, tokens, [[1] * len(row) + [0] * (64 - len(row))])[0]
    logprobs = jax.nn.log_softmax(out)[jnp.arange(len(prompt) - 1), jnp.asarray(prompt[1:])]
    np.testing.assert_allclose(logprobs, case["token_logprobs"], atol=1e-4)
    np.testing.assert_allclose(out[len(prompt) - 1, :16], case["last_logits_first16"], atol=1e-4)
    assert out[len(prompt) - 1 : len(row) - 1].argmax(axis=-1).tolist() == answer


def test_compute_options_reach_the_model():
    loaded = load_policy(STORIES, compute=ComputeConfig(dtype="bfloat16"))
    assert loaded.model.init_cache(1, 4).keys[0].dtype == jnp.bfloat16


def test_a_mesh_divides_the_parameters_and_names_what_stays_whole():
    loaded = load_policy(STORIES, mesh=make_mesh(1, 1, 8))
    embedding = loaded.params["embed_tokens"]["embedding"]
    assert {shard.data.shape for shard in embedding.addressable_shards} == {(64, 64)}
    # F = 172 does not divide over 8.
    assert {kept.path for kept in loaded.report.kept_whole} == {
        f"layers/mlp/{name}/kernel" for name in ("gate_proj", "up_proj", "down_proj")
    }
    assert "dimension 2 of 172 does not divide over tensor=8" in str(loaded.report)


def test_a_language_model_becomes_a_scorer_with_a_new_head(stories):
    loaded = load_scalar(STORIES, key=jax.random.key(0))
    assert loaded.config.scalar_head and loaded.model.head(loaded.params).weight.shape == (1, 64)
    assert loaded.report.initialised[0].startswith("score/kernel with normal")
    trunk = {name: leaf for name, leaf in loaded.params.items() if name != "score"}
    jax.tree.map(np.testing.assert_array_equal, trunk, stories.params)


def test_a_classifier_is_known_by_its_weights_where_the_config_leaves_the_labels_out(tmp_path):
    folder = export_hf(tmp_path / "scorer", random_params(SCALAR), SCALAR)
    raw = json.loads((folder / "config.json").read_text())
    silent = {key: value for key, value in raw.items() if key not in ("id2label", "label2id")}
    (folder / "config.json").write_text(json.dumps(silent))  # transformers does so where there are two
    assert load_scalar(folder).report.initialised == ()
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = np.repeat(tensors["score.weight"], 2, axis=0)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="the model has num_labels=2; a reward model gives each answer one score"):
        load_scalar(folder)


def test_a_scorer_keeps_its_head_and_is_not_a_policy(tmp_path):
    params = random_params(SCALAR)
    folder = export_hf(tmp_path / "reward", params, SCALAR)
    loaded = load_scalar(folder, key=jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert loaded.report.initialised == ()
    with pytest.raises(ValueError, match="is a model with a score head"):
        load_policy(folder)
