"""``python -m weightsurgery`` is ``ws``."""

from weightsurgery.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
