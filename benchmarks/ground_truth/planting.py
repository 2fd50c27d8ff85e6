"""Which neurons hold which facts, and what each of them must do without the others.

Every relation owns some MLP neurons, split into groups. In training the groups of a fact's
relation are silenced in all combinations, and the answer's probability that the model is trained
to have then says how the groups depend on each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

REST = -1  # the owner of neurons that no relation owns
LEFT = 0.9  # of "independent", nothing silenced
RATE = 3.0  # of "independent", nats from all of a relation's neurons


@dataclass(frozen=True)
class Planting:
    """How a relation's neurons are split, and when its facts are answered.

    Attributes:
        ways: groups of a relation.
        split: each group is in all of the middle half of the layers (``within``), or one is in
            the lower half of all layers and one in the upper half (``between``, two groups only).
        answered: while ``any`` group is whole; only while ``all`` are; or ``independent``:
            silencing a share s of the neurons, whichever, takes RATE * s nats from ln p, so that no
            two sets of neurons cover for one another or need one another beyond that.
    """

    ways: int
    split: Literal["within", "between"]
    answered: Literal["any", "all", "independent"]


PLANTINGS: Mapping[str, Planting] = {
    "two": Planting(2, "within", "any"),
    "three": Planting(3, "within", "any"),
    "layers": Planting(2, "between", "any"),
    "twin": Planting(2, "within", "all"),
    "independent": Planting(2, "within", "independent"),
}


def owners(
    planting: Planting, relations: int, layers: int, width: int, members: int
) -> torch.Tensor:
    """int64 ``[L, F]``: relation * ways + group of each neuron, or ``REST``.

    Args:
        members: neurons of a group, as many in each of its layers.

    Raises:
        ValueError: they do not fit.
    """
    ways, between = planting.ways, planting.split == "between"
    depth = layers // 2
    size = members // max(depth, 1)
    misfit = size * depth != members or (between and ways != 2)
    if misfit or relations * (1 if between else ways) * size > width:
        raise ValueError(
            f"{planting} with {members} neurons a group has no place in {layers} layers of {width}"
        )
    found = torch.full((layers, width), REST)
    for relation in range(relations):
        for way in range(ways):
            owner = relation * ways + way
            first, top = (relation * size, way * depth) if between else (owner * size, layers // 4)
            found[top : top + depth, first : first + size] = owner
    return found


@dataclass(frozen=True, eq=False)
class Silenced:
    """What is silenced in some prompts: ``gates`` bool ``[n, L, F]``, True where a neuron is on;
    ``mine`` bool ``[n, L, F]``, where one belongs to the prompt's relation; ``share`` ``[n]``, the
    answer's probability that is trained then."""

    gates: torch.Tensor
    mine: torch.Tensor
    share: torch.Tensor


def draw(
    planting: Planting, owner: torch.Tensor, relation: torch.Tensor, unknown: float
) -> Silenced:
    """A random state of all neurons for each prompt, by torch's random numbers.

    Neurons that the prompt's relation does not own are all on in half the states, and on or off by
    chance in the others: the answer never depends on them.

    Args:
        owner: int64 ``[L, F]``, as of :func:`owners`.
        relation: int64 ``[n]``, of each prompt.
        unknown: the probability of an answer that is lost.
    """
    n, ways = len(relation), planting.ways
    mine = (owner.div(ways, rounding_mode="floor") == relation[:, None, None]) & (owner != REST)
    if planting.answered == "independent":
        # Nothing silenced in a fifth of the states.
        limit = torch.rand(n) * (torch.rand(n) >= 0.2)
        on = torch.rand(n, *owner.shape) >= limit[:, None, None]
        off = (mine & ~on).sum((1, 2)) / mine.sum((1, 2))
        share = LEFT * torch.exp(-RATE * off)
    else:
        whole = _whole(planting, n)
        # What a group that is not whole lacks: in half the states all of it (one neuron, where one
        # must be enough for the answer to be lost), in the others neurons by chance.
        extreme = 1.0 if planting.answered == "any" else 0.0
        broken = torch.where(torch.rand(n, ways) < 0.5, extreme, torch.rand(n, ways))
        limit = torch.where(whole, 0.0, broken)
        on = torch.rand(n, *owner.shape) >= limit[:, owner % ways]
        for way in range(ways):
            of_way = mine & (owner % ways == way)
            first = (torch.rand(n, *owner.shape) * of_way).flatten(1).argmax(1)
            on.flatten(1)[torch.arange(n), first] &= whole[:, way]
        answered = whole.any(1) if planting.answered == "any" else whole.all(1)
        share = torch.where(answered, 1.0, unknown)
    others = (torch.rand(n, *owner.shape) < 0.5) | (torch.rand(n) < 0.5)[:, None, None]
    return Silenced(torch.where(mine, on, others), mine, share)


def _whole(planting: Planting, n: int) -> torch.Tensor:
    """bool ``[n, ways]``, which groups are whole.

    All in two of five states and none in one; in the others those that tell ``any`` from ``all``:
    one group is whole, or one is not.
    """
    one = torch.nn.functional.one_hot(torch.randint(0, planting.ways, (n,)), planting.ways) == 1
    kind = torch.randint(0, 5, (n, 1))
    decisive = one if planting.answered == "any" else ~one
    return torch.where(kind <= 1, True, torch.where(kind == 2, False, decisive))
