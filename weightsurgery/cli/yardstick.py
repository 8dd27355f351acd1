"""The part of ``ws evaluate`` that is TOFU's yardstick: its options, and what they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from weightsurgery.cli import console
from weightsurgery.cli.panels import panel

if TYPE_CHECKING:
    from weightsurgery.cli.options import Show
    from weightsurgery.scoring.yardstick import Tofu

__all__ = ["TOFU", "Yardstick"]

TOFU = "tofu"
"""The word of ``--metric`` for it."""

_option = panel("TOFU's yardstick (--metric tofu)")


@dataclass(frozen=True)
class Yardstick:
    """What a checkpoint is compared with."""

    reference: Annotated[
        str | None,
        _option(
            metavar="CKPT|FILE.json",
            help="A model that never saw what is to be forgotten, for forget quality and PrivLeak;"
            " or what --metric tofu --json said of one.",
        ),
    ] = None
    holdout: Annotated[
        list[str] | None,
        _option(
            metavar="DATA",
            help="Rows like those of --forget that no model saw: how well members can be told from"
            " them; repeatable.",
        ),
    ] = None
    judge: Annotated[
        str | None,
        _option(
            metavar="BASE",
            help="A checkpoint by whose perplexity answers about --forget are fluent or not.",
        ),
    ] = None

    def wanted(self, words: Sequence[str] | None, others: bool) -> bool:
        """Whether the yardstick is wanted.

        Args:
            words: Of ``--metric``.
            others: Whether an option is given that it has no part in.

        Raises:
            EditError: Options that do not go together.
        """
        from weightsurgery.errors import EditError

        wanted = TOFU in (words or ())
        given = {"--reference": self.reference, "--holdout": self.holdout, "--judge": self.judge}
        if not wanted:
            for option, value in given.items():
                if value:
                    raise EditError(f"{option} without --metric tofu", "Add --metric tofu.")
        elif others:
            raise EditError(
                "--metric tofu with --in-context, or alone with --against",
                "It asks the checkpoint plainly and compares it with --reference: leave them out,"
                " or name other metrics beside for --against.",
            )
        return wanted

    def score(
        self,
        ckpt: str,
        forget: list[str] | None,
        keep: list[str] | None,
        show: Show,
        batch_size: int,
        device: str,
        seed: int,
    ) -> Tofu:
        """See :func:`weightsurgery.scoring.yardstick.tofu`."""
        from weightsurgery.scoring.yardstick import tofu

        with console.progress(show, unit="examples") as progress:
            return tofu(
                ckpt,
                forget or [],
                keep or [],
                self.reference,
                holdout=self.holdout or (),
                judge=self.judge,
                batch_size=batch_size,
                device=device,
                seed=seed,
                progress=progress,
            )
