"""The house: imports go down this list and never up; transformers finds its own `kernels`."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# text and voices read a checkpoint's tokenizer and presets, so they stand above it.
ORDER = [
    "cli",
    "bulk",
    "serve",
    "server",
    "say",
    "aio",
    "hf",
    "compat",
    "bark",
    "loading",
    "streaming",
    "speaking",
    "progress",
    "engine",
    "devices",
    "request",
    "text",
    "spelling",
    "voices",
    "stages",
    "models",
    "checkpoint",
    "types",
    "audio",
    "encoders",
    "tempo",
    "files",
    "validation",
    "process",
    "ambient",
    "console",
    "errors",
    "demo",
    "kernels",
]


def modules() -> list[tuple[str, Path]]:
    found = []
    for folder, prefix in (
        (ROOT / "bark_fast", "bark_fast"),
        (ROOT / "kernels", "bark_fast.kernels"),
    ):
        for path in sorted(folder.rglob("*.py")):
            dotted = ".".join([prefix, *path.relative_to(folder).with_suffix("").parts])
            found.append((dotted.removesuffix(".__init__"), path))
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "bark_fast":
                names.update(f"bark_fast.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def layer(dotted: str) -> int | None:
    part = dotted.split(".")[1] if "." in dotted else ""
    return ORDER.index(part) if part in ORDER else None


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda x: x if isinstance(x, str) else "")
def test_imports_point_down(name: str, path: Path) -> None:
    own = layer(name)
    for imported in imports(path):
        if imported.startswith("bark_fast.") and own is not None:
            other = layer(imported)
            assert other is None or other >= own, f"{name} imports {imported}, which is above it"


def test_every_module_has_a_place() -> None:
    for name, _ in modules():
        if name not in ("bark_fast", "bark_fast.__main__"):
            assert layer(name) is not None, f"{name} is not in the list"


def test_no_import_circle() -> None:
    """Imports inside functions count too: a circle that they hide is still one."""
    known = {name for name, _ in modules()} - {"bark_fast"}

    def needed(path: Path) -> set[str]:
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    found.add(submodule if submodule in known else node.module)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
        return found & known

    graph = {name: needed(path) for name, path in modules() if name in known}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_kernels_keep_to_their_rooms() -> None:
    """Contracts know no backend, backends not one another; the dispatch knows all."""
    order = ["", "dispatch", "triton", "cpu", "reference", "ops", "state"]
    for name, path in modules():
        parts = name.split(".")
        if name.startswith("bark_fast.kernels") and not parts[-1].startswith("aot"):
            own = order.index(parts[2] if len(parts) > 2 else "")
            for imported in imports(path):
                if imported.startswith("bark_fast.kernels."):
                    other = order.index(imported.split(".")[2])
                    assert other >= own, f"{name} imports {imported}"
                    assert {own, other} != {2, 3}, "triton and cpu do not know each other"


def test_kernels_import_torch_and_triton_only() -> None:
    for name, path in modules():
        if name.startswith("bark_fast.kernels"):
            outside = {i.split(".")[0] for i in imports(path)} - set(sys.stdlib_module_names)
            assert outside <= {"bark_fast", "torch", "triton"}, name
            ours = {i for i in imports(path) if i.startswith("bark_fast.")}
            assert all(i.startswith("bark_fast.kernels") for i in ours), name


def test_transformers_bark_imports_from_the_repository_root() -> None:
    """A top-level package named `kernels` would be taken for another project's."""
    code = "from transformers.models.bark.modeling_bark import BarkModel; print(BarkModel.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "BarkModel"


def test_bench_imports_point_down() -> None:
    """Commands measure cases with the harness; the harness knows neither.

    No command imports another: what two of them need belongs below them.
    """
    rooms = ["__init__", "__main__", "test_kernels", "commands", "cases", "harness"]
    for path in sorted((ROOT / "bench").rglob("*.py")):
        room = path.relative_to(ROOT / "bench").with_suffix("").parts[0]
        assert room in rooms, f"{path} is not in the list"
        for imported in imports(path):
            parts = imported.split(".")
            if parts[0] == "bench":
                assert len(parts) > 1, f"{path} imports from bench itself"
                assert parts[1] in rooms, f"{path} imports {imported}"
                assert rooms.index(parts[1]) >= rooms.index(room), f"{path} imports {imported}"
                assert not room == parts[1] == "commands", f"{path} imports {imported}"
