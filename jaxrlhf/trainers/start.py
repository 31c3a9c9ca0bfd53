"""What a run starts from: a model's config, parameters and tokenizer, from a folder, a hub id or memory."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxrlhf.models.config import ModelConfig
from jaxrlhf.models.folder import FAMILIES, find_folder, lineage, read_config
from jaxrlhf.models.load import load_policy, load_scalar
from jaxrlhf.models.lora import merge
from jaxrlhf.models.lora_config import BaseDType, LoraConfig
from jaxrlhf.models.peft import whole_name
from jaxrlhf.models.quantized import keep_as
from jaxrlhf.sharding.rules import shardings_for
from jaxrlhf.trainers.vocabulary import check_generation_config, check_vocabulary
from jaxrlhf.types import Params

log = logging.getLogger(__name__)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""The files that transformers makes a tokenizer from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """A model in memory.

    Attributes:
        config: its sizes and options.
        params: its parameters, float32 but for those of a base that was kept otherwise.
        tokenizer: a transformers tokenizer.
        stops: tokens that end an answer; None means the tokenizer's end-of-sequence token.
        lora: of adapters among the parameters, which `make_model` takes too; None where there are none.
        base: name of the whole model that it was loaded from, under all adapters; None for one in memory.
        earlier: adapters that were added to that one when it was loaded, the innermost first.
    """

    config: ModelConfig
    params: Params = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(repr=False)
    stops: tuple[int, ...] | None = None
    lora: LoraConfig | None = None
    base: str | None = None
    earlier: tuple[Params, ...] = dataclasses.field(default=(), repr=False)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return (self.tokenizer.eos_token_id,) if self.stops is None else self.stops


def resolve(name: str) -> str:
    """The Hugging Face folder that a name stands for: a run's folder stands for its export, anything else for itself.

    Raises:
        ValueError: if the name is empty, or a run that was not finished.
    """
    if not name:
        raise ValueError("no model is named; set model to a Hugging Face folder, a hub id or the folder of a run")
    folder = Path(name)
    if not (folder / "metrics.jsonl").exists():
        return name
    if not (folder / "export").is_dir():
        raise ValueError(f"{folder} is a run that has no export yet; run its command again to finish it")
    return str(folder / "export")


def public_name(name: str) -> str | None:
    """The name of a model that others find it by: a hub id as it is, a folder from the root; None for no name."""
    if not name:
        return None
    folder = Path(resolve(name))
    return str(folder.resolve()) if folder.is_dir() else name


def load_start(
    name: str,
    mesh: Mesh,
    *,
    what: str = "model",
    scalar: bool = False,
    new_head: bool = False,
    dtype: BaseDType = "float32",
) -> Start:
    """Loads a model straight onto the mesh.

    Args:
        name: see `resolve`.
        mesh: where the parameters go.
        what: the option that names it, for messages.
        scalar: whether the model must have a scalar head rather than an unembedding.
        new_head: whether a language model gets a scalar head of zeros, where `scalar` asks for one.
        dtype: that its parameters are kept in.

    Raises:
        ValueError: if its head is of the other kind, it and its tokenizer do not fit together, or see `models.load`.
    """
    from transformers import AutoTokenizer

    folder = find_folder(resolve(name))
    config, base = read_config(folder), lineage(folder)[-1]
    if not new_head:
        _check_head(config, f"{what}={name}", scalar=scalar)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(folder))
    check_generation_config(config, base)
    stops = stop_ids(tokenizer, base)
    check_vocabulary(config, tokenizer, stops, f"{what}={name}")
    loaded = (load_scalar if scalar else load_policy)(folder, mesh=mesh, dtype=dtype)
    log.info("%s", loaded.report)
    return Start(
        config=loaded.config,
        params=loaded.params,
        tokenizer=tokenizer,
        stops=stops,
        base=whole_name(folder, resolve(name)),
        earlier=loaded.adapters,
    )


def tokenizer_folder(folder: Path) -> Path:
    """The folder with the tokenizer of a model; that of an adapter may have none of its own.

    Raises:
        ValueError: if there is none.
    """
    for place in lineage(folder):
        if any((place / name).exists() for name in TOKENIZER_FILES):
            return place
    raise ValueError(f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}); a model folder needs one of these")


def take_start(
    name: str | None,
    given: Start | None,
    mesh: Mesh,
    *,
    what: str = "model",
    scalar: bool = False,
    new_head: bool = False,
    dtype: BaseDType = "float32",
) -> Start:
    """A model in memory, copied to where the rules put it, or else the one that is named; the rest is `load_start`'s.

    Its parameters belong to the caller alone, who may donate them. Adapters that it had are merged.

    Raises:
        ValueError: as `load_start`; or if the format in which a run ends cannot say what the model computes.
    """
    if given is not None and name:
        raise ValueError(f"{what} is in memory, and {what}={name} in the config; keep one of them")
    if given is None:
        start = load_start(name or "", mesh, what=what, scalar=scalar, new_head=new_head, dtype=dtype)
        _check_format(start.config, f"{what}={name}")
        return start
    if not isinstance(given, Start):
        raise TypeError(f"{what} is {given!r}; in memory it is a trainers.start.Start, by name it goes into the config")
    start = scalar_start(given) if scalar and new_head else given
    _check_head(start.config, what, scalar=scalar)
    _check_format(start.config, what)
    check_vocabulary(start.config, start.tokenizer, start.eos_ids, what)
    return dataclasses.replace(start, params=own_copy(start, mesh, dtype), lora=None, base=None, earlier=())


def scalar_start(start: Start) -> Start:
    """The model itself if it has a scalar head, else its trunk with a scalar head of zeros."""
    if start.config.scalar_head:
        return start
    params = {name: value for name, value in start.params.items() if name != "lm_head"}
    params["score"] = {"kernel": jnp.zeros((1, start.config.hidden_size), jnp.float32)}
    return dataclasses.replace(start, config=dataclasses.replace(start.config, scalar_head=True), params=params)


def take_reference(
    name: str | None, given: Start | None, policy: Start, lora: LoraConfig, mesh: Mesh, *, model: str
) -> dict[str, Params]:
    """The parameters of a reference: one in memory, one that is named, or else a copy of the policy's own.

    Args:
        name: of the reference, see `resolve`; or None.
        given: the reference in memory, or None.
        policy: what the run starts from.
        lora: adapters that are trained.
        mesh: where the parameters go.
        model: name of what the run starts from; empty if it is in memory.

    Returns:
        Them under "reference"; or nothing, if the reference is the base that the policy's adapters stand over.

    Raises:
        ValueError: if the reference is another model than the policy, or the base that its adapters stand over.
    """
    if given is None and name is None:
        return {"reference": own_copy(policy, mesh)} if lora.rank is None else {}
    if lora.rank is not None and name and public_name(name) == public_name(model):
        raise ValueError(
            f"reference={name} is the model itself, which needs no second copy: without its adapters it is the "
            "reference already; leave reference out"
        )
    reference = take_start(name, given, mesh, what="reference", dtype=lora.base)
    if reference.config != policy.config:
        raise ValueError(f"the reference is another model than the policy: {reference.config} against {policy.config}")
    check_same_tokens(policy, reference, "the reference")
    return {"reference": reference.params}


def check_same_tokens(start: Start, other: Start, what: str) -> None:
    """Refuses a model that would read the policy's tokens as others.

    Raises:
        ValueError: naming tokens that differ.
    """
    ours, theirs = start.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if ours != theirs:
        some = sorted({token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token)})[:5]
        raise ValueError(
            f"{what} has another tokenizer than the policy (they differ in {some}); use one that shares it"
        )


def check_positions(start: Start, longest: int, remedy: str) -> None:
    """Refuses sequences that are longer than the model was made for.

    Args:
        start: the model.
        longest: tokens of the longest sequence.
        remedy: what makes them shorter, e.g. "lower data.max_length".

    Raises:
        ValueError: if it has fewer positions.
    """
    most = start.config.max_positions
    if longest > most:
        raise ValueError(f"the longest sequence has {longest} tokens, and the model {most} positions; {remedy}")


def own_copy(start: Start, mesh: Mesh, dtype: BaseDType = "float32") -> Params:
    """A copy of the parameters where the rules put them: a step donates its state, and others may hold the original.

    Args:
        start: the model, whose adapters are merged if it has any.
        mesh: where the copy goes.
        dtype: that it is kept in.
    """

    def copy(params: Params) -> Params:
        whole = params if start.lora is None else merge(params, start.lora.scale)
        return jax.tree.map(jnp.copy, keep_as(whole, dtype))

    shardings, kept = shardings_for(jax.eval_shape(copy, start.params), mesh)
    for line in kept:
        log.info("%s", line)
    spread, _ = shardings_for(start.params, mesh)
    placed = jax.device_put(start.params, spread)  # from whatever devices they are on, but perhaps the same arrays
    return jax.jit(copy, out_shardings=shardings)(placed)


def _check_head(config: ModelConfig, what: str, *, scalar: bool) -> None:
    if scalar and not config.scalar_head:
        raise ValueError(f"{what} is a language model, and a reward model is needed here; train one: jaxrlhf reward")
    if config.scalar_head and not scalar:
        raise ValueError(f"{what} is a reward model, and a language model is needed here")


def _check_format(config: ModelConfig, what: str) -> None:
    """Refuses before the first step what could not be written after the last."""
    try:
        FAMILIES[config.model_type].write_config(config)
    except ValueError as error:
        raise ValueError(f"{what} could not be exported: {error}") from error


def stop_ids(tokenizer: Any, folder: Path) -> tuple[int, ...]:
    """The tokens that end an answer: those of the folder's generation_config.json, and the tokenizer's own."""
    path = folder / "generation_config.json"
    stops = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    listed = stops if isinstance(stops, list) else [stops]
    return tuple(sorted({*listed, tokenizer.eos_token_id} - {None}))
