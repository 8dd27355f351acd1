"""Everything this package raises on purpose.

Each error carries two lines: what is wrong and where, and what to do about it. The command line
prints exactly those two and exits with 1; anything else that escapes is a bug and shows its
traceback.

```
WeightSurgeryError
├── SourceError               a name that leads to no checkpoint, vector or repository
├── CheckpointError           bytes on disk that cannot be trusted
│   ├── CorruptCheckpointError       truncated, overlapping, inconsistent, or leaving its directory
│   └── UnsupportedCheckpointError   whole, but not something weight arithmetic applies to
├── MismatchError             two inputs that do not fit each other
│   └── LineageError              same shapes, unrelated weights
├── NonFiniteError            NaN or infinity among the weights, or made by the edit
├── VectorError               a saved vector or adapter that cannot be read as a change of weights
├── SelectionError            a pattern, kind or layer range that selects nothing or makes no sense
├── EditError                 parameters with which the edit cannot be done, or an edit gone wrong
│   └── HarmError                    an edit over its budget of harm, or useless inside it
├── OutputError               an output that may not or cannot be written
├── VerificationError         an output that differs from its record
├── ClusterError              a cluster that cannot be reached, or does not see the files
│   └── LostWorkError                tasks that were lost there; what was done stays
├── HubError                  the Hub refuses to take something, or cannot be reached while it does
├── RecipeError               a recipe that says nothing that can be run
└── DataError                 a data set that cannot be read
```
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ClusterError",
    "CorruptCheckpointError",
    "DataError",
    "EditError",
    "HarmError",
    "HubError",
    "LineageError",
    "LostWorkError",
    "MismatchError",
    "NonFiniteError",
    "OutputError",
    "RecipeError",
    "SelectionError",
    "SourceError",
    "UnsupportedCheckpointError",
    "VectorError",
    "VerificationError",
    "WeightSurgeryError",
]


# What is wrong is often quoted from a file, which may be a stranger's and of any length.
_MOST_WHAT, _MOST_REMEDY = 2800, 900


def _bounded(text: str, most: int) -> str:
    """A text, without its middle where it would fill the screen."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end]} [… {len(text) - most} characters …] {text[-end:]}"


class WeightSurgeryError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: What is wrong, and where (file, tensor, option).
        remedy: What the user can do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        what = _bounded(what, _MOST_WHAT)
        super().__init__(what)
        self.what = what
        self.remedy = _bounded(remedy, _MOST_REMEDY)

    def __str__(self) -> str:
        return f"{self.what}\n{self.remedy}" if self.remedy else self.what


class SourceError(WeightSurgeryError):
    """A name that leads to no checkpoint, vector or repository."""


class CheckpointError(WeightSurgeryError):
    """Bytes on disk that cannot be trusted or used."""


class CorruptCheckpointError(CheckpointError):
    """A truncated, overlapping or inconsistent checkpoint."""


class UnsupportedCheckpointError(CheckpointError):
    """A checkpoint that is whole, but to which weight arithmetic does not apply."""


class MismatchError(WeightSurgeryError):
    """Two inputs that do not fit each other: shapes, names, vocabularies."""


class LineageError(MismatchError):
    """Two checkpoints of the same shapes whose weights have nothing to do with each other."""


class NonFiniteError(WeightSurgeryError):
    """NaN or infinity among the weights, or made by the edit."""


class VectorError(WeightSurgeryError):
    """A saved vector or adapter that cannot be read as a change of weights."""


class SelectionError(WeightSurgeryError):
    """A pattern, kind or layer range that selects nothing or makes no sense."""


class EditError(WeightSurgeryError):
    """Parameters with which the edit cannot be done, or an edit that missed what was meant."""


class HarmError(EditError):
    """An edit that goes beyond its budget of harm, or does nothing inside it; see the guard."""


class OutputError(WeightSurgeryError):
    """An output that may not or cannot be written."""


class VerificationError(WeightSurgeryError):
    """An output that differs from its record."""


class ClusterError(WeightSurgeryError):
    """A cluster that cannot be reached, or whose nodes are not what an edit needs."""


class LostWorkError(ClusterError):
    """Tasks that were lost on a cluster; what was done stays for the same command to go on from."""


class HubError(WeightSurgeryError):
    """The Hub refuses to take something, or cannot be reached while it does."""


class RecipeError(WeightSurgeryError):
    """A recipe that says nothing that can be run."""


class DataError(WeightSurgeryError):
    """A data set that cannot be read."""
