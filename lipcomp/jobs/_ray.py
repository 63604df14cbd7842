"""Jobs as tasks of a Ray cluster, or of one that is started on this machine for the time.

A task whose worker was killed, was out of memory or lost its node is sent again. The nodes need the same lipcomp.
"""

import os
import socket
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from lipcomp.jobs._contract import (
    EngineOptions,
    JobFailure,
    Outcome,
    answer,
    describe,
    pack,
    received,
)
from lipcomp.jobs._options import available_cores

PATIENCE = 10.0  # seconds for an answer
SETTINGS = b"\0\0\0\4" + bytes(5)  # the frame, without any, with which both sides of HTTP/2 begin


def run(
    function: Callable[..., Any],
    jobs: list[tuple[Any, ...]],
    workers: int | None,
    options: EngineOptions,
    retries: int,
) -> Iterator[Outcome[Any]]:
    """Run jobs; see :func:`lipcomp.jobs.run_jobs`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    own = not ray.is_initialized()
    if own:
        _start(ray, workers, options)
    needs: dict[str, Any] = {"num_cpus": options.cores, "num_gpus": options.gpus or 0, "max_retries": 0}
    if options.memory is not None:
        needs["memory"] = int(options.memory * 1e9)
    task: Any = ray.remote(**needs)(answer)
    queue, attempts = deque(range(len(jobs))), [0] * len(jobs)
    running: dict[Any, int] = {}
    try:
        while queue or running:
            while queue and (workers is None or len(running) < workers):
                number = queue.popleft()
                try:
                    data = pack(function, jobs[number], ray.cloudpickle.dumps)
                except JobFailure as failure:
                    yield Outcome(number, None, failure)
                else:
                    running[task.remote(data, options.cores)] = number
            ready, _ = ray.wait(list(running), num_returns=1) if running else ([], [])
            for reference in ready:
                number = running.pop(reference)
                try:
                    yield received(number, ray.get(reference))
                except ray.exceptions.RayError as error:
                    attempts[number] += 1
                    if attempts[number] <= retries:
                        queue.append(number)  # last, when fewer compete for the memory
                        continue
                    reason = f"its worker was lost ({describe(error).splitlines()[0]})"
                    yield Outcome(number, None, JobFailure(reason, str(error), "killed"))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if own:
            ray.shutdown()


def _start(ray: Any, workers: int | None, options: EngineOptions) -> None:
    """Join the cluster at the address, or start one here."""
    told = {"logging_level": "error", "log_to_driver": True}
    if options.address is None:
        cores = max((workers or available_cores() // options.cores) * options.cores, options.cores)
        # "local": otherwise Ray joins whatever cluster RAY_ADDRESS names or this machine last started
        ray.init(address="local", num_cpus=cores, include_dashboard=False, **told)
        return
    try:
        _knock(options.address)
        ray.init(address=options.address, **told)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConnectionError(
            f"the Ray cluster at {options.address!r} cannot be reached ({describe(error)}); give the address that "
            "`ray start --head` printed, or none to start one here; one that wants a token needs RAY_AUTH_MODE=token"
        ) from error
    total = ray.cluster_resources()
    for name, wanted in (("CPU", options.cores), ("GPU", options.gpus or 0)):
        if wanted > total.get(name, 0):
            warnings.warn(
                f"each job wants {wanted} {name}, the cluster has {total.get(name, 0):g} now: jobs wait for more",
                RuntimeWarning,
                stacklevel=2,
            )


def _knock(address: str) -> None:
    """Check that a server of Ray's protocol, HTTP/2, answers at HOST:PORT: Ray itself retries for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as knock:
        # a greeting in the clear has no answer
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        knock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
        if knock.recv(9)[3:4] != SETTINGS[3:4]:
            raise ConnectionError("what answers there is not Ray")
