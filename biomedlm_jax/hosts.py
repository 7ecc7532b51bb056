"""What the processes of a run say to each other beside the arrays, through JAX's coordinator."""

import jax
from jax._src import distributed


def primary() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def gather(name: str, value: str, seconds: float) -> list[str]:
    """What each process calls it with, by process. `name` is used once in the life of a run."""
    if jax.process_count() == 1:
        return [value]
    client = distributed.global_state.client
    assert client is not None
    client.key_value_set(f"biomedlm/{name}/{jax.process_index()}", value)
    return [
        client.blocking_key_value_get(f"biomedlm/{name}/{process}", int(seconds * 1000))
        for process in range(jax.process_count())
    ]


def barrier(name: str, seconds: float) -> None:
    """Waits for all processes."""
    gather(name, "here", seconds)
