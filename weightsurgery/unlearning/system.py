"""The interface of a method of ``ws unlearn``: its description, its request and its result.

Importing it loads no model and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from weightsurgery.learning.settings import Training
from weightsurgery.learning.unlearners.settings import NoSettings

if TYPE_CHECKING:
    from torch import Tensor

    from weightsurgery.algebra.lowrank import LowRank
    from weightsurgery.learning.data import Example
    from weightsurgery.learning.models import PreTrainedModel, PreTrainedTokenizerBase
    from weightsurgery.progress import Progress

__all__ = ["ChangeRequest", "System", "SystemResult"]


@dataclass(frozen=True)
class ChangeRequest:
    """A request to forget, with the model in memory.

    A system takes it and returns ``W' − W`` by parameter; the model is as before then, to the bit.

    Attributes:
        model: Float32, on the device to work on.
        tokenizer: Its tokenizer.
        names: The parameters that may change, in the model's order.
        forget: What to forget; at least one.
        keep: What to keep; may be empty.
        unseen: What the model never saw, for systems that measure by it; may be empty.
        training: How to train.
        settings: All settings of the system, by name.
        lora_rank: Train a LoRA adapter of this rank; None to train in full.
        chosen: Whether ``names`` were chosen by hand. If not, a system that trains fewer of them
            by default does so.
        progress: Called as ``progress(text, done, total)``.
        workspace: Where a system that can go on after a kill may keep what that takes.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    names: tuple[str, ...]
    forget: Sequence[Example]
    keep: Sequence[Example] = ()
    unseen: Sequence[Example] = ()
    training: Training = field(default_factory=Training)
    settings: Mapping[str, Any] = field(default_factory=dict)
    lora_rank: int | None = None
    chosen: bool = False
    progress: Progress | None = None
    workspace: Path | None = None


@dataclass(frozen=True)
class SystemResult:
    """The change that a system found for a request.

    Attributes:
        change: ``W' − W`` by parameter, on the CPU: a tensor, or the factors of an adapter.
        notes: Notes on the training, for the record.
    """

    change: Mapping[str, Tensor | LowRank]
    notes: Mapping[str, Any] = field(default_factory=dict)


class System:
    """A system that forgets from data.

    Attributes:
        name: As it is called on the command line.
        about: What it does, in a line.
        paper: Where it comes from.
        Settings: Dataclass of its settings, which refuses senseless ones.
        published: Default training settings: as published, as far as the paper states them.
        needs_unseen: Whether it measures by data the model never saw.
        adapter_rank: Rank of the adapter, for a system that is one.
        references: Number of frozen reference models, as copies of the trained parameters.
        takes_rank: Whether it can train a LoRA adapter where the request names a rank.
        goes_on: Whether a killed training of it resumes.
        bench: Its grids on the bench.
    """

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    Settings: ClassVar[type] = NoSettings
    published: ClassVar[Training] = Training()
    needs_unseen: ClassVar[bool] = False
    adapter_rank: ClassVar[int | None] = None
    references: ClassVar[int] = 0
    takes_rank: ClassVar[bool] = True
    goes_on: ClassVar[bool] = False
    bench: ClassVar[Sequence[Any]] = ()

    @classmethod
    def keeps(cls, settings: Any) -> bool:
        """Whether it works on data to keep, with these settings."""
        raise NotImplementedError

    @classmethod
    def change(cls, request: ChangeRequest) -> SystemResult:
        """Find the change; the model is as before in the end, to the bit."""
        raise NotImplementedError
