"""``python -m weightsurgery``, the entry point of ``ws`` too."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run ``ws``; Ctrl-C is handled from the first import to the interpreter's end."""
    try:
        from weightsurgery.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is left would show a traceback


if __name__ == "__main__":
    main()
