"""Files of tensors that lie about what is in them, and tensors that are no weights."""

import io
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.hostile import made

CODE = "__import__('os').system('touch PWNED')"


class Evil:
    """A pickle that starts a program where it is loaded."""

    def __reduce__(self):
        return subprocess.call, (["touch", "PWNED"],)


def npy(header: str, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin-1", "replace")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + body


def member(path: Path, name: str, data: bytes, **options) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(name, data)


def array(path: Path, source: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """The whole file with another array in place of one of its kernels."""
    tensors, comment = made.npz_parts(source)
    tensors["embedding/kernel"] = change(tensors["embedding/kernel"])
    made.write_npz(path, tensors, comment)


def float_header(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def made_npy(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def flipped(source: Path) -> bytes:
    data = bytearray(source.read_bytes())
    data[data.index(b"embedding/kernel") + 400] ^= 255
    return bytes(data)


def bomb(path: Path) -> None:
    """Two GB of zeros in 2 MB, under a name that no model has."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy(float_header("(536870912,)")))
        for _ in range(2048):
            file.write(bytes(2**20))


def encrypted(path: Path, source: Path) -> None:
    """The bit of encryption is set in every entry of the directory."""
    data = bytearray(source.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 8] |= 1
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)


def many(path: Path) -> None:
    one = made_npy(np.zeros(1, np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20_000):
            archive.writestr(f"x{number}.npy", one)


NPZ: dict[str, Callable[[Path, Path], object]] = {
    "objects": lambda p, w: array(p, w, lambda x: np.array([Evil()], object)),
    "a pickle": lambda p, w: p.write_bytes(pickle.dumps({"w": Evil()})),
    "a pickle in a zip": lambda p, w: member(p, "x/data.pkl", pickle.dumps(Evil())),
    "a pickle named npy": lambda p, w: member(p, "embedding/kernel.npy", pickle.dumps(Evil())),
    "a shape of 2**60": lambda p, w: member(p, "a.npy", npy(float_header(f"({2**60},)"))),
    "a negative shape": lambda p, w: member(p, "a.npy", npy(float_header("(-4, 4)"), bytes(64))),
    "a header that is code": lambda p, w: member(p, "a.npy", npy(CODE)),
    "a header of 2**31": lambda p, w: member(p, "a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{"),
    "a nested header": lambda p, w: member(p, "a.npy", npy("(" * 30_000)),
    "a void dtype": lambda p, w: array(p, w, lambda x: np.zeros(x.shape, "V4")),
    "a struct": lambda p, w: array(p, w, lambda x: np.zeros(x.shape, "f4,f4")),
    "dates": lambda p, w: array(p, w, lambda x: np.zeros(x.shape, "M8[s]")),
    "durations": lambda p, w: array(p, w, lambda x: np.zeros(x.shape, "m8[s]")),
    "texts": lambda p, w: array(p, w, lambda x: np.full(x.shape, b"0.5", "S8")),
    "letters": lambda p, w: array(p, w, lambda x: np.full(x.shape, "0.5", "U4")),
    "complex numbers": lambda p, w: array(p, w, lambda x: x + 1j),
    "truths": lambda p, w: array(p, w, lambda x: x > 0),
    "bytes": lambda p, w: array(p, w, lambda x: (x * 100).astype(np.int8)),
    "whole numbers": lambda p, w: array(p, w, lambda x: (x * 100).astype(np.int64)),
    "not a number": lambda p, w: array(p, w, lambda x: np.where(x == x.max(), np.nan, x)),
    "infinity": lambda p, w: array(p, w, lambda x: np.full_like(x, -np.inf)),
    "another shape": lambda p, w: array(p, w, lambda x: x[..., :-1]),
    "no dimensions": lambda p, w: array(p, w, lambda x: np.float32(1)),
    "empty": lambda p, w: p.write_bytes(b""),
    "a zip of nothing": lambda p, w: zipfile.ZipFile(p, "w").close(),
    "half": lambda p, w: p.write_bytes(w.read_bytes()[: len(w.read_bytes()) // 2]),
    "without its end": lambda p, w: p.write_bytes(w.read_bytes()[:-10]),
    "a flipped byte": lambda p, w: p.write_bytes(flipped(w)),
    "names with ESC": lambda p, w: made.write_npz(p, {"a\x1b[2Jb\n": np.zeros(3)}, b""),
    "names that climb": lambda p, w: member(p, "../../PWNED.npy", made_npy(np.zeros(3))),
    "a bomb": lambda p, w: bomb(p),
    "encrypted": encrypted,
    "20,000 members": lambda p, w: many(p),
}  # fmt: skip


def changed_header(source: Path, path: Path, change: Callable[[dict], object]) -> None:
    header, body = made.safetensors_parts(source)
    change(header)
    made.write_safetensors(path, header, body)


def first(header: dict) -> dict:
    return next(value for name, value in header.items() if name != "__metadata__")


def renamed(header: dict) -> None:
    header["x\x1b]0;y\x07"] = header.pop(next(name for name in header if name != "__metadata__"))


def with_first(**told) -> Callable[[Path, Path], object]:
    """The whole file, of whose first tensor something else is told."""
    return lambda path, source: changed_header(source, path, lambda h: first(h).update(told))


SAFETENSORS: dict[str, Callable[[Path, Path], object]] = {
    "a header of 2**60": lambda p, w: made.write_safetensors(p, b"{}", b"", 2**60),
    "a header past the end": lambda p, w: made.write_safetensors(p, b"{}", b"", 10_000),
    "a nested header": lambda p, w: made.write_safetensors(p, b'{"a":' + b"[" * 100_000, b""),
    "a header that is a list": lambda p, w: made.write_safetensors(p, b"[{}]", b""),
    "not UTF-8": lambda p, w: made.write_safetensors(p, b'{"\xff": {}}', b""),
    "overlapping": with_first(data_offsets=[0, 4]),
    "before the start": with_first(data_offsets=[-8, 4]),
    "past the end": with_first(data_offsets=[0, 2**50]),
    "a shape of 2**60": with_first(shape=[2**60]),
    "a shape that overflows": with_first(shape=[2**33, 2**33]),
    "int8": lambda p, w: recast(w, p, "I8", np.int8),
    "int32": lambda p, w: recast(w, p, "I32", np.int32),
    "truths": lambda p, w: recast(w, p, "BOOL", np.bool_),
    "fp8 e4m3": lambda p, w: recast(w, p, "F8_E4M3", np.uint8),
    "fp8 e5m2": lambda p, w: recast(w, p, "F8_E5M2", np.uint8),
    "a dtype that is none": with_first(dtype="F3"),
    "half": lambda p, w: p.write_bytes(w.read_bytes()[: len(w.read_bytes()) // 2]),
    "a name with ESC": lambda p, w: changed_header(w, p, renamed),
    "not a number": lambda p, w: spoilt(w, p, np.nan),
    "infinity": lambda p, w: spoilt(w, p, np.inf),
}  # fmt: skip


def recast(source: Path, path: Path, name: str, dtype: type) -> None:
    """Every kernel in another type."""
    header, body = made.safetensors_parts(source)
    parts, at = [], 0
    for key, told in header.items():
        if key == "__metadata__":
            continue
        start, end = told["data_offsets"]
        part = body[start:end]
        if len(told["shape"]) == 2:
            values = np.frombuffer(part, np.float32) * 100
            part, told["dtype"] = values.astype(np.int64).astype(dtype).tobytes(), name
        told["data_offsets"] = [at, at + len(part)]
        at += len(part)
        parts.append(part)
    made.write_safetensors(path, header, b"".join(parts))


def spoilt(source: Path, path: Path, value: float) -> None:
    header, body = made.safetensors_parts(source)
    data = bytearray(body)
    start = header["blocks.0.mlp.fc1.weight"]["data_offsets"][0]
    data[start : start + 4] = np.float32(value).tobytes()
    made.write_safetensors(path, header, bytes(data))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        "npz": made.weights(folder / "w.npz", "google"),
        "safetensors": made.weights(folder / "w.safetensors", "timm"),
    }


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "cat.png").write_bytes(made.image())
    return tmp_path


@pytest.mark.parametrize("name", NPZ)
def test_an_npz_that_lies_is_refused_in_one_line(vit, whole, place, name):
    NPZ[name](place / "w.npz", whole["npz"])
    says = "embed.*/kernel" if name in ("not a number", "infinity", "bytes", "dates") else "w.npz"
    vit.refused("predict", "w.npz", "cat.png", cwd=place, says=says)


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_safetensors_file_that_lies_is_refused_in_one_line(vit, whole, place, name):
    SAFETENSORS[name](place / "w.safetensors", whole["safetensors"])
    names = ("int8", "int32", "truths", "fp8 e4m3", "fp8 e5m2", "not a number", "infinity")
    says = r"weight|embed|mlp" if name in names else r"w\.safetensors"
    vit.refused("predict", "w.safetensors", "cat.png", cwd=place, says=says)


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.npz", "w.safetensors"])
def test_a_pickle_is_never_loaded_whatever_it_is_called(vit, place, name):
    (place / name).write_bytes(pickle.dumps({"state_dict": Evil()}))
    for command in (["inspect", name], ["convert", name, "out", "--to=timm"]):
        vit.refused(*command, cwd=place, says=name.replace(".", r"\."))


def test_whole_files_are_read(vit, whole, place):
    for file in whole.values():
        assert "cat.png: " in vit.read("predict", file, "cat.png", cwd=place)
