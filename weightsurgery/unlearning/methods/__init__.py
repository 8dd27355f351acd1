"""The methods: one file each, with name, paper, what it needs, settings, equation and bench grid.

To add one, write its file and add its line to :data:`METHODS`. Those of ``ws unlearn`` are there;
``neighbours``, ``rounds`` and ``identify`` are what ``ws project``, ``learn`` and ``identify`` do
with data sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from weightsurgery.errors import EditError
from weightsurgery.suggestions import one_of

if TYPE_CHECKING:
    from weightsurgery.unlearning.system import System

__all__ = ["METHODS", "SYSTEMS", "system"]

METHODS: Mapping[str, str] = {
    "gradient-ascent": "GradientAscent",
    "gradient-difference": "GradientDifference",
    "kul": "KnowledgeUnlearning",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "kga": "KnowledgeGapAlignment",
    "eul": "EfficientUnlearning",
    "au": "GenericLabels",
    "rmu": "RMU",
    "undial": "Undial",
    "wga": "WGA",
    "satimp": "SatImp",
    "idk-dpo": "IdkDPO",
    "altpo": "AltPO",
    "task-vector": "TaskVectorNegation",
    "cpem-lora": "NegatedLora",
    "cpem-ia3": "NegatedScaling",
    "negmerge": "NegMerge",
    "ethos": "Ethos",
    "ext-sub": "ExtSub",
}
"""The methods of ``ws unlearn --method`` and of the bench: the name, by which its file is called
(``ext_sub.py``), and the class in it. Lists of methods are in this order."""


class _Systems(Mapping[str, "type[System]"]):
    """The classes by name; a file is imported when its method is used."""

    def __getitem__(self, name: str) -> type[System]:
        module = import_module(f"{__name__}.{name.replace('-', '_')}") if name in METHODS else None
        if module is None:
            raise KeyError(name)
        kind: type[System] = getattr(module, METHODS[name])
        return kind

    def __iter__(self) -> Iterator[str]:
        return iter(METHODS)

    def __len__(self) -> int:
        return len(METHODS)


SYSTEMS: Mapping[str, type[System]] = _Systems()
"""Every method of :data:`METHODS` by its name."""


def system(name: str) -> type[System]:
    """A method by its name.

    Raises:
        EditError: There is none.
    """
    if name not in SYSTEMS:
        raise EditError(f"method {name!r}", one_of(name, SYSTEMS, "; 'ws unlearn --list' tells"))
    return SYSTEMS[name]
