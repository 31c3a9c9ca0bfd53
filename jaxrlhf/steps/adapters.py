"""Models whose trained parameters are adapters: losses and judges of whole parameters, turned into such of adapters.

What is trained is a partial tree with the paths of the whole one; `frozen` holds, once, what it is laid over. Several
models may stand over one base: the reference of a policy is its base with no adapters, a critic the same base with
others. Whoever computes is given whole parameters and knows nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxrlhf.ops.trees import overlay
from jaxrlhf.steps.experience import Experience, JudgeFn
from jaxrlhf.types import Params

Bases = Mapping[str, str]
"""Name of a model, such as "policy" -> name of the frozen parameters that its own are laid over, such as "base"."""

WHOLE: Bases = {}
"""Every model has all parameters itself."""


def everyone(own: Mapping[str, Params], frozen: Mapping[str, Params], bases: Bases) -> dict[str, Params]:
    """The whole parameters of all models; nothing is computed or copied.

    Args:
        own: parameters of the models that are trained, by name.
        frozen: parameters that nobody trains, by name.
        bases: which are laid over which. A model that has no parameters of its own is its base.

    Returns:
        Parameters by name: of models in `own`, in `frozen`, and in `bases`.
    """
    models = {**frozen, **own}
    return models | {name: overlay(frozen[base], models.get(name, {})) for name, base in bases.items()}


def loss_over(function: Callable[..., Any], name: str, bases: Bases) -> Callable[..., Any]:
    """A `LossFn` or `CouplingFn` of whole parameters as one of the model's own, which it differentiates.

    Args:
        function: it finds the other models, whole, in its `frozen`.
        name: of the model in `bases`.
        bases: see `everyone`.
    """
    if name not in bases:
        return function

    def over_base(own: Params, frozen: Mapping[str, Params], *others: Any) -> Any:
        models = everyone({name: own}, frozen, bases)
        return function(models[name], models, *others)

    return over_base


def judge_over(judge: JudgeFn, bases: Bases) -> JudgeFn:
    """A `JudgeFn` of whole parameters as one of the models' own; see `everyone`."""

    def over_bases(trained: Mapping[str, Params], frozen: Mapping[str, Params], *others: Any) -> Experience:
        models = everyone(trained, frozen, bases)
        return judge(models, models, *others)

    return over_bases if bases else judge
