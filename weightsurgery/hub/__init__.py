"""Publishing an output: the only part of the package that writes to the Hub."""

from weightsurgery.hub.plan import PushPlan, plan_push
from weightsurgery.hub.push import Pushed, push
from weightsurgery.hub.remote import Destination

__all__ = ["Destination", "PushPlan", "Pushed", "plan_push", "push"]
