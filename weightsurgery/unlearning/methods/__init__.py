"""The methods, one file each."""

__all__: list[str] = []
