"""The part of a campaign that one process runs."""

import os
from dataclasses import dataclass
from typing import Self

from resilient_heads.checks import whole_number
from resilient_heads.errors import ArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of several processes that run a campaign together. It runs every ``world_size``-th chunk.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.

    Raises:
        ArgumentError: ``rank`` or ``world_size`` is out of range.

    >>> list(Shard(rank=1, world_size=3).chunks(8))
    [1, 4, 7]
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        whole_number("world_size", self.world_size, least=1)
        whole_number("rank", self.rank, least=0, most=self.world_size - 1)

    @classmethod
    def from_environment(cls) -> Self:
        """Return the shard that ``RANK`` and ``WORLD_SIZE`` name, as torchrun and other launchers set them.

        If neither variable is set, return the whole campaign.

        Raises:
            ArgumentError: Only one variable is set, or a variable is not a whole number.
        """
        rank, world_size = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
        if rank is None and world_size is None:
            return cls()
        if rank is None or world_size is None or not (rank.isdecimal() and world_size.isdecimal()):
            raise ArgumentError(
                f"RANK and WORLD_SIZE must both be whole numbers, or both unset; found RANK={rank}, "
                f"WORLD_SIZE={world_size}."
            )
        return cls(rank=int(rank), world_size=int(world_size))

    @property
    def is_whole(self) -> bool:
        """Whether one process runs the whole campaign."""
        return self.world_size == 1

    def chunks(self, count: int) -> range:
        """Return which of ``count`` chunks this process runs."""
        return range(self.rank, count, self.world_size)
