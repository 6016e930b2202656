"""The house: what lies at the top, which floor a file is on, what a floor may import, who owns which library."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for folder in ("cache", "stages") for p in (ROOT / folder).rglob("*.py")) + [ROOT / "pipeline.py"]

# From the bottom to the top: a file imports its own room and lower floors. Rooms of one floor don't know each other.
FLOORS = [
    ["cache"],
    ["stages.remote"],
    ["stages.config"],
    ["stages.runtime"],
    ["stages.shards", "stages.video", "stages.models", "stages.engine"],
    ["stages.stream"],  # what stage one and stage two read from
    ["stages.metrics", "stages.distill"],
    [
        "stages.prepare",
        "stages.import_checkpoint",
        "stages.teacher",
        "stages.packs",
        "stages.student",
        "stages.evaluate",
        "stages.predict",
        "stages.export",
    ],
    ["stages.sweep"],
    ["stages.report"],
    ["stages.demo"],
    ["stages.bench"],
    ["pipeline"],
]
WINGS = [room for floor in FLOORS[7:12] for room in floor] + ["stages.models"]  # those that have commands
OWNED = {
    "webdataset": ["stages/shards/webdataset_tar.py"],
    "decord": ["stages/video/decord_decode.py"],
    # the last seven encode, they decode nothing
    "av": [
        "stages/video/container.py",
        "stages/video/decode.py",
        "stages/video/pyav_decode.py",
        "stages/export/run_onnx.py",  # a copy of it runs without this program
        "stages/demo/digits.py",
        "stages/prepare/encode_frames.py",
        "stages/predict/annotate.py",
        "stages/bench/videos.py",
        "stages/bench/bad_videos/made_videos.py",
        "stages/bench/bad_videos/odd_videos.py",
        "stages/bench/bad_videos/bombs.py",
    ],
    "obstore": ["stages/remote/store.py"],
    "ray": ["stages/engine/ray_cluster.py"],
    "torch.distributed": ["stages/runtime/distributed.py"],
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def place(module: str) -> tuple[int, str]:
    """Floor, and the entry of FLOORS that put it there (the longest that fits)."""
    fits = [
        (len(e), i, e) for i, floor in enumerate(FLOORS) for e in floor if module == e or module.startswith(e + ".")
    ]
    _, floor, entry = max(fits)
    return floor, entry


@functools.cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too; `from a import b` counts as a.b where that is a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module}
            found |= {f"{node.module}.{a.name}" for a in node.names if is_file(f"{node.module}.{a.name}")}
    return found


def is_file(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down_the_floors(path):
    floor, room = place(module_of(path)) if module_of(path) != "stages" else (0, "")
    for module in imports(path):
        if module.split(".")[0] not in ("cache", "stages", "pipeline") or not is_file(module):
            continue
        below, other = place(module)
        assert below < floor or other == room, f"{module_of(path)} (floor {floor}) imports {module} ({below})"


def test_every_file_has_a_room():
    placed = [module_of(p) for p in FILES if module_of(p) != "stages"]
    assert {place(module)[1] for module in placed} == {room for floor in FLOORS for room in floor}


def test_packages_run_nothing_when_they_are_imported():
    for path in ROOT.joinpath("stages").rglob("__init__.py"):
        assert path.read_text().strip() == "", path


def test_each_wing_has_its_command_which_imports_click_alone():
    for room in WINGS:
        path = ROOT.joinpath(*room.split("."), "command.py")
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {getattr(node, "module", None) or node.names[0].name for node in top}
        assert modules <= {"click", "pathlib", "stages.config.options"}, path


def test_the_pipeline_is_the_way_to_each_command_and_nothing_else():
    assert len((ROOT / "pipeline.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("library", OWNED)
def test_a_library_has_its_owners(library):
    users = [str(p.relative_to(ROOT)) for p in FILES
             if any(m == library or m.startswith(library + ".") for m in imports(p))]  # fmt: skip
    assert set(users) <= set(OWNED[library])
    assert users, f"nobody uses {library}"


def test_cache_needs_numpy_and_zarr_only():
    code = "import sys, cache.reader, cache.writer, cache.finalise;"
    code += "print([m for m in ('torch', 'av', 'decord', 'pydantic') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


def test_help_imports_nothing_heavy():
    code = ("import sys, click.testing, pipeline; r = click.testing.CliRunner().invoke(pipeline.cli, ['--help']);"
            "print(r.exit_code, [m for m in ('torch', 'numpy', 'zarr', 'yaml') if m in sys.modules])")  # fmt: skip
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "0 []"


def test_top_level_is_what_the_user_fixed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    fixed = {"stages", "cache", "configs", "tests", "pipeline.py", "pyproject.toml", "README.md", "LICENSE"}
    assert fixed <= top <= fixed | {".ci", ".gitignore"}


def test_fixed_packages_are_used():
    wanted = {"torch", "torchvision", "webdataset", "zarr", "decord", "timm", "click", "numpy"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", d).group() for d in project["dependencies"]}
    used = {module.split(".")[0] for path in FILES for module in imports(path)}
    assert wanted <= declared
    assert wanted <= used


def test_code_is_clean():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
