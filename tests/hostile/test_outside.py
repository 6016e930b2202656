"""Nothing outside of the output folders is written, and no address is asked: every system call of a whole run is looked at."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.media import encode_video, moving_square
from tests.runs import QUICK

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from pipeline import cli
for arguments in json.loads(sys.argv[1]):
    cli(arguments, standalone_mode=False)
"""
CALLS = "open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat," \
        "rmdir,truncate,mknod,mknodat,chmod,fchmodat,connect,execve"  # fmt: skip
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")
DEVICES = (
    "/dev/null",
    "/dev/tty",
    "/dev/shm/",
    "/proc/self/",
    "/memfd:",
)  # memory that is shared with workers, and no files


def arguments(folder: Path) -> list[list[str]]:
    """prepare, a teacher, its cache, a student."""
    net = [part for change in [*QUICK, "schedule.epochs=1", "batch_size=4"] for part in ("--set", change)]
    policy = "policy={num_frames: 4, crop: center, jitter: false, flip: 0}"
    data = ["--set", f"data.train={folder}/out/data"]
    return [
        ["prepare", f"{folder}/videos", "--output", f"{folder}/out/data", "--set", "workers=1"],
        ["train-student", *net, *data, "--set", "size=32", "--set", policy, "--set", f"output={folder}/out/teacher"],
        ["cache-teacher", "--set", f"data={folder}/out/data", "--set", f"output={folder}/out/cache.zarr", "--set", "views=1",
         "--set", f"teacher.checkpoint={folder}/out/teacher/last.safetensors", "--set", policy, "--set", "loader.workers=1"],
        ["train-student", *net, *data, "--set", "size=16", "--set", f"data.cache={folder}/out/cache.zarr", "--set",
         f"output={folder}/out/student", "--set", "losses={cross_entropy: 0, logit_kl: 1}"],
    ]  # fmt: skip


def changed_paths(trace: str, cwd: Path) -> set[str]:
    """The paths that system calls of a trace wrote, made, renamed or removed, with success."""
    paths = set()
    for line in trace.splitlines():
        call = re.search(r"(\w+)\((.*)\)\s+= (-?\d+)", line)
        if call is None or int(call[3]) < 0 or call[1] in ("connect", "execve"):
            continue
        if call[1].startswith("open") and not WRITES.search(call[2]):
            continue
        paths |= {os.path.normpath(cwd / path) for path in re.findall(r'"((?:[^"\\]|\\.)*)"', call[2])}
    return paths


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_whole_run_writes_into_its_outputs_alone(tmp_path):
    import json

    for name, seed in (("a/x", 0), ("a/y", 1), ("b/z", 2), ("b/../../../tmp/evil", 3)):
        path = tmp_path / "videos" / name.replace("../", "__").replace("tmp/", "tmp_")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".mp4").write_bytes(encode_video(moving_square(6, 32, 32, seed=seed)))
    for name in ("home", "scratch", "out"):
        (tmp_path / name).mkdir()
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "scratch"), "OMP_NUM_THREADS": "1",
                   "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT),
                   "MPLCONFIGDIR": str(tmp_path / "scratch/matplotlib")}  # fmt: skip
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "4096", "-e", "signal=none", "-e", f"trace={CALLS}", "-o",
               tmp_path / "trace", sys.executable, "-c", PROGRAM, json.dumps(arguments(tmp_path))]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path / "scratch", env=environment, capture_output=True, text=True, timeout=300
    )
    if "ptrace" in done.stderr or "seccomp" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    trace = (tmp_path / "trace").read_text()
    written = changed_paths(trace, tmp_path / "scratch")
    allowed = (f"{tmp_path}/out/", f"{tmp_path}/scratch/", *DEVICES)
    assert {path for path in written if not f"{path}/".startswith(allowed)} == set()
    for name in ("data/index.json", "cache.zarr/zarr.json", "student/last.safetensors"):
        assert any(name in path for path in written) and (tmp_path / "out" / name).exists()
    assert list((tmp_path / "home").iterdir()) == []
    assert "AF_INET" not in trace
    programs = set(re.findall(r'execve\("([^"]+)"', trace))
    known = {
        Path(sys.executable).name,
        "python",
        "python3",
        "ldconfig",
        "uname",
        "sh",
        "gcc",
        "ld",
        "fc-list",
    }  # of libraries
    assert {Path(program).name for program in programs} <= known
