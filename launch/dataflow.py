"""The corpus on Google's machines: `data.build` with Apache Beam's Dataflow runner.

    python -m launch.dataflow --input=gs://my-bucket/ncbi --output=gs://my-bucket/pubmed \
        --size=28896 --project=my-project --zone=us-west4-a --dry_run

Project, zone and network are those of the launch file; what the corpus is made of is said by the
flags of `data.build`. Workers get this repository's code as a wheel, and requirements.txt; --image
names a container that has both instead. The same command again goes on with the shards that are
not finished. --dry_run prints the commands.
"""

import io
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags
from etils import epath

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError, in_cloud
from data import clean, parse, tokenizer
from launch import buckets, bundle, login, prices, spec
from launch.bundle import Bundle
from launch.checks import Check, conclude, confirmed, table, tried
from launch.spec import Launch

ROOT = Path(__file__).parent.parent
WHEELS = "runs/workers"  # below ROOT
PACKAGES = ("biomedlm_jax/", "data/")  # that workers import
DISK_GB = 100  # of a worker: copies of archives, and what DuckDB does not keep in memory
PROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "biomedlm-workers"
version = "{version}"

[tool.setuptools.packages.find]
include = ["biomedlm_jax*", "data*"]
"""


def problems(
    launch: Launch, input: str, output: str, size: int | None, others: Mapping[str, str | None]
) -> list[str]:
    """What can be seen to be wrong without asking anybody, one line each.

    size: of a vocabulary that is made. others: {flag: folder} of what is read besides.
    """
    mine = ("--name", "--project", "--zone")  # there is no run, and no chip
    found = [said for said in spec.problems(launch) if said.startswith(mine)]
    for name, value in {"input": input, "output": output, **others}.items():
        if value and not in_cloud(value):
            found.append(f"--{name}={value} is not on gs://, where Dataflow's workers can reach it")
        elif value and not re.fullmatch(rf"gs://{spec.BUCKET.pattern}/[^/].*", value):
            found.append(f"--{name}={value} is not gs://BUCKET/FOLDER")
    if (size is None) == (others["vocabulary"] is None):
        found.append("say --size=28896, tokens of a vocabulary to make, or --vocabulary=gs://...")
    if f"{output.rstrip('/')}/".startswith(f"{input.rstrip('/')}/"):
        found.append(f"--output={output} is in --input={input}; name another folder")
    return found


def job_name(launch: Launch, output: str) -> str:
    """Of which Dataflow lets one run at a time, so that nobody builds one output twice."""
    return launch.name or spec.valid(output.rstrip("/").rpartition("/")[2])


def build_command(
    launch: Launch,
    corpus: Sequence[str],
    output: str,
    *,
    image: str,
    machine: str,
    workers: int,
    wheel: str,
) -> list[str]:
    """The command after `python -m`.

    corpus: flags of data.build. output: the folder that is among them. image: of a container, or
      "", and workers get `wheel`, a path. machine: Compute Engine's type of a worker. workers: at
      most.
    """
    temporary = f"{output.rstrip('/')}-dataflow"
    options = {
        "project": launch.project,
        "region": launch.region,
        "job_name": job_name(launch, output),
        "temp_location": f"{temporary}/temp",
        "staging_location": f"{temporary}/staging",
        "worker_machine_type": machine,
        "max_num_workers": workers,
        "disk_size_gb": DISK_GB,
        "service_account_email": launch.service_account,
        "network": launch.network,
        "subnetwork": _subnetwork(launch),
    }
    if image:
        options |= {"sdk_container_image": image, "sdk_location": "container"}
    else:  # packages come from where the workers are, not through this machine
        options |= {"requirements_file": "requirements.txt", "requirements_cache": "skip"}
        options |= {"extra_package": wheel}
    given = [f"--beam=--{name}={value}" for name, value in options.items() if value]
    if not launch.external_ips:
        given.append("--beam=--no_use_public_ips")
    return ["data.build", *corpus, "--runner=DataflowRunner", *given]


def _subnetwork(launch: Launch) -> str:
    """As Dataflow wants it, which a name alone is not."""
    name = launch.subnetwork
    return f"regions/{launch.region}/subnetworks/{name}" if name and "/" not in name else name


def wheel_name(sha256: str) -> str:
    """Of the wheel of a bundle with this sha256."""
    return f"biomedlm_workers-0+{sha256[:12]}-py3-none-any.whl"


def make_wheel(folder: Path, copy: Bundle) -> Path:
    """A wheel of the packages that workers import, in `folder`: what git tracks of them.

    Raises:
      UserError: it can not be made.
    """
    made = folder / wheel_name(copy.sha256)
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        with tarfile.open(fileobj=io.BytesIO(copy.data)) as tar:
            wanted = [one for one in tar.getmembers() if one.name.startswith(PACKAGES)]
            tar.extractall(place, wanted, filter="data")
        version = f"0+{copy.sha256[:12]}"
        Path(place, "pyproject.toml").write_text(PROJECT.format(version=version))
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--wheel-dir", f"{place}/made", place]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"the wheel for the workers can not be made: {done.stderr.strip()}")
        Path(place, "made", made.name).rename(made)
    return made


def preflight(
    launch: Launch, input: str, output: str, machine: str, workers: int, where: Callable[[str], str]
) -> list[Check]:
    """What Google Cloud says of the buckets and of the input, and what workers cost.

    machine, workers: as for `build_command`. where: of `buckets.location`.
    """
    moved = f"every byte that is read or written, at ${prices.EGRESS_GB} a GB or more"
    found = []
    for name, place in {"input": input, "output": output}.items():
        setting = f"--{name}={place}"
        found.append(
            tried(name, lambda s=setting, n=name: buckets.placed(launch, s, n, where, moved))
        )
    if found[0].verdict != "wrong":
        found.append(tried("input", lambda: _there(input)))
    hour = prices.worker_hour(machine, DISK_GB)
    each = "an unknown price" if hour is None else f"${hour:,.2f} an hour"
    most = "" if hour is None else f", ${workers * hour:,.2f} in all"
    said = (
        f"at most {workers} workers {machine} at {each}{most} (list price of {prices.AS_OF}); how "
        "many hours is not known before"
    )
    return [*found, Check("cost", "note", said)]


def _there(input: str) -> Check:
    if not epath.Path(input).exists():
        raise UserError(f"--input={input} is not there; copy NCBI's files to it first")
    return Check("input", "ok", f"{input} is there")


def left(launch: Launch, name: str) -> str:
    """How to end a job that goes on without this command."""
    where = f"--project={launch.project} --region={launch.region}"
    return (
        f"the job {name} goes on without this command. To end it:\n  gcloud dataflow jobs cancel "
        f"{where} $(gcloud dataflow jobs list {where} --status=active --filter=name={name} "
        "--format='value(id)')"
    )


def main(of_corpus: Sequence[str]) -> None:
    """of_corpus: names of the flags that are data.build's.

    Raises:
      UserError: the launch is wrong, or data.build fails.
    """
    given = flags.FLAGS
    launch = spec.from_flags()
    others = {"vocabulary": given.vocabulary, "benchmarks": given.benchmarks}
    if wrong := problems(launch, given.input, given.output, given.size, others):
        raise UserError("\n".join(wrong))
    copy = bundle.make(ROOT)
    corpus = [given[name].serialize() for name in of_corpus if given[name].present]
    command = build_command(
        launch,
        corpus,
        given.output,
        image=given.image,
        machine=given.worker_machine,
        workers=given.workers,
        wheel=f"{WHEELS}/{wheel_name(copy.sha256)}",
    )
    if given.dry_run:
        if not given.image:
            print(f"# packs the code ({copy.described()}) as\n#   {WHEELS}/"
                  f"{wheel_name(copy.sha256)}")  # fmt: skip
        print(f"python -m {shlex.join(command)}")
        return
    found = [login.credentials()]
    if found[0].verdict != "wrong":
        where = buckets.location(launch.project)
        machine, workers = given.worker_machine, given.workers
        found += preflight(launch, given.input, given.output, machine, workers, where)
    print(table(found), flush=True)
    conclude(found)
    if not given.yes and not confirmed("Start it?"):
        raise UserError("nothing was started, for nobody said yes; --yes says so beforehand")
    if not given.image:
        make_wheel(ROOT / WHEELS, copy)
    print(f"python -m {shlex.join(command)}", flush=True)
    name = job_name(launch, given.output)
    try:
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False)
    except KeyboardInterrupt:
        raise UserError(left(launch, name)) from None
    if done.returncode == entry.USER_ERROR:
        raise UserError("data.build has refused it; see above")
    if done.returncode:
        raise UserError(
            f"data.build ended with code {done.returncode}; see above. If its job is still there, "
            + left(launch, name)
        )


def define_corpus_flags() -> list[str]:
    """Those of data.build, but for how it runs; returns their names."""
    before = set(flags.FLAGS)
    parse.define_flags()
    clean.define_flags()
    tokenizer.define_flags()
    flags.DEFINE_string("vocabulary", None, "Folder of a vocabulary to use, instead of --size.")
    flags.DEFINE_string("output", None, "Folder to write, on gs://.", required=True)
    return [name for name in flags.FLAGS if name not in before]


if __name__ == "__main__":
    spec.define_flags()
    of_corpus = define_corpus_flags()
    flags.DEFINE_string("image", "", "container of workers that has code and requirements")
    flags.DEFINE_string("worker_machine", "n2-standard-8", "Compute Engine's type of a worker")
    flags.DEFINE_integer("workers", 100, "at most", 1)
    flags.DEFINE_bool("dry_run", False, "print the commands")
    flags.DEFINE_bool("yes", False, "do not ask")
    entry.run(lambda: main(of_corpus))
