"""Operations that need both the weights on disk and a forward pass."""

__all__: list[str] = []
