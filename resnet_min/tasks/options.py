"""What a task says of itself without torch: its options, what it is judged by, which data is its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..config import Config, Figure

if TYPE_CHECKING:
    from .task import Task


@dataclass(frozen=True)
class TaskConfig(Config, ABC):
    """The options of one task's runs. A subclass gives `task` its name as the default, and adds its own options."""

    figure: ClassVar[Figure]
    purpose: ClassVar[str]  # a help line
    evaluation: ClassVar[dict[str, dict[str, Any]]] = {}  # flags of eval.py for this task only
    reported: ClassVar[int] = 20  # worst images of a report page

    @abstractmethod
    def make_task(self) -> Task:
        """The task with these options."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width, in pixels, of an image such as the network is trained on."""
        return 64, 64

    @classmethod
    def recognises(cls, data: str) -> bool:
        """Whether the folder `data` is laid out as only this task's data is."""
        return False

    @classmethod
    def default_settings(cls, data: str) -> dict[str, Any]:
        """The settings of a run on `data` without a recipe."""
        return {"task": cls.task, "data": data}
