import dataclasses
from typing import Literal

from jaxrlhf.config_docs import FieldDoc, describe, field_docs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    # Half the width
    # of the interval.
    eps: float = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A base.

    Attributes:
        path: where to; a path
            with `a: b` in it.
        mode: how.

    Raises:
        nothing: at all.
    """

    path: str
    mode: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Base):
    """Extends the base.

    Attributes:
        flag: on or off.
    """

    flag: bool = False
    stop: tuple[str, ...] = ()
    inner: Inner = Inner(eps=0.5)
    several: tuple[Inner, ...] = ()
    other: Inner | None = None


def test_docs_come_from_docstrings_and_comments():
    assert field_docs(Outer) == {"path": "where to; a path with `a: b` in it.", "mode": "how.", "flag": "on or off."}
    assert field_docs(Inner) == {"eps": "Half the width of the interval."}


def test_every_key_is_described():
    doc = "Half the width of the interval."
    assert describe(Outer) == [
        FieldDoc(key="path", type="string", default=None, doc="where to; a path with `a: b` in it."),
        FieldDoc(key="mode", type="one of 'a', 'b'", default="a", doc="how."),
        FieldDoc(key="flag", type="true or false", default="false", doc="on or off."),
        FieldDoc(key="stop", type="list of string", default="[]", doc=""),
        FieldDoc(key="inner.eps", type="float", default="0.5", doc=doc),
        FieldDoc(key="several", type="list of Inner", default="[]", doc=""),
        FieldDoc(key="several.0.eps", type="float", default="0.2", doc=doc),
        FieldDoc(key="other", type="Inner or null", default="null", doc=""),
        FieldDoc(key="other.eps", type="float", default="0.2", doc=doc),
    ]
