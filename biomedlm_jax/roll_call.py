"""The processes of a run find each other before JAX brings them together.

JAX ends a process, without an exception, when one of several does not come, comes twice, or comes
late to a run that is under way, and the run with it. So process 0 first calls the roll on the port
that JAX uses afterwards, and what is wrong has a name. One line of JSON goes each way.
"""

import contextlib
import json
import socket
import time

from biomedlm_jax.entry import HostLost, Unavailable, UserError

LONGEST = 1 << 20  # bytes of a line; something else may answer on a port


def call(coordinator: str, processes: int, process_id: int, seconds: int) -> list[str]:
    """The host names of all processes, in the order of their ids.

    coordinator: host:port of process 0, which listens there; the others go there.

    Raises:
      UserError: the port is taken, nothing or something else answers there, two processes have
        one id, or they differ in how many there are.
      Unavailable: process 0 can not be reached.
      HostLost: process 0 is there, and others did not come; on all that did.
    """
    host, colon, port = coordinator.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f"--coordinator={coordinator} is not host:port, such as 10.0.0.1:8476")
    me = {"process_id": process_id, "processes": processes, "host": socket.gethostname()}
    if process_id == 0:
        found = _listen(coordinator, int(port), me, seconds)
    else:
        found = _go(coordinator, (host.strip("[]"), int(port)), me, seconds)
    if "error" in found:
        raise UserError(found["error"])
    if "missing" in found:
        raise HostLost(found["missing"])
    return found["hosts"]


def _listen(coordinator: str, port: int, me: dict, seconds: int) -> dict:
    """What process 0 finds, and tells all that came."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"--coordinator={coordinator}: port {port} can not be had on {me['host']}, where "
            f"process 0 is ({error.strerror}). Another run, or another process with "
            "--process_id=0, may have it; end that, or name another port on every host"
        ) from error
    there: dict[int, tuple[dict, socket.socket]] = {}
    with contextlib.ExitStack() as stack, server:
        deadline, result = time.monotonic() + seconds, None
        while result is None and len(there) < me["processes"] - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                result = {"missing": _missing(there, me, seconds)}
                break
            one = _line(connection, 2)
            if one and one.keys() == me.keys():
                before = there.get(one["process_id"])
                if one["processes"] != me["processes"]:
                    result = {"error": _counts(one, me)}
                elif before and not _closed(before[1]):
                    result = {"error": _twice(one, before[0])}
                    _tell(before[1], result)
                there[one["process_id"]] = (one, connection)
        if result is None:
            result = {"hosts": [me["host"], *(there[i][0]["host"] for i in sorted(there))]}
        for _, connection in there.values():
            _tell(connection, result)
    return result


def _go(coordinator: str, address: tuple[str, int], me: dict, seconds: int) -> dict:
    """What process 0 says to another."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(address, timeout=2) as connection:
                connection.sendall(json.dumps(me).encode() + b"\n")
                said = _line(connection, seconds + 2)
                if said is not None:
                    return said
                reason = "something answers there that is not waiting for this process"
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > deadline:
            raise Unavailable(
                f"--coordinator={coordinator} can not be reached from {me['host']} within "
                f"{seconds} s ({reason}); start process 0 there, name its host and a free port "
                "alike on every host, and see that no firewall is between them"
            )
        time.sleep(0.2)


def _line(connection: socket.socket, seconds: float) -> dict | None:
    """The line that comes within `seconds`, or None where it is no line of ours."""
    connection.settimeout(seconds)
    with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
        found = json.loads(lines.readline(LONGEST))
        if isinstance(found, dict):
            return found
    return None


def _closed(connection: socket.socket) -> bool:
    """Whether the other end is gone: a process that was started again has its old place."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _tell(connection: socket.socket, result: dict) -> None:
    with contextlib.suppress(OSError):  # it went away meanwhile, and JAX will miss it
        connection.settimeout(2)
        connection.sendall(json.dumps(result).encode() + b"\n")


def _missing(there: dict, me: dict, seconds: int) -> str:
    absent = [i for i in range(1, me["processes"]) if i not in there]
    names = ", ".join(map(str, absent))
    return (
        f"process {names} of {me['processes']} did not come to process 0 on {me['host']} within "
        f"{seconds} s; start every process with the same --coordinator and --processes"
    )


def _twice(one: dict, other: dict) -> str:
    return (
        f"--process_id={one['process_id']} was given twice, on {other['host']} and on "
        f"{one['host']}; each process has its own, from 0 to --processes minus 1"
    )


def _counts(one: dict, me: dict) -> str:
    return (
        f"process {one['process_id']} on {one['host']} has --processes={one['processes']}, process "
        f"0 on {me['host']} has --processes={me['processes']}; give the same number everywhere"
    )
