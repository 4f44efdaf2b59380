"""What is computed once and used again: embeddings of captions, latents of pictures."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

ROOM = 2**32  # bytes that a memory holds at most


class Memory(dict[str, dict[str, Tensor]]):
    """Named tensors by key, kept in the computer's own memory: moving a batch of them costs little beside a step."""

    def __init__(self, room: int = ROOM) -> None:
        super().__init__()
        self.room = room

    def keep(self, key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, remembered while there is room."""
        held = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        size = sum(tensor.nbytes for tensor in held.values())
        if size <= self.room and key not in self:
            self[key] = held
            self.room -= size
        return held
