"""What a checkpoint must be, before anything is made of it: a stranger may have written it, or a disk damaged it.

Three steps, each of which raises UserError in one line. Together they need no more memory than twice the file's size,
and 100 bytes for each of its pickle's:

    check_file     before it is loaded: a zip archive as torch.save writes it, with nothing compressed, nothing there
                   twice and every checksum right. A pickle in it has at most MOST_PICKLE bytes, and makes nothing but
                   tensors, plain values and argparse's options. (Files of torch before 1.6 are no archives: of them,
                   the pickle alone.)
    check_content  once it is loaded: at most MOST_VALUES values, MOST_DEPTH deep; every tensor is dense and of real
                   numbers, and no two share memory
    check_form     of a checkpoint of ours: every entry is of the kind that FORM says, and all are what was saved

The options in it are checked by `Config`, as flags are, and the network that they describe by who builds it.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError

MOST_PICKLE = 8 * 2**20  # bytes: about 50,000 tensors
MOST_VALUES = 1_000_000
MOST_DEPTH = 8  # a checkpoint's are 5 deep
MOST_NAME = 1000  # characters of a class name
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int32, torch.int64}
GLOBALS = re.compile(  # what a pickle may name: types, and what makes tensors, dictionaries and others' options
    r"collections OrderedDict|argparse Namespace|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch (Size|device|\w+Storage|bool)|torch (bfloat|float|uint|int)\d+"
)
CALLS = {"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}  # other ways to name them, which torch.save never takes
SIGNATURE = b"PK\3\4"  # that a zip archive begins with
DIRECTORY_END = struct.Struct("<4s4H2LH")  # its last bytes; the offset of the archive's directory is before the last
DIRECTORY_END_64 = struct.Struct("<4sQ2H2L4Q4sLQL4s4H2LH")  # likewise, as torch.save writes them


def check_file(path: str | Path) -> None:
    """Raise UserError where a file cannot be loaded safely, or its checksums are wrong; OSError where not be read."""
    with open(path, "rb") as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            file.seek(0)
            return _check_pickles(file, path, count=5)  # the format of torch before 1.6: these, then bytes
        try:
            with zipfile.ZipFile(file) as archive:
                _check_archive(archive, file, path)
        except (zipfile.BadZipFile, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is damaged or cut short: {error}") from None


def _check_archive(archive: zipfile.ZipFile, file: BinaryIO, path: str | Path) -> None:
    """The archive's part of `check_file`. torch's own reader compares no checksums and inflates whatever there is."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(f"{path} is refused: it is compressed, which torch.save never does; its size says nothing")
    if len(set(names)) < len(names) or sum(member.file_size for member in members) > Path(path).stat().st_size:
        raise UserError(f"{path} is refused: members of the archive overlap")
    if archive.start_dir != _directory(file):
        raise UserError(f"{path} is refused: the archive has two directories, or bytes around it")
    if (bad := archive.testzip()) is not None:
        raise UserError(f"{path} is damaged: the checksum of {bad} in it is wrong")
    for member in members:
        if member.filename.endswith(".pkl"):
            if member.file_size > MOST_PICKLE:
                raise UserError(f"{path} is refused: {member.filename} in it is larger than {MOST_PICKLE:,} bytes")
            _check_pickles(io.BytesIO(archive.read(member)), path)


def _directory(file: BinaryIO) -> int:
    """The offset that the archive gives for its directory, which zipfile does not go by; -1 where it gives none."""
    file.seek(-DIRECTORY_END.size, 2)
    signature, *_, offset, comment = DIRECTORY_END.unpack(file.read())
    if signature != b"PK\5\6" or comment:
        return -1
    end = file.tell()
    if end < DIRECTORY_END_64.size:
        return offset
    file.seek(-DIRECTORY_END_64.size, 2)
    fields = DIRECTORY_END_64.unpack(file.read())
    if fields[10] != b"PK\6\7":
        return offset
    return fields[9] if fields[0] == b"PK\6\6" and fields[12] == end - DIRECTORY_END_64.size else -1


def _check_pickles(file: BinaryIO, path: str | Path, count: int = 1) -> None:
    """Raise UserError where the next `count` pickles in a file name anything but GLOBALS, or are none, or too long."""
    try:
        for _ in range(count):
            for operation, argument, position in pickletools.genops(file):
                if operation.name in CALLS or (operation.name == "GLOBAL" and not GLOBALS.fullmatch(argument)):
                    raise pickle.UnpicklingError(argument or operation.name)
                if position > MOST_PICKLE:
                    raise ValueError("too long")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is not a plain checkpoint (it holds code or foreign objects: {error}); "
            "only tensors and plain values are loaded"
        ) from None
    except Exception:  # it may be anything
        raise UserError(f"{path} is not a checkpoint, or a damaged one: torch.save writes no such file") from None


def check_content(content: Any, path: str | Path) -> None:
    """Raise UserError where what was loaded has too many values, or a tensor that is not dense and by itself."""
    tensors, storages = 0, {}
    for number, part in enumerate(_walk(content, path)):
        if number == MOST_VALUES:
            raise UserError(f"{path} is refused: it holds more than {MOST_VALUES:,} values")
        if isinstance(part, Tensor):
            if not is_dense(part):
                raise UserError(f"{path} is refused: it holds {said(part)} that is not dense and of real numbers")
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            tensors += part.nbytes
    if tensors > sum(storages.values()):
        raise UserError(f"{path} is refused: tensors in it share their memory")


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one of real numbers on the CPU, each element with a place of its own, no gaps."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in DTYPES or tensor.is_neg():
        return False
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)) if tensor.numel() else ():
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _walk(value: Any, path: str | Path, depth: int = 0) -> Iterator[Any]:
    """The tensors and plain values in a value, and how many each dict or sequence holds."""
    if not isinstance(value, (dict, list, tuple, set)):
        yield value
        return
    if depth > MOST_DEPTH:
        raise UserError(f"{path} is refused: values in it lie in one another more than {MOST_DEPTH} deep")
    yield len(value)
    for part in itertools.chain.from_iterable(value.items()) if isinstance(value, dict) else value:
        yield from _walk(part, path, depth + 1)


class Kind(NamedTuple):
    """What an entry of a checkpoint is."""

    fits: Callable[[Any], bool]
    wanted: str  # in words


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def is_by_name(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and fits(part) for key, part in value.items())


def is_sequence(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(fits, value))


def is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def is_names(value: Any) -> bool:
    short = is_sequence(value, lambda name: isinstance(name, str) and len(name) <= MOST_NAME)
    return short and len(set(value)) == len(value)


def is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    state, groups = value.get("state"), value.get("param_groups")
    return (
        isinstance(state, dict)
        and all(is_count(number) and is_by_name(slot, is_slot) for number, slot in state.items())
        and isinstance(groups, list)
        and all(isinstance(group, dict) and is_sequence(group.get("params"), is_count) for group in groups)
    )


def is_slot(value: Any) -> bool:
    return value is None or is_number(value) or isinstance(value, Tensor)


def is_generators(value: Any) -> bool:
    states = is_by_name(value, lambda s: isinstance(s, Tensor) and s.dtype == torch.uint8 and s.dim() == 1)
    return states and "cpu" in value


def is_progress(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() >= {"losses", "figures", "seen", "seconds"}:
        return False
    losses = value["losses"]
    series = isinstance(losses, Tensor) and losses.is_floating_point() and losses.dim() == 1
    return series and is_count(value["seen"]) and is_number(value["figures"]) and is_number(value["seconds"])


COUNT = Kind(is_count, "a whole number of at least 0")
COLOURS = Kind(lambda value: is_sequence(value, is_number) and len(value) == 3, "three numbers")
FORM = {
    "model": Kind(lambda value: is_by_name(value, lambda part: isinstance(part, Tensor)), "tensors by name"),
    "optimizer": Kind(is_optimizer, "an optimizer's state_dict"),
    "schedule": Kind(lambda value: is_by_name(value, is_number), "numbers by name"),
    "epoch": COUNT,
    "step": COUNT,
    "rng": Kind(is_generators, "bytes by device, cpu among them"),
    "config": Kind(
        lambda value: is_by_name(value, lambda part: is_plain(part) or is_sequence(part, is_plain)),
        "plain values by name",
    ),
    "classes": Kind(is_names, f"different names of at most {MOST_NAME:,} characters"),
    "mean": COLOURS,
    "std": COLOURS,
    "versions": Kind(lambda value: is_by_name(value, lambda part: isinstance(part, str)), "texts by name"),
}
OPTIONAL = {"progress": Kind(is_progress, "losses, figures, seen, seconds")}


def check_form(content: dict[str, Any], path: str | Path) -> None:
    """Raise UserError where an entry of a checkpoint of ours is of another kind than FORM says, or not as it was saved.

    Further entries are left alone: a later version may write them.
    """
    for key, kind in (FORM | OPTIONAL).items():
        if key in content and not kind.fits(content[key]):
            raise UserError(
                f"{path} is not a sound checkpoint: its {key} is {said(content[key])}; wanted {kind.wanted}"
            )
    if "digest" in content and content["digest"] != digest(content):
        raise UserError(f"{path} is damaged: what it holds is not what was saved")


def said(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__} of {len(value)}, not all of them such"
    return ascii(value)[:60]


def digest(content: dict[str, Any]) -> str:
    """SHA-256 of a checkpoint's entries but "digest": of tensors dtype, shape and values, all in order."""
    found = hashlib.sha256()
    for part in _walk({key: value for key, value in content.items() if key != "digest"}, "the checkpoint"):
        if isinstance(part, Tensor):
            found.update(f"{part.dtype} {list(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            found.update(f"{type(part).__name__} {part!a}\n".encode())
    return found.hexdigest()
