"""Work spread over a Ray cluster; nothing else here knows Ray.

Ray starts processes, places tasks and does them again where a machine or a process was lost. No
order is kept, and no weights travel: a task gets a few numbers and gives back a few.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from weightsurgery.checkpoint.record import versions
from weightsurgery.deferred import need
from weightsurgery.errors import ClusterError, EditError, LostWorkError, WeightSurgeryError
from weightsurgery.surgery.addresses import running, unanswered

__all__ = ["Needs", "RayCluster"]

_T = TypeVar("_T")

# How often a task is begun again whose process or machine was lost.
RETRIES = 8

# Seconds that tasks are given to end.
_CANCEL = 10.0

# How often it is looked whether the cluster answers, and how long its head may not: it may begin
# again. After 60 s Ray would end this process, without a word of what is left.
_LOOK, _PATIENCE = 1.0, 30.0

# A host whose network is cut off ends no connection. Ray asks after 300 s whether there is anybody,
# and a task that had gone there is not begun again before. Read when Ray is first imported.
_ASKING = {
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "20000",
}

_LOCATED = "--cluster ray, or --cluster ray://host:port (a client's port, 10001 by default)."
_GOES_ON = "the same command goes on where this one stopped."


@dataclass(frozen=True)
class Needs:
    """What a task takes of its machine.

    Attributes:
        gpu: Whether it takes one.
        memory: Bytes, bounded by what the largest machine has; 0 for few.
    """

    gpu: bool = False
    memory: int = 0


class RayCluster:
    """A connection to a cluster, as a context manager.

    Args:
        name: ``ray``: the one in ``RAY_ADDRESS``, else one on this machine, else one of this
            process alone, which ends with it. ``ray://host:port``: through Ray's client.

    Raises:
        ClusterError: Ray is not installed, the name is none, or nothing answers there.
    """

    def __init__(self, name: str) -> None:
        self._address = name if name != "ray" else os.environ.get("RAY_ADDRESS") or None
        if name != "ray" and not (name.startswith("ray://") and name[6:]):
            raise ClusterError(f"cluster {name!r}", f"Give {_LOCATED}")
        need("--cluster spreads the work with Ray", "ray", extra="ray", kind=ClusterError)
        if "://" in (self._address or ""):
            need("ray:// is the address of Ray's client", "grpc", extra="ray", kind=ClusterError)

    def __enter__(self) -> RayCluster:
        for setting, milliseconds in _ASKING.items():
            os.environ.setdefault(setting, milliseconds)
        import ray

        self._ours = not ray.is_initialized()
        if self._ours:
            self._connect()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        import ray

        # Where nobody answers Ray would end this process here, before what happened is said.
        if self._ours and not isinstance(error, _GoneError):
            ray.shutdown()

    def _connect(self) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = self._address or running() or "local"
        place = address.removeprefix("ray://").partition("/")[0]
        if place not in ("auto", "local") and (silent := unanswered(place)):
            raise ClusterError(
                f"cluster {address}: nothing answers there ({silent})",
                f"Start one with 'ray start --head', and give {_LOCATED}",
            )
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            quiet["include_dashboard"] = False
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if main else None
        try:
            with warnings.catch_warnings(action="ignore"):
                ray.init(address, **quiet)
        except (Exception, SystemExit) as error:  # its core exits where nobody answers
            ray.shutdown()
            why = "it gave up" if isinstance(error, SystemExit) else str(error).split("\n")[0]
            raise ClusterError(
                f"cluster {address}: Ray does not connect: {why or type(error).__name__}",
                "Check the address, the token (RAY_AUTH_MODE, RAY_AUTH_TOKEN), that 'ray status'"
                " answers there, and that Ray and Python are of the same versions here.",
            ) from None
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)  # Ray puts one of its own there

    def device(self, name: str, decomposes: bool) -> str:
        """The device of tasks that decompose: a GPU each where there are any.

        Raises:
            EditError: The cluster has no such device.
        """
        import ray

        gpus = ray.cluster_resources().get("GPU", 0) >= 1
        if name == "cpu" or (name == "auto" and not (decomposes and gpus)):
            return "cpu"
        if name in ("auto", "cuda") and gpus:
            return "cuda"
        raise EditError(
            f"device {name!r} on a cluster with{'' if gpus else 'out'} GPUs",
            "Use auto, cpu or cuda: each task that decomposes gets a GPU of its own.",
        )

    def results(
        self,
        run: str,
        packed: bytes,
        work: Iterable[_T],
        needs: Callable[[_T], Needs],
        limit: int | None,
    ) -> Generator[Any, None, None]:
        """What tasks give back, as they end; few are under way at any time.

        Args:
            run: What tells the run from others.
            packed: What all tasks share, for :func:`weightsurgery.surgery.performing.performer`.
            work: One after another; where there is no more it is asked again once one has ended.
            needs: What each takes.
            limit: At most so many under way; by default two for each processor.

        Raises:
            LostWorkError: A machine or process was lost more than :data:`RETRIES` times; or this
                machine's node, or the head.
            WeightSurgeryError: As the task raised it.
        """
        import ray

        with _told():
            limit = limit or max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
            largest = max(each["Resources"].get("memory", 0) for each in ray.nodes())
            shared = [ray.put(packed)]  # in a list: a process fetches it once, not each task
        task, here = ray.remote(_perform), versions()
        rest, near = iter(work), _Near()

        def start(each: _T) -> Any:
            takes = needs(each)
            return task.options(
                scheduling_strategy="SPREAD",
                max_retries=RETRIES,
                num_cpus=1,
                num_gpus=int(takes.gpu),
                memory=int(min(takes.memory, largest)) or None,
            ).remote(run, here, shared, each)

        waiting: list[Any] = []
        try:
            while True:
                with _told():  # what comes back may be what more work begins with
                    waiting += [start(each) for each in islice(rest, limit - len(waiting))]
                    if not waiting:
                        return
                    ready, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK)
                    near.look()
                    found = ray.get(ready)
                yield from found
        except _GoneError as gone:
            # To let go of them, too, would end this process; they end with it.
            gone.held, waiting = [*shared, *waiting], []
            raise
        finally:
            _cancel(waiting)


class _GoneError(LostWorkError):
    """There is no cluster any more, as this process sees it."""

    held: Sequence[Any] = ()

    def __init__(self, why: str) -> None:
        super().__init__(
            f"cluster: lost while it was at work: {why}",
            f"What is finished is kept: start the cluster again, and {_GOES_ON}",
        )


class _Near:
    """This machine's node, and the head: what a connection hangs on. Ray's client looks itself."""

    def __init__(self) -> None:
        import ray

        self._node = self._head = ""
        if not ray.util.client.ray.is_connected():
            here = ray.get_runtime_context()
            self._head = here.gcs_address
            (node,) = (each for each in ray.nodes() if each["NodeID"] == here.get_node_id())
            self._node = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        self._looked = self._answered = time.monotonic()

    def look(self) -> None:
        """See, now and then, whether they answer."""
        now = time.monotonic()
        if not self._node or now - self._looked < _LOOK:
            return
        self._looked = now
        if silent := unanswered(self._node):
            raise _GoneError(f"its node, {self._node}, does not answer ({silent})")
        if (silent := unanswered(self._head)) is None:
            self._answered = now
        elif now - self._answered >= _PATIENCE:
            raise _GoneError(f"its head, {self._head}, does not answer ({silent})")


@contextmanager
def _told() -> Iterator[None]:
    """Ray's errors as ours."""
    from ray.exceptions import LocalRayletDiedError, RayError, RaySystemError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, WeightSurgeryError):
            raise error.cause from None
        if isinstance(error.cause, ImportError) or "failed to import" in str(error.cause):
            why = str(error.cause).strip().split("\n")[-1]
            raise ClusterError(
                f"cluster: a node cannot import what it needs: {why}",
                "Install weightsurgery[ray], of the same version, on all nodes.",
            ) from None
        raise  # a bug, which shows its traceback
    except LocalRayletDiedError:
        raise _GoneError("its node has ended") from None
    except (ConnectionError, RaySystemError) as error:
        raise _GoneError(str(error).strip().split("\n")[0]) from None
    except RayError as error:
        why = str(error).strip().split("\n")[0]
        raise LostWorkError(
            f"cluster: a task was lost for good after {RETRIES} more attempts: {why}",
            f"Look at 'ray status', and at the nodes' memory and logs; {_GOES_ON}",
        ) from None


def _cancel(waiting: list[Any]) -> None:
    """End tasks that are under way, and wait until they write no more."""
    import ray

    if not waiting or not ray.is_initialized():
        return
    for each in waiting:
        ray.cancel(each, force=True)
    ray.wait(waiting, num_returns=len(waiting), timeout=_CANCEL)


def _perform(run: str, wanted: Mapping[str, str], shared: list[Any], work: Any) -> Any:
    """Runs on the cluster."""
    import ray

    from weightsurgery.surgery.performing import performer

    def fetch() -> bytes:
        packed: bytes = ray.get(shared[0])
        return packed

    return performer(run, wanted, fetch).perform(work)
