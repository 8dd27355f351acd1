"""A stand-in Hugging Face Hub over loopback, with real clients of it in processes of their own.

:class:`StandIn` serves; :class:`HubClient` runs ``ws`` and other programs against it. ``routes``
says who may ask what; ``reading``, ``writing`` and ``uploads`` answer; ``repos`` keeps commits;
``xet`` and ``cards`` are the content store and the rules of model cards; ``wire`` is HTTP, with
faults on demand.
"""

from tests.hub.standin.cards import check_card, front_matter
from tests.hub.standin.client import WS, HubClient
from tests.hub.standin.server import StandIn

__all__ = ["WS", "HubClient", "StandIn", "check_card", "front_matter"]
