"""Low-rank adapters, as a config names them: plain data, readable without jax."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrlhf.config_checks import check, is_pattern, positive

BaseDType = Literal["float32", "bfloat16", "int8"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022): W x + scale * B (A x), where W stays as it is and A and B are trained.

    Attributes:
        rank: rows of A and columns of B, positive; None trains all parameters and has no adapters.
        alpha: the scale is alpha / rank; positive; None means 2 * rank.
        rslora: whether the scale is alpha / sqrt(rank) instead (Kalajdzievski 2023).
        dropout: share of what A reads that is left out in training, in [0, 1).
        targets: patterns of matrices that get adapters: regular expressions, each of which must match all of the end of
            a path such as `layers/self_attn/q_proj`. Unless said, all matrices of the blocks.
        base: dtype that the base is kept in, and a reference or reward model beside it: "float32", "bfloat16", or
            "int8": the matrices of the blocks with a scale a column, the rest in bfloat16.
    """

    rank: int | None = None
    alpha: float | None = None
    rslora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = (".*_proj",)
    base: BaseDType = "float32"

    def __post_init__(self) -> None:
        """Checks ranges, and that nothing is asked for without adapters."""
        check(
            self,
            *positive(self, "rank", "alpha"),
            (0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)"),
            (bool(self.targets), "targets is empty; name one matrix at least, such as q_proj"),
            *((is_pattern(target), f"targets: {target!r} is no regular expression") for target in self.targets),
            *(
                (
                    self.rank is not None or getattr(self, field.name) == field.default,
                    f"{field.name} has no effect without rank; set a rank, such as 16",
                )
                for field in dataclasses.fields(self)
            ),
        )

    @property
    def scale(self) -> float:
        """The factor of what adapters add."""
        assert self.rank is not None, "there are no adapters without a rank"
        return self.used_alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def used_alpha(self) -> float:
        """Alpha, as it is where none is given."""
        assert self.rank is not None, "there are no adapters without a rank"
        return 2 * self.rank if self.alpha is None else self.alpha
