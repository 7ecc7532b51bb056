"""What the numbers of a step say about the run: all is well, or else which documents were in it.

An update whose loss or gradient is not finite was left out by the step itself (`step.train_step`).
Here it is reported, and the run ends when there are too many in a row.
"""

import math
from collections.abc import Callable

from biomedlm_jax.config import Run
from biomedlm_jax.entry import UserError

WINDOW = 100  # steps over which the loss is averaged, with exponentially falling weights
SHOWN = 5  # documents on the console; the journal has all


class Judge:
    """Looks at every step, in order.

    documents: the ids in the batch with which an update was made, by its number from 0.
    event: writes to the run's journal; called as event(kind, step, **values).
    say: tells people, on one of several processes.
    """

    def __init__(
        self, run: Run, documents: Callable[[int], list[str]], event: Callable, say: Callable
    ) -> None:
        self.run, self.documents, self.event, self.say = run, documents, event, say
        self.mean = self.variance = 0.0
        self.seen = 0

    def look(self, step: int, values: dict[str, float], saved: int | None) -> None:
        """At the metrics of the update that ended with `step` updates done.

        saved: the step of the newest save.

        Raises:
          UserError: more than run.max_skipped updates in a row were left out, or the parameters
            are not finite.
        """
        if skipped := int(values["skipped"]):
            found = self.documents(step - 1)
            shown = {name: values[name] for name in ("loss", "grad_norm")}
            self.event("skipped", step, **_as_text(shown), documents=found)
            what = " and ".join(f"{name} is {x}" for name, x in shown.items() if not _finite(x))
            if skipped > self.run.max_skipped:
                raise UserError(
                    f"{what} at step {step}; that is {skipped} updates in a row that were left "
                    f"out, and config.run.max_skipped={self.run.max_skipped} allows no more. "
                    f"{_last(saved)}. Its batch has {_some(found)}: look at those "
                    f"(`python -m biomedlm_jax.pipeline.inspect --step={step - 1}` shows documents "
                    "of a store), or lower config.optimizer.peak_lr"
                )
            self.say(f"step {step}: {what}; the update was left out. Its batch has {_some(found)}")
            return
        if wrong := [f"{name} is {x}" for name, x in values.items() if not _finite(x)]:
            raise UserError(
                f"{', '.join(wrong[:3])} at step {step}; no state from here on was saved. "
                f"{_last(saved)}. Lower config.optimizer.peak_lr"
            )
        self._spike(step, values["loss"])

    def _spike(self, step: int, loss: float) -> None:
        """Holds a loss against the mean and deviation of those before it."""
        sigma = math.sqrt(self.variance)
        limit = self.run.spike_sigmas
        if limit and self.seen >= WINDOW and loss > self.mean + limit * sigma:
            found = self.documents(step - 1)
            self.event("spike", step, loss=loss, mean=self.mean, sigma=sigma, documents=found)
            self.say(
                f"step {step}: loss {loss:.4f} is {(loss - self.mean) / sigma:.1f} standard "
                f"deviations above the {self.mean:.4f} before it. Its batch has {_some(found)}"
            )
        self.seen += 1
        weight = max(1 / self.seen, 1 / WINDOW)  # the plain mean of the first ones
        change = loss - self.mean
        self.mean += weight * change
        self.variance = (1 - weight) * (self.variance + weight * change**2)


def _finite(x: float) -> bool:
    return math.isfinite(x)


def _as_text(values: dict[str, float]) -> dict[str, float | str]:
    """JSON has no NaN."""
    return {name: x if _finite(x) else str(x) for name, x in values.items()}


def _last(saved: int | None) -> str:
    return "There is no save" if saved is None else f"The last save is of step {saved}"


def _some(documents: list[str]) -> str:
    more = len(documents) - SHOWN
    shown = ", ".join(documents[:SHOWN])
    return f"{shown} and {more:,} more documents (events.jsonl)" if more > 0 else shown
