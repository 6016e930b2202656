"""Ray: a cluster that is there, or one of this machine for one run. No other file imports ray."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import ReskdError
from stages.engine.actor import Actor
from stages.remote.url_path import Location, UrlPath
from stages.runtime.distributed import cores
from stages.runtime.fresh_process import SOCKET_PATH
from stages.runtime.interrupt import RUN_AGAIN, interrupted_by_sigterm

# Ray's sockets have paths of some 66 bytes below its folder.
LONGEST = SOCKET_PATH - 67
ANSWER = 10.0  # seconds in which an address must answer
OBJECTS = 100 * 2**20  # bytes of Ray's store of objects, of which we use next to nothing


class ActorLost(Exception):
    """An actor has ended, or its node has."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as Ray counts it."""

    id: str
    name: str
    cpus: float
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray. `ray`: the module. A call is a future of Ray, an actor a handle."""

    ray: Any

    def nodes(self) -> list[Node]:
        """The nodes that are alive and have processors to lend."""
        found = []
        for node in self.ray.nodes():
            has, name = node["Resources"], node["NodeManagerHostname"]
            if node["Alive"] and (has.get("CPU") or has.get("GPU")):
                name = f"{node['NodeManagerAddress']} ({name})"
                found.append(Node(node["NodeID"], name, has.get("CPU", 0.0), int(has.get("GPU", 0))))
        return found

    def start_actor(self, node: Node, cpus: float, gpus: int) -> Any:
        """An actor on this node, which begins when its processors are free."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(node.id, soft=False)
        options = {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": place, "max_restarts": 0}
        return self.ray.remote(Actor).options(**options).remote()

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        """Those of the calls that have an answer. Waits for one, at most `seconds`."""
        if not self.ray.wait(list(calls), num_returns=1, timeout=seconds)[0]:
            return []
        return self.ray.wait(list(calls), num_returns=len(calls), timeout=0)[0]

    def answer(self, call: Any) -> Any:
        """Raises ActorLost."""
        try:
            return self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            raise ActorLost(_reason(error)) from error

    def end_actor(self, actor: Any) -> None:
        with suppress(Exception):  # it may have ended
            self.ray.kill(actor)


@contextmanager
def ray_cluster(address: str | None, folder: Location) -> Iterator[Cluster]:
    """Connect to the Ray at `address`. None: start one on this machine, and end it with the context.

    That one listens on loopback alone, and keeps its files and its token in `folder` (in the system's temporary folder if
    the name of `folder` is too long for Ray's sockets, or a URL), in a folder that is removed at the end.
    Raises ReskdError if nobody answers in time, and Interrupted, inside the context, at a SIGTERM.
    """
    if address is not None:
        _check_address(address)
    with _temporary_folder(folder, address) as temporary, _environment(_settings(address, temporary)):
        try:
            import ray
        except ImportError as error:
            raise ReskdError("--engine ray needs the extra `ray`: uv run --extra ray pipeline.py …") from error
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _connect(ray, address, temporary)
            with interrupted_by_sigterm(RUN_AGAIN, handler):  # Ray has put a handler of its own there
                yield Cluster(ray)
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str | None, temporary: Path | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": f"reskd-{secrets.token_hex(8)}"}
    local = {
        "num_cpus": cores(),
        "include_dashboard": False,
        "object_store_memory": OBJECTS,
        "_temp_dir": str(temporary),
    }
    try:
        ray.init(address=address or "local", **quiet, **({} if address else local))
    except Exception as error:  # of many types, such as for another version of Ray or of Python
        what = f"the Ray at {address} can't be used" if address else "Ray can't be started on this machine"
        raise ReskdError(f"{what}: {_reason(error)}. See whether `ray status` answers on this machine, with the same "
                         "versions of Ray and Python, or leave --address out") from error  # fmt: skip


def _check_address(address: str) -> None:
    """Raise ReskdError if nobody listens at HOST:PORT. `auto` is Ray's word for a cluster that runs on this machine."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit() or "/" in host:
        raise ReskdError(
            f"--address {address}: give HOST:PORT of the cluster's head, as `ray start --head` prints it, or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ReskdError(f"--address {address}: nobody answers ({error}). Start Ray there (ray start --head), correct the "
                         "address, or leave it out: then a Ray of this machine is started") from error  # fmt: skip


def _settings(address: str | None, temporary: Path | None) -> dict[str, str]:
    """Ray's variables. Most are read when ray is imported."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    settings["RAY_DEDUP_LOGS_SKIP_REGEX"] = ".*"  # Ray's own messages would be printed into the result of --json -
    if address is None or address.startswith(("127.", "localhost:")):
        # Despite its name it holds everywhere: Ray then takes loopback for the address of this machine.
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if temporary is not None:
        token = temporary / "token"
        token.touch(0o600)
        token.write_text(_token())
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    return settings


@functools.cache
def _token() -> str:
    """One for all clusters that this process starts: Ray reads it once."""
    return secrets.token_hex(32)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _temporary_folder(folder: Location, address: str | None) -> Iterator[Path | None]:
    """A folder for the files of a Ray that is started here; None if there is an address."""
    if address is not None:
        yield None
        return
    inside = None if isinstance(folder, UrlPath) else folder.absolute() / ".ray"
    if inside is None or len(os.fsencode(inside)) > LONGEST:
        inside = Path(tempfile.mkdtemp(prefix="reskd-"))
    else:
        shutil.rmtree(inside, ignore_errors=True)  # what a run that was killed has left
        inside.mkdir(mode=0o700)
    try:
        yield inside
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """Ray's long message in one line, without its guesses and its list of numbers."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t"))
    return text.partition(" Some common causes")[0][:500] or type(error).__name__
