"""A run as one page that can be sent to a colleague.

`python -m biomedlm_jax.report --workdir=DIR` reads what the run has left in DIR, on a disk or on
gs://, also while it goes on, and writes DIR/report.html: curves, speed, where the time went, what
happened, what the model writes, settings, environment and data. The page needs no network.
"""

import datetime

from absl import flags
from etils import epath

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.lines import appearing
from biomedlm_jax.reports import record as records
from biomedlm_jax.reports.page import page
from biomedlm_jax.reports.sections import all_of, status


def write(workdir: epath.Path, output: epath.Path | None = None) -> epath.Path:
    """Writes the report of the run in `workdir` to `output`, and returns where it is.

    Raises:
      UserError: `workdir` is no run's, or `output` is a folder.
    """
    output = output or workdir / "report.html"
    if output.is_dir():
        raise UserError(f"--output={output} is a folder; name a file, such as report.html in it")
    record = records.read(workdir)
    now = datetime.datetime.now(datetime.UTC)
    name = workdir.absolute().name if "://" not in str(workdir) else workdir.name
    subtitle = f"{status(record)} {record.workdir}, written {now:%Y-%m-%d %H:%M} UTC."
    with appearing(output) as file:
        file.write(page(f"Run {name}", subtitle, all_of(record)).encode())
    return output


def main(workdir: str, output: str | None) -> None:
    print(write(epath.Path(workdir), epath.Path(output) if output else None))


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "the --workdir of a run", required=True)
    OUTPUT = flags.DEFINE_string("output", None, "the page, WORKDIR/report.html if not given")
    entry.run(lambda: main(WORKDIR.value, OUTPUT.value))
