import copy
import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

from jaxrlhf.checkpoint.card import render_card
from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.models.config import LayerKind
from jaxrlhf.models.decoder import make_model
from jaxrlhf.models.load import load_policy, load_scalar
from jaxrlhf.models.quantized import as_float32, keep_as
from jaxrlhf.models.rope_config import Llama3Scaling
from jaxrlhf.sharding.mesh import make_mesh
from jaxrlhf.sharding.rules import shardings_for
from tests.checkpoint.test_card import CARD
from tests.models.tiny import SCALAR, STORIES, TINY, logits, random_params, random_tokens

TIED = dataclasses.replace(TINY, tie_embeddings=True)
SCALING = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16)
STRETCHED = dataclasses.replace(TINY, pattern=(LayerKind(rope_theta=500.0, rope_scaling=SCALING),))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(STORIES)


def read(file):
    return json.loads(file.read_text())


@pytest.mark.parametrize("config", [TINY, TIED, SCALAR], ids=["untied", "tied", "scalar"])
def test_parameters_come_back_bit_for_bit(tmp_path, config):
    params = random_params(config)
    load = load_scalar if config.scalar_head else load_policy
    loaded = load(export_hf(tmp_path / "out", params, config))
    assert loaded.config == config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_a_published_file_comes_back_bit_for_bit(tmp_path):
    loaded = load_policy(STORIES)
    again = load_policy(export_hf(tmp_path / "out", loaded.params, loaded.config))
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


@pytest.mark.parametrize(("dtype", "published"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_halves_are_the_rounded_values(tmp_path, dtype, published):
    params = random_params(TINY)
    loaded = load_policy(export_hf(tmp_path / "out", params, TINY, dtype=dtype))
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, rounded)
    assert loaded.report.dtypes == {published: 30} and read(tmp_path / "out" / "config.json")["torch_dtype"] == dtype


def test_a_weight_that_float16_cannot_hold_is_named(tmp_path):
    params = random_params(TINY)
    params["layers"]["mlp"]["up_proj"]["kernel"] = params["layers"]["mlp"]["up_proj"]["kernel"].at[1, 3, 4].set(-7e4)
    with pytest.raises(
        ValueError, match=r"model.layers.1.mlp.up_proj.weight .*holds 7e\+04, and float16 ends at 6.55e"
    ):
        export_hf(tmp_path / "out", params, TINY, dtype="float16")
    assert list(tmp_path.iterdir()) == []
    export_hf(tmp_path / "out", params, TINY, dtype="bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_base_kept_in_fewer_bits_is_written_as_what_it_stands_for(tmp_path, dtype):
    kept = keep_as(random_params(TINY), dtype)
    loaded = load_policy(export_hf(tmp_path / "out", kept, TINY))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, as_float32(kept))


def test_adapters_are_not_lost_silently(tmp_path):
    params = random_params(TINY)
    params["layers"]["self_attn"]["q_proj"] |= {"lora_a": jnp.ones((3, 32, 2)), "lora_b": jnp.ones((3, 2, 32))}
    with pytest.raises(ValueError, match="adapters .layers/self_attn/q_proj/lora_a and 1 more.*merge them"):
        export_hf(tmp_path / "out", params, TINY)


def test_large_weights_are_written_as_shards_that_read_back(tmp_path):
    params = random_params(TINY)
    folder = export_hf(tmp_path / "out", params, TINY, shard_bytes=30_000)
    index = read(folder / "model.safetensors.index.json")
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(file.name for file in folder.glob("*.safetensors")) and len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, load_policy(folder).params, params)


def test_sharded_parameters_are_written_whole(tmp_path):
    params = random_params(TINY)
    spread = jax.device_put(params, shardings_for(params, make_mesh(2, 2, 2))[0])
    loaded = load_policy(export_hf(tmp_path / "out", spread, TINY))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_nothing_appears_if_a_weight_is_not_finite(tmp_path):
    params = random_params(TINY)
    params["norm"]["scale"] = params["norm"]["scale"].at[3].set(jnp.nan)
    with pytest.raises(ValueError, match=r"model.norm.weight \(norm/scale\) holds NaN"):
        export_hf(tmp_path / "out", params, TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path):
    with pytest.raises(ValueError, match="exists; export to a new folder"):
        export_hf(tmp_path, random_params(TINY), TINY)


def test_parameters_of_another_config_are_named(tmp_path):
    params = random_params(TINY)
    del params["lm_head"]
    params["norm"]["scale"] = jnp.ones(5)
    with pytest.raises(ValueError) as error:
        export_hf(tmp_path / "out", params, TINY)
    assert str(error.value).splitlines()[1:] == [
        "  lm_head/kernel: shape None, expected (64, 32)",
        "  norm/scale: shape (5,), expected (32,)",
    ]


def test_token_ids_and_tokenizer_are_written(tmp_path, tokenizer):
    folder = export_hf(tmp_path / "out", random_params(TINY), TINY, tokenizer=tokenizer, eos_token_ids=[1, 2])
    assert read(folder / "generation_config.json") == {"bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": 0}
    assert read(folder / "config.json")["eos_token_id"] == [1, 2]
    text = "Once upon a time, Lily saw a dog."
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_chat_template_and_the_card_are_written(tmp_path, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    folder = export_hf(tmp_path / "out", random_params(TINY), TINY, tokenizer=tokenizer, card=CARD)
    spoken = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    assert spoken == "hi"
    assert (folder / "README.md").read_text() == render_card(CARD)


def test_a_scorer_whose_padding_ends_answers_has_no_padding_id(tmp_path, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        folder = export_hf(tmp_path / "out", random_params(SCALAR), SCALAR, tokenizer=tokenizer, eos_token_ids=[0])
    assert read(folder / "config.json")["pad_token_id"] is None
    assert "pad_token_id=0 also ends answers" in caplog.text
    assert not (folder / "generation_config.json").exists()


@pytest.mark.parity
def test_transformers_loads_the_shards_of_a_policy_with_the_same_logits(tmp_path, tokenizer):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    params = random_params(STRETCHED)
    folder = export_hf(tmp_path / "out", params, STRETCHED, tokenizer=tokenizer, shard_bytes=30_000)
    peer, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and peer.dtype == torch.float32
    tokens = random_tokens(2, 24)
    with torch.no_grad():
        expected = peer(torch.tensor(np.asarray(tokens))).logits.numpy()
    np.testing.assert_allclose(logits(make_model(STRETCHED), params, tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parity
def test_transformers_loads_a_reward_model_with_one_label_and_the_same_scores(tmp_path, tokenizer):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    params = random_params(SCALAR)
    folder = export_hf(tmp_path / "out", params, SCALAR, tokenizer=tokenizer)
    peer, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and peer.config.num_labels == 1
    tokens = random_tokens(2, 9).at[:].max(1).at[1, 6:].set(0)  # 0 pads the second row on the right
    mask = np.asarray(tokens != 0).astype(np.int32)
    with torch.no_grad():
        expected = peer(torch.tensor(np.asarray(tokens)), attention_mask=torch.tensor(mask)).logits.numpy()
    scores = logits(make_model(SCALAR), params, tokens, mask)[:, :, 0]
    np.testing.assert_allclose(scores[jnp.arange(2), jnp.asarray([8, 5])], expected[:, 0], atol=1e-4, rtol=1e-4)
