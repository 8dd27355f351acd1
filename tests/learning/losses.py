"""The methods that are a loss of their own, by name."""

from weightsurgery.unlearning.by_loss import ByLoss
from weightsurgery.unlearning.methods import SYSTEMS

UNLEARNERS = {name: kind for name, kind in SYSTEMS.items() if issubclass(kind, ByLoss)}
