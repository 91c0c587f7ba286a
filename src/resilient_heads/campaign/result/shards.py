"""Which part of a campaign one process runs."""

import os
from dataclasses import dataclass
from typing import Self

from resilient_heads.errors import ArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of several processes that run a campaign together: it runs every ``world_size``-th chunk.

    Attributes:
        rank: Which one, from 0.
        world_size: How many there are.

    Raises:
        ArgumentError: Numbers that name no process.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and isinstance(self.world_size, int)) or not (
            0 <= self.rank < self.world_size
        ):
            raise ArgumentError(
                f"A shard needs 0 <= rank < world_size, found rank {self.rank!r} and world_size {self.world_size!r}."
            )

    @classmethod
    def from_environment(cls) -> Self:
        """Read ``RANK`` and ``WORLD_SIZE``, as torchrun and other launchers set them; the whole without them.

        Raises:
            ArgumentError: Only one is set, or they are no such numbers.
        """
        found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
        rank, world_size = found.values()
        if rank is None and world_size is None:
            return cls()
        if rank is None or world_size is None or not (rank.isdecimal() and world_size.isdecimal()):
            said = ", ".join(f"{name}={value}" for name, value in found.items() if value is not None)
            raise ArgumentError(f"RANK and WORLD_SIZE must both be set to whole numbers, or neither; found {said}.")
        return cls(rank=int(rank), world_size=int(world_size))

    @property
    def is_whole(self) -> bool:
        """Whether one process runs all."""
        return self.world_size == 1

    def chunks(self, count: int) -> range:
        """Return which of ``count`` chunks are this process's."""
        return range(self.rank, count, self.world_size)
