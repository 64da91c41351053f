"""The machines of one run meet before anything starts, each saying which are missing, for a limited time.

The first machine listens at the port where their processes will meet afterwards, and the others come to it. All is polled
in Python, so that Ctrl-C ends it at once; torch's own rendezvous waits in C++, in silence.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lora_kit.system.kernel import LaunchError, PortTaken

RDZV_TIMEOUT = 120  # seconds that a machine waits for the others, unless told otherwise
POLL = 0.2  # seconds
FIRST, TELL = 2, 10  # seconds until the first sentence on who is missing, and between two
LONGEST = 4096  # characters of what one machine tells another


class _Wait:
    """Says every so often whom a machine waits for, and raises LaunchError at the end of its time."""

    def __init__(self, limit):
        self.limit, self.began = limit, time.monotonic()
        self.next, self.every = min(FIRST, limit / 4), min(TELL, limit / 4)

    def goes_on(self, missing, cure):
        """missing: what is not there, as the beginning of a sentence. cure: what may be wrong. True where it was said."""
        seconds = time.monotonic() - self.began
        if seconds >= self.limit:
            raise LaunchError(f"{missing} after {self.limit} s: {cure}")
        if seconds < self.next:
            return False
        self.next += self.every
        print(f"{missing} yet; {seconds:.0f} of {self.limit} s", flush=True)
        return True


class Others:
    """The other machines of a run, as one of them knows them: the first one tells all, and the others hear the first."""

    def __init__(self, told: Sequence[socket.socket] = (), heard: Iterable[dict[str, Any]] = ()) -> None:
        self._told, self._heard = told, heard

    def tell(self, **message: Any) -> None:
        """As the first machine, tell the others."""
        _tell(self._told, **message)

    def hear(self, name: str, limit: float) -> None:
        """As another machine, return when the first has told something of this name, or is gone. TimeoutError after `limit` s."""
        end = time.monotonic() + limit
        for message in self._heard:
            if name in message:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"machine 0 has not started its processes within ddp_timeout {limit:g} s")


@contextlib.contextmanager
def meet(
    address: str, port: int, num_machines: int, machine_rank: int, num_processes: int, limit: int
) -> Iterator[Others]:
    """A block that begins when all machines of a run are there, each with a machine_rank of its own and the same other numbers:
    at once where there is one. It gets the `Others`.

    address: the first machine's. limit: seconds. Raises LaunchError that names who is missing and what may be wrong,
    PortTaken where the first machine can't listen, and KeyboardInterrupt at once.
    """
    own = dict(machine_rank=machine_rank, num_machines=num_machines, num_processes=num_processes)
    wait, place = _Wait(limit), f"{f'[{address}]' if ':' in address else address}:{port}"
    with contextlib.ExitStack() as stack:
        try:
            if num_machines == 1:
                others = Others()
            elif machine_rank == 0:
                others = _gather(own, port, place, wait, stack)
            else:
                others = _join(own, (address, port), place, wait, stack)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted while waiting for the other machines; nothing was started") from None
        yield others


def _gather(own, port, place, wait, stack):
    """The first machine's part: listen until all others have come, and only then tell them to go."""
    total, there = own["num_machines"], {}
    with _listener(port) as listener:
        while missing := [rank for rank in range(1, total) if rank not in there]:
            who = f"{_named(missing, total)} connected to {place}"
            cure = (
                f"is launch running with machine_rank {missing[0]}, main_process_ip and port {place}? Is that "
                f"an address of this machine that the others can reach, and is port {port} open in the firewall?"
            )
            try:
                said = wait.goes_on(who, cure)
            except LaunchError as error:
                _tell(there.values(), error=str(error))
                raise
            if said:
                _tell(there.values(), missing=who)
            ready = select.select([listener, *there.values()], [], [], POLL)[0]
            gone = [rank for rank, connection in there.items() if connection in ready and not _hear(connection)]
            for rank in gone:
                there.pop(rank).close()
            if listener in ready:
                connection = stack.enter_context(listener.accept()[0])
                rank = _received(connection, own, there)
                if rank is not None:
                    there[rank] = connection
    _tell(there.values(), go=True)  # the port is free again
    return Others(list(there.values()))


def _listener(port):
    """A socket that listens at a port of every address of this machine, of IPv6 too where there is that."""
    for options in ({"family": socket.AF_INET6, "dualstack_ipv6": True}, {}):
        try:
            return socket.create_server(("", port), **options)
        except (OSError, ValueError) as error:
            problem = error
    raise PortTaken(f"port {port} is in use ({problem}): choose another, on all machines") from None


def _received(connection, own, there):
    """The machine_rank of who has come, if it is one of this run; else it is told why not, or isn't one of ours."""
    connection.settimeout(1)
    other = _hear(connection)
    if not other or other.keys() != own.keys():
        connection.close()  # whatever looks for open ports
        return None
    rank = other["machine_rank"]
    free = [number for number in range(1, own["num_machines"]) if number not in there]
    problems = [] if rank in free else [f"machine_rank {rank!r} is not one of those still expected, {free}"]
    problems += [
        f"{name} is {other[name]!r} there and {own[name]!r} here"
        for name in ("num_machines", "num_processes")
        if other[name] != own[name]
    ]
    if not problems:
        return rank
    print(f"warning: a machine was sent away: {'; '.join(problems)}", flush=True)
    _tell([connection], error=f"the first machine sends this one away: {'; '.join(problems)}")
    connection.close()
    return None


def _join(own, place_of_first, place, wait, stack):
    """Another machine's part: come to the first one until it says go."""
    who, cure = f"machine 0 of {own['num_machines']} isn't at {place}", ""
    while True:
        try:
            with contextlib.ExitStack() as this_try:
                connection = this_try.enter_context(socket.create_connection(place_of_first, timeout=1))
                _tell([connection], **own)
                missing, heard = who, _heard(connection)
                for told in heard:
                    if told.get("go"):
                        stack.push(this_try.pop_all())
                        return Others(heard=heard)
                    if "error" in told:
                        raise LaunchError(told["error"])
                    missing = told.get("missing", missing)
                    wait.goes_on(missing, "machine 0 is still waiting")
                cure = "the program that answers there isn't launch with machine_rank 0, or it has ended"
        except OSError as error:
            cure = _why(error)
        wait.goes_on(who, f"{cure}. Give every machine the same main_process_ip and port")
        time.sleep(POLL)


def _why(error):
    """What may be wrong where the first machine can't be reached."""
    reason = error.strerror or str(error)
    if isinstance(error, socket.gaierror):
        return f"this machine can't look up that name ({reason})"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing is listening there ({reason}): is launch running there, with machine_rank 0?"
    return f"nothing answers ({reason}): a firewall may be blocking the port, or the address may be another machine's"


def _named(ranks, total):
    machines = f"machine {ranks[0]}" if len(ranks) == 1 else f"machines {', '.join(map(str, ranks))}"
    return f"{machines} of {total} {'has' if len(ranks) == 1 else 'have'}n't"


def _tell(connections: Sequence[socket.socket], **message: Any) -> None:
    """Send a message as one line; who is gone is noticed elsewhere."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(message).encode() + b"\n")


def _hear(connection):
    """The next message, {} for one that is none or hasn't come whole in time; None where the connection has ended."""
    return next(_heard(connection), None)


def _heard(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """The messages of a connection, until it ends; {} after each second without one."""
    connection.settimeout(1)
    received = b""
    while len(received) < LONGEST:
        try:
            part = connection.recv(LONGEST)
        except TimeoutError:
            yield {}
            continue
        except OSError:
            return
        if not part:
            return
        *lines, received = (received + part).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                return
            yield message if isinstance(message, dict) else {}
