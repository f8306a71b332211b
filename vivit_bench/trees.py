"""Mini-batches of any shape: a tensor, or dicts, lists and tuples of tensors.

The first axis of every tensor is the sample.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from vivit_bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Tree: TypeAlias = Any
"""A tensor, or a dict, list or tuple (named ones too) of trees."""


def map_tree(function: "Callable[[Tensor], Tensor]", tree: Tree) -> Tree:
    """The same tree with ``function`` of every tensor.

    Raises:
        UsageError: Something in it is no tensor and no dict, list or tuple.
    """
    import torch

    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_tree(function, value) for key, value in tree.items()}
        return mapped if type(tree) is dict else _like(tree, mapped)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tree(function, value) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(map_tree(function, value) for value in tree)
    raise UsageError(
        f"inputs hold a {type(tree).__name__}; they must be a tensor, or a dict, list or tuple "
        "of tensors"
    )


def _like(tree: Any, mapped: dict[Any, Any]) -> Any:
    """A mapping of the class of ``tree`` (a tokenizer's, say), or a plain one."""
    try:
        return type(tree)(mapped)
    except TypeError:
        return mapped


def num_bytes(*trees: Tree) -> int:
    """Memory of all tensors."""
    return sum(leaf.nbytes for tree in trees for _, leaf in leaves(tree))


def leaves(tree: Tree) -> "Iterator[tuple[str, Tensor]]":
    """Every tensor with its place, such as ``['mask']``; "" for a lone tensor."""
    import torch

    if isinstance(tree, torch.Tensor):
        yield "", tree
    elif isinstance(tree, Mapping | list | tuple):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            for place, leaf in leaves(value):
                yield f"[{key!r}]{place}", leaf
    else:
        raise UsageError(
            f"inputs hold a {type(tree).__name__}; they must be a tensor, or a dict, list or "
            "tuple of tensors"
        )


def num_samples(tree: Tree) -> int:
    """Length of the sample axis, the same for all tensors.

    Raises:
        UsageError: There is no tensor, one has no axis, or their lengths differ.
    """
    lengths: dict[int, str] = {}
    for place, leaf in leaves(tree):
        if leaf.ndim == 0:
            raise UsageError(f"inputs{place} has no axis; the first axis must be the sample")
        lengths.setdefault(len(leaf), place)
    if not lengths:
        raise UsageError("inputs hold no tensor")
    if len(lengths) > 1:
        (a, b), *_ = zip(lengths.items(), list(lengths.items())[1:], strict=False)
        raise UsageError(
            f"inputs{a[1]} has {a[0]} samples and inputs{b[1]} has {b[0]}; the first axis of "
            "every tensor must be the sample"
        )
    return next(iter(lengths))


def select(tree: Tree, samples: "slice | Tensor | list[int]") -> Tree:
    """Some samples."""
    return map_tree(lambda t: t[samples], tree)
