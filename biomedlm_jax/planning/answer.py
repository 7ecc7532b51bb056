"""What is answered about one target, as numbers that go into tables, JSON and pages."""

import dataclasses
from pathlib import Path
from typing import Any

from biomedlm_jax.compilers import whole
from biomedlm_jax.compilers.child import CompileError, MachineError
from biomedlm_jax.compilers.programs import Programs
from biomedlm_jax.compilers.topologies import known
from biomedlm_jax.entry import UserError
from biomedlm_jax.planning import memory, times
from biomedlm_jax.planning.target import MAKE, Target, attention_flops, matrix_flops


@dataclasses.dataclass(frozen=True)
class Answer:
    """memory: `planning.memory.parts`, None where the program does not compile for another reason,
    which is `refused` then. figures: the compiler's, None where there is no program."""

    target: Target
    memory: dict[str, Any] | None
    figures: dict[str, Any] | None = None
    predicted: dict[str, Any] | None = None
    refused: str | None = None

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.memory["fits"]

    def record(self) -> dict[str, Any]:
        """All of it for JSON."""
        target, machine = self.target, self.target.machine
        model, run = target.experiment.model, target.experiment.run
        found: dict[str, Any] = {
            "topology": machine.name,
            "chips": machine.devices,
            "mesh": target.axes,
            "batch": target.experiment.data.batch,
            "batch_per_chip": target.experiment.data.batch / machine.devices,
            "remat": model.remat,
            "accumulate": run.accumulate,
            "dropout": model.dropout,
            "attention": model.attention,
            "fits": self.fits,
            "memory": self.memory,
            "refused": self.refused,
        }
        if self.figures is None:
            return found
        tokens, totals = target.tokens / machine.devices, times.totals(target, self.figures)
        found["compiler"] = {
            name: self.figures[name] for name in ("trace_seconds", "compile_seconds", "host_bytes")
        }
        found["flops"] = {
            "matrix": self.figures["matrix_flops"],
            "model_matrix": matrix_flops(model, 1) * tokens,
            "model_attention_causal": attention_flops(model, 1) * tokens,
        }
        names = ("xla_cycles", "kernel_cycles", "kernel_runs", "dearest")
        found |= {name: self.figures[name] for name in names}
        found["collectives"] = totals and {
            kind: dataclasses.asdict(total) for kind, total in totals.items()
        }
        found["roofline_seconds"] = times.roofline(target, self.figures)
        found["predicted_parts"] = times.parts(target, self.figures)
        found["predicted"] = self.predicted
        found |= {name: self.figures.get(name) for name in ("uncounted", "kernels_unknown")}
        found["assumptions"] = times.assumptions(target, self.figures)
        return found


def ask(
    compiler: Programs, target: Target, price: float | None = None, text_to: Path | None = None
) -> Answer:
    """Compiles the target's step. What does not compile is an answer as well.

    Raises:
      UserError: the compiler knows no such machine.
    """
    settings = dataclasses.asdict(target.experiment)
    machine = target.machine.name
    try:
        figures = compiler.program(machine, MAKE, text_to=text_to, experiment=settings)
    except MachineError as error:
        raise UserError(f"--topology={machine}: {error}; {known()}") from error
    except CompileError as error:
        if sizes := whole.too_large(str(error)):
            return Answer(target, memory.refused(target, *sizes))
        return Answer(target, None, refused=" ".join(str(error).split()))
    held = memory.parts(target, figures["memory"])
    return Answer(target, held, figures, times.predicted(target, figures, price))
