"""Rules of the house that a linter does not know, held by reading the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# flax.nnx defines modules; every transform is jax's own (docs: how the core stays functional).
NNX_TRANSFORMS = {"jit", "scan", "vmap", "grad", "value_and_grad", "Optimizer", "remat"}
PARTS = ("vit_jax", "configs", "launch")
PEERS = {"tensorflow", "torch", "transformers", "timm"}
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc"}
Functions = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def nnx_transforms(tree: ast.AST) -> Iterator[str]:
    """Uses of nnx's own transforms and optimiser, and of sown values."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name("nnx") | ast.Attribute(attr="nnx"), attr=name):
                if name in NNX_TRANSFORMS:
                    yield f"line {node.lineno}: nnx.{name}"
            case ast.ImportFrom(module=str(module)) if module.startswith("flax.nnx"):
                for alias in node.names:
                    if alias.name in NNX_TRANSFORMS:
                        yield f"line {node.lineno}: {module}.{alias.name}"
            case ast.Call(func=ast.Attribute(attr="sow")):
                yield f"line {node.lineno}: .sow("


def peer_imports(tree: ast.AST) -> Iterator[str]:
    """Imports of the frameworks that only optional extras bring, wherever they stand."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                modules = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module), level=0):
                modules = [module]
            case ast.Call(
                func=ast.Name("__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(module)), *_],
            ):
                modules = [module]
            case _:
                modules = []
        for module in modules:
            if module.partition(".")[0] in PEERS:
                yield f"line {node.lineno}: {module}"


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions and classes of a module, and the module itself, without a docstring.

    Methods are exempt: their class says what they do.
    """
    if tree.body and ast.get_docstring(tree) is None:
        yield "the module"
    for node in tree.body:
        public = isinstance(node, Functions | ast.ClassDef) and not node.name.startswith("_")
        if public and ast.get_docstring(node) is None:
            yield f"line {node.lineno}: {node.name}"


def unnamed_encodings(tree: ast.AST) -> Iterator[str]:
    """Text files that are read or written in whatever encoding the machine's locale has."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="read_text" as name), args=[]):
                pass
            case ast.Call(func=ast.Attribute(attr="write_text" as name), args=[_]):
                pass
            case ast.Call(func=ast.Name("open" as name), args=[_, *mode]):
                if mode and (not isinstance(mode[0], ast.Constant) or "b" in mode[0].value):
                    continue
            case ast.Call(func=ast.Attribute(value=where, attr="open" as name), args=mode):
                libraries = {"os", "Image", "tarfile", "zipfile", "archive", "PngImagePlugin"}
                if isinstance(where, ast.Name) and where.id in libraries:
                    continue
                if isinstance(where, ast.Call) or (
                    mode and (not isinstance(mode[0], ast.Constant) or "b" in mode[0].value)
                ):
                    continue
            case _:
                continue
        if "encoding" not in {option.arg for option in node.keywords}:
            yield f"line {node.lineno}: {name} without an encoding"


def offences(rule, *folders: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}, {found}"
        for path in sources(*folders)
        for found in rule(ast.parse(path.read_text(encoding="utf-8")))
    ]


def test_every_transform_is_jaxs_own_and_nothing_is_sown():
    assert offences(nnx_transforms, "vit_jax") == []


def test_no_module_of_package_or_recipes_imports_another_framework():
    # PyTorch's own files can be read by PyTorch alone; the import stands in the one function.
    found = [
        line
        for line in offences(peer_imports, "vit_jax", "configs", "launch")
        if "torch_files.py" not in line
    ]
    assert found == []
    reading = ast.parse((ROOT / "vit_jax" / "pretrained" / "torch_files.py").read_text())
    assert [line.split(": ")[1] for line in peer_imports(reading)] == ["torch"]
    assert not any(isinstance(node, ast.Import) and node.names[0].name == "torch"
                   for node in reading.body)  # fmt: skip


def test_every_text_file_names_its_encoding():
    assert offences(unnamed_encodings, "vit_jax", "configs", "launch") == []


def test_every_public_function_and_class_says_what_it_does():
    assert offences(undocumented, "vit_jax", "launch") == []


def test_no_file_is_named_after_nothing_in_particular():
    assert [path for path in sources(*PARTS) if path.stem in SAYS_NOTHING] == []
    folders = [path for path in (ROOT / "vit_jax").rglob("*") if path.is_dir()]
    assert [path for path in folders if path.name in SAYS_NOTHING] == []


def test_the_scan_reads_the_package():
    assert ROOT / "vit_jax" / "models" / "vit.py" in sources("vit_jax")


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        *[(nnx_transforms, f"nnx.{name}(f)") for name in sorted(NNX_TRANSFORMS)],
        (nnx_transforms, "flax.nnx.jit(f)"),
        (nnx_transforms, "@nnx.jit\ndef f(): pass"),
        (nnx_transforms, "from flax.nnx import jit as compiled"),
        (nnx_transforms, "class A:\n    def __call__(self): self.sow(Kind, 'x', 1)"),
        (peer_imports, "import torch"),
        (peer_imports, "def f():\n    from tensorflow.io import gfile"),
        (peer_imports, "import numpy, timm.models as m"),
        (peer_imports, "importlib.import_module('transformers')"),
        (unnamed_encodings, "Path('a').read_text()"),
        (unnamed_encodings, "path.write_text(text)"),
        (unnamed_encodings, "open(path)"),
        (unnamed_encodings, "open(path, 'w')"),
        (unnamed_encodings, "with path.open() as file: pass"),
        (unnamed_encodings, "path.open('a', newline='')"),
        (undocumented, "x = 1"),
        (undocumented, "'''Doc.'''\ndef f(): pass"),
        (undocumented, "'''Doc.'''\nclass A: pass"),
    ],
)
def test_each_rule_finds_what_it_forbids(rule, source):
    assert len(list(rule(ast.parse(source)))) == 1


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (nnx_transforms, "'''Not nnx.jit.'''\njax.jit(f)  # rather than nnx.jit"),
        (nnx_transforms, "nnx.split(module); nnx.eval_shape(f)"),
        (unnamed_encodings, "path.read_text('utf-8'); path.open('rb'); Image.open(file)"),
        (unnamed_encodings, "write_text(path, text); open(path, encoding='utf-8')"),
        (peer_imports, "import tensorflow_datasets\nfrom .torch import x\nimport jax"),
        (
            undocumented,
            "'''Doc.'''\ndef _f(): pass\nclass A:\n    '''Doc.'''\n    def g(self): pass",
        ),
    ],
)
def test_each_rule_lets_the_rest_pass(rule, source):
    assert list(rule(ast.parse(source))) == []


# Rooms that know no task: labels are the business of `tasks`, `evaluators` and the sources.
KNOW_NO_TASK = (
    "data/pipeline.py", "data/ops.py", "data/augment.py", "training", "checkpoint", "parallel",
    "planning",
)  # fmt: skip
# Words that other things are called by, and what a run says of changed data.
OTHER_LABELS = (
    "dim_labels",
    "labels[",
    "for number, label",
    "index(label)",
    "other names or labels",
)


def test_step_loop_pipeline_checkpoint_and_planner_know_no_labels():
    said = []
    for place in KNOW_NO_TASK:
        path = ROOT / "vit_jax" / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if "label" in line.lower() and not any(word in line for word in OTHER_LABELS):
                    said.append(f"{file.relative_to(ROOT)}, line {number}: {line.strip()}")
    assert said == []


def test_nothing_outside_of_the_tasks_asks_which_task_it_is():
    """Rooms ask a task, or a table by its name; they do not compare the name."""

    def is_task(node):
        return getattr(node, "attr", getattr(node, "id", "")) == "task"

    said = []
    for file in sorted((ROOT / "vit_jax").rglob("*.py")):
        if "tasks" in file.relative_to(ROOT / "vit_jax").parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            if any(map(is_task, sides)) and any(isinstance(side, ast.Constant) for side in sides):
                said.append(f"{file.relative_to(ROOT)}, line {node.lineno}")
    assert said == []
