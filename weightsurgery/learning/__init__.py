"""What needs a forward pass: data, training and scores. Import the modules by name."""

__all__: list[str] = []
