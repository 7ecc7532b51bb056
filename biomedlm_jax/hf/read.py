"""The weights of a Hugging Face folder, from the disk straight to the devices.

A folder has model.safetensors, or shards of it with model.safetensors.index.json, or, which torch
reads, pytorch_model.bin or shards with pytorch_model.bin.index.json; the first of these that is
there counts, as in transformers. Files are mapped, not read whole: a device's piece of an array
costs what is in it. Nothing in a file is executed: torch is told to load weights only.
"""

import dataclasses
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from jax.sharding import Sharding
from jaxtyping import Float

from biomedlm_jax.arrays import cuts
from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf.config import model_of
from biomedlm_jax.hf.names import EMBEDDING, HEAD, Index, Row, match, row_of

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
WEIGHTS = (SINGLE, INDEX, TORCH, TORCH_INDEX)
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # each is a float32 exactly
COMPARED = 1 << 24  # bytes of two tensors that are held against each other at a time


@dataclasses.dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...]
    dtype: str  # of DTYPES' values, or what the file calls another
    read: Callable[[Index], np.ndarray]  # in that dtype; of torch's in float32


class Folder:
    """A Hugging Face folder of a GPT-2, opened: all that can be refused without reading the
    weights themselves is.

    Attributes:
      model: what its config.json describes.
      settings: config.json as it is.
      files: that hold the weights.
      dtype: of all tensors, or "mixed".

    Raises:
      UserError: no such folder; settings, tensors or dtypes that are not those of a GPT-2 that
        this model computes, all named; a file that is damaged; a head that is not the embedding.
    """

    def __init__(
        self, path: Path, dropout: float | None = None, model: Model | None = None
    ) -> None:
        """
        dropout: in place of config.json's.
        model: in place of all of config.json, which is then not read.
        """
        self.path = path
        self.settings = read_json(path / "config.json") if model is None else {}
        found, self.files = tensors(path)
        dtypes = {tensor.dtype for tensor in found.values()}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else "mixed"
        if model is None:
            file = path / "config.json"
            model = model_of(self.settings, file, dtype=self.dtype, dropout=dropout)
        self.model = model
        names = match({name: t.shape for name, t in found.items()}, self.model, str(path))
        self._tensors = {name: found[own] for name, own in names.items()}
        if wrong := [
            f"{names[name]} is {tensor.dtype}"
            for name, tensor in self._tensors.items()
            if tensor.dtype not in DTYPES.values()
        ]:
            raise UserError(
                f"{path} has tensors of other types than {', '.join(DTYPES.values())}: "
                f"{'; '.join(wrong)}; convert them to one of these"
            )
        if HEAD in self._tensors:
            self._compare_head()

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Our array of that name in pieces of its first axis, each with where it begins."""
        for start, stop in cuts(row_of(name, self.model).shapes(self.model)[0]):
            yield start, self.piece(name, start, stop)

    def piece(self, name: str, start: int, stop: int) -> np.ndarray:
        """array[start:stop] of our array of that name."""
        row = row_of(name, self.model)
        rest = (slice(None),) * (len(row.axes) - 1)
        return self._piece(row, (slice(start, stop), *rest))

    def array(self, name: str, sharding: Sharding | None = None) -> Any:
        """Our float32 array of that name, such as "blocks/qkv/kernel": a numpy array, or where
        `sharding` says; then only the pieces of this process's devices are read.

        Raises:
          UserError: a value is not finite.
        """
        row = row_of(name, self.model)
        shape, _ = row.shapes(self.model)
        if sharding is None:
            return self._piece(row, tuple(slice(None) for _ in shape))
        pieces: dict[str, np.ndarray] = {}  # devices that hold copies share one

        def piece(index: Index | None) -> np.ndarray:
            assert index is not None
            key = repr(index)
            if key not in pieces:
                pieces[key] = self._piece(row, index)
            return pieces[key]

        return jax.make_array_from_callback(shape, sharding, piece)

    def _piece(self, row: Row, index: Index) -> Float[np.ndarray, "..."]:
        return row.piece(index, self.model, self._read)

    def _read(self, name: str, index: Index) -> Float[np.ndarray, "..."]:
        found = self._tensors[name].read(index).astype(np.float32, copy=False)
        if not finite(found):
            raise UserError(
                f"{name} in {self.path} has values that are not finite (NaN or infinity); these "
                "weights are damaged, or of a run that had failed"
            )
        return found

    def _compare_head(self) -> None:
        head, embedding = self._tensors.pop(HEAD), self._tensors[EMBEDDING]
        rows, width = head.shape
        step = max(1, COMPARED // (4 * width))
        same = head.dtype == embedding.dtype
        for start in range(0, rows, step):
            index = (slice(start, min(start + step, rows)), slice(0, width))
            same = same and head.read(index).tobytes() == embedding.read(index).tobytes()
        if not same:
            raise UserError(
                f"{self.path} has an lm_head.weight that is not its wte.weight; this model's head "
                "is its embedding (tie_word_embeddings), so another can not be loaded"
            )


def tensors(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of a folder, and the files that they are in.

    Raises:
      UserError: no weights, an index that does not fit the files, or a file that can not be read.
    """
    kind = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if kind is None:
        raise UserError(f"{folder} has no weights; looked for {', '.join(WEIGHTS)}")
    reader = safetensors_in if kind in (SINGLE, INDEX) else _torch
    if kind in (SINGLE, TORCH):
        return reader(folder / kind), [folder / kind]
    placed = read_json(folder / kind).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(x, str) for x in placed.values()):
        raise UserError(f"{folder / kind} has no weight_map of names and files")
    names = sorted(set(placed.values()))
    if away := [name for name in names if Path(name).name != name or name in (".", "..")]:
        raise UserError(f"{folder / kind} names files outside of its folder: {', '.join(away)}")
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder / kind} names files that are not there: {', '.join(absent)}")
    found: dict[str, Tensor] = {}
    wrong = []
    for file in names:
        inside = reader(folder / file)
        listed = {name for name, where in placed.items() if where == file}
        wrong += [f"{name} is not in {file}" for name in sorted(listed - inside.keys())]
        wrong += [f"{name} is in {file}" for name in sorted(inside.keys() - listed)]
        found |= inside
    if wrong:
        raise UserError(f"{folder / kind} and its files do not agree: {'; '.join(wrong)}")
    return found, [folder / name for name in names]


def finite(array: np.ndarray) -> bool:
    """Whether every number is. A sum that is finite has no other terms; one that is not may only
    be too large, so then the largest and the smallest tell, through either of which NaN goes."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum()):
            return True
    return bool(np.isfinite(array.max()) and np.isfinite(array.min()))


def read_json(file: Path) -> dict[str, Any]:
    """Raises UserError: no file, or not a JSON object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing, so {file.parent} is no Hugging Face model") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is no JSON object")
    return found


def safetensors_in(file: Path) -> dict[str, Tensor]:
    """Raises UserError: it can not be read, or is not whole."""

    def of(name: str) -> Callable[[Index], np.ndarray]:
        def read(index: Index) -> np.ndarray:
            # Opened each time: what was mapped and read would count as this process's memory.
            with safetensors.safe_open(file, framework="numpy") as opened:
                return opened.get_slice(name)[index]

        return read

    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            slices: dict[str, Any] = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        types = {name: str(found.get_dtype()) for name, found in slices.items()}
        return {
            name: Tensor(tuple(found.get_shape()), DTYPES.get(types[name], types[name]), of(name))
            for name, found in slices.items()
        }
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file} is no whole safetensors file: {error}; copy it again") from error


def _torch(file: Path) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file} is PyTorch's own format, which PyTorch reads and is not installed: `pip "
            "install torch`, or use a folder with model.safetensors"
        ) from error
    try:
        found = torch.load(file, weights_only=True, mmap=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} holds more than weights, and nothing of it was executed; do not load it "
            f"elsewhere: {_first_line(error)}"
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{file} can not be read: {_first_line(error)}; it is damaged, or older than PyTorch "
            "1.6, whose format can not be mapped"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{file} holds a {type(found).__name__}, not tensors by name")
    if other := [str(name) for name, x in found.items() if not isinstance(x, torch.Tensor)]:
        raise UserError(f"{file} holds what is no tensor: {', '.join(other)}")

    if other := [repr(name) for name in found if not isinstance(name, str)]:
        raise UserError(f"{file} has tensors whose names are no text: {', '.join(other)}")
    if other := [name for name, x in found.items() if x.layout != torch.strided]:
        raise UserError(f"{file} has sparse tensors: {', '.join(other)}; make them dense")

    def of(tensor: Any) -> Callable[[Index], np.ndarray]:
        return lambda index: tensor.detach()[index].to(torch.float32).contiguous().numpy()

    return {
        name: Tensor(tuple(x.shape), str(x.dtype).removeprefix("torch."), of(x))
        for name, x in found.items()
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
