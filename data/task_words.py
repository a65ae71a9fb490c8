"""What messages and pages call the examples of a task and their groups, and which family says more of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaskWords:
    """The words in which a task calls its examples and their groups.

    Attributes:
        example: one of what is predicted, such as `crystal`.
        group: what the splits and the bootstrap keep together, such as `composition`; also a column of files.
    """

    example: str
    group: str

    @property
    def examples(self) -> str:
        """Several examples, such as `crystals`."""
        return several(self.example)

    @property
    def groups(self) -> str:
        """Several groups, such as `compositions`."""
        return several(self.group)


def task_words(task: Mapping[str, Any]) -> TaskWords:
    """The words of a task, of which results.json has the facts; without any the task is one of crystals."""
    return TaskWords(task.get("example", "crystal"), task.get("groups", "composition"))


def task_family(task: Mapping[str, Any]) -> str:
    """The family of a task, of which results.json has the facts; of those that say none, crystals."""
    return str(task.get("family", "crystals"))


def several(word: str) -> str:
    """The plural of a word."""
    return word if word.endswith("s") else f"{word}s"
