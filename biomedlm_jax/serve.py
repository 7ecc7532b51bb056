"""A completion server for one machine or one house: OpenAI's API over a model that is here.

    python -m biomedlm_jax.serve --checkpoint=DIR

answers on http://127.0.0.1:8000 to what speaks OpenAI's completions, and in a browser with a page
to try it. It makes no connection of its own and writes no text to its log. Addresses that other
machines can reach need a token. SIGTERM and SIGINT let what runs come to its end; a second one
does not.
"""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TextIO

from absl import flags

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from biomedlm_jax.sample import SLOTS, open_engine
from biomedlm_jax.serving import guard
from biomedlm_jax.serving.app import Patience
from biomedlm_jax.serving.server import Server

TOKEN_VARIABLE = "BIOMEDLM_TOKEN"


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; who connects is answered once the server runs.

    Listening comes at once: until then another process can have the same address too.

    port: 0 takes a free one.

    Raises:
      UserError: the address is no address or not this machine's, or the port is taken.
    """
    guard.own(host)
    address = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(f"--host={host} --port={port}: {error.strerror}; name others") from error
    return listener


def read_token(file: str | None, host: str) -> str | None:
    """From the file, if one is named, else from the environment.

    Raises:
      UserError: it can not be read, is not fit, or is needed and not there.
    """
    if file is None:
        return guard.check_token(os.environ.get(TOKEN_VARIABLE), host, TOKEN_VARIABLE)
    try:
        found = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token_file={file} can not be read: {error}") from error
    return guard.check_token(found, host, f"--token_file={file}")


def log_to(stream: TextIO) -> None:
    """Lines as they are. Where nobody reads them any more, the server goes on."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    guard.LOG.addHandler(handler)
    guard.LOG.setLevel(logging.INFO)
    guard.LOG.propagate = False


async def until_signal(server: Server) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.end)
    if not await server.run():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main() -> None:
    given = flags.FLAGS
    token = read_token(given.token_file, given.host)
    listener = bind(given.host, given.port)  # before the weights are read, which takes a while
    log_to(sys.stdout)
    name = given.name or Path(given.checkpoint).absolute().name
    engine = open_engine(
        given.checkpoint, slots=given.slots, pieces=given.pieces, compute_dtype=given.compute_dtype
    )
    queue, grace = given.queue, given.grace
    server = Server(engine, name, listener, token, queue=queue, grace=grace, patience=Patience())
    asyncio.run(until_signal(server))


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "the --workdir of a run, or a folder", required=True)
    flags.DEFINE_string("name", None, "of the model, as clients give it; the folder's if not given")
    flags.DEFINE_string("host", "127.0.0.1", "an address; others than this machine's own need a "
                        "token")  # fmt: skip
    flags.DEFINE_integer("port", 8000, "0 takes a free one", 0, 65535)
    flags.DEFINE_string("token_file", None, f"holds the token; or {TOKEN_VARIABLE} does")
    flags.DEFINE_integer("pieces", None, "of a layer, on as many devices; not given: all, on CPU 1")
    flags.DEFINE_enum("compute_dtype", None, ["float32", "bfloat16"], "not given: the model's")
    flags.DEFINE_integer("slots", 8, "completions that are written at the same time", 1, SLOTS)
    flags.DEFINE_integer("queue", 256, "requests that may wait for a slot; more get 429", 1)
    flags.DEFINE_float("grace", 30, "seconds that requests have to finish at the end", 0)
    entry.run(main)
