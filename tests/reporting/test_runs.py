"""`antinb run` as a process: each way to end has its line and its exit code, and leaves no kernel behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from helpers import BODY, write

COMMAND = [sys.executable, "-m", "antinb.cli", "run"]
SMOKE = ["-p", "profile", "smoke"]
SLOW = BODY + "import pathlib, time\npathlib.Path('there').touch()\ntime.sleep(60)"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return tmp_path


def run(*arguments, **settings):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300, **settings)


def lines(done):
    """Return what a command said on stderr, without the progress bar."""
    return [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip() and "Executing" not in line]


def kernels(workplace):
    """Return the processes of kernels that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ipykernel" in (process / "cmdline").read_bytes() and (process / "cwd").readlink() == workplace:
                found.append(process.name)
        except OSError:
            continue
    return found


def heeding_interrupts():
    """A shell that starts the tests in the background makes them deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def soon(condition):
    end = time.monotonic() + 120
    while time.monotonic() < end and not condition():
        time.sleep(0.1)
    return condition()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
)
def test_a_stopped_run_says_where_and_leaves_old_results_and_no_kernel(workplace, number, code):
    write(BODY)
    assert run("tiny.ipynb", *SMOKE).returncode == 0
    old = {path: path.read_bytes() for path in Path("out/tiny").iterdir()}
    write(SLOW)
    write(BODY.replace("99.a", "98.a"), "last.ipynb")
    command = [*COMMAND, "tiny.ipynb", "last.ipynb", *SMOKE]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeding_interrupts) as started:
        assert soon(Path("there").exists)
        started.send_signal(number)
        _, said = started.communicate(timeout=120)
    assert started.returncode == code
    assert {path: path.read_bytes() for path in Path("out/tiny").iterdir()} == old
    assert soon(lambda: not kernels(workplace))
    if code > 0:
        assert said.splitlines()[-1] == (
            "Interrupted: tiny.ipynb, cell [3], was interrupted. What it made is in out/tiny.failed, earlier results "
            "stay. Not run: last.ipynb. Run the same line again to go on."
        )
        assert "time.sleep" in Path("out/tiny.failed/tiny.ipynb").read_text()
    write(BODY)
    assert run("tiny.ipynb", "last.ipynb", *SMOKE).returncode == 0
    assert {path.name for path in Path("out").iterdir()} == {
        ".antinb.lock", "claims.tex", "last", "manifest.json", "tiny"
    }  # fmt: skip


def test_notebooks_that_run_at_once_are_those_that_run_one_by_one(workplace):
    """One fails and one has a claim that is refuted; each of the others is one line."""
    names = [f"{name}.ipynb" for name in ("a", "b", "c", "d")]
    for name in names:
        write(BODY.replace("99.a", f"99.{name[0]}"), name)
    write(BODY + "1 / 0", "c.ipynb")
    write(BODY.replace("<0", ">0").replace("99.a", "99.d"), "d.ipynb")
    done = run(*names, *SMOKE, "--workers", "2")
    assert done.returncode == 2
    told = sorted(re.sub(r"\d+ s$", "", line) for line in done.stdout.splitlines())
    assert [line.split(", after")[0] for line in told if "->" in line] == [
        f"{name}.ipynb -> out/{name}, 1 claims" for name in "abd"
    ]
    assert [line.split()[:2] for line in told if "->" not in line] == [["refuted", "99.d"]]
    assert "1 / 0" in done.stderr
    assert "raised ZeroDivisionError: division by zero. What it made is in out/c.failed, earlier" in done.stderr
    claims = json.loads(Path("out/manifest.json").read_text())["claims"]
    assert [claim["id"] for claim in claims] == ["99.a", "99.b", "99.d"]
    assert run("a.ipynb", "b.ipynb", "d.ipynb", *SMOKE, "--out", "alone").returncode == 1
    assert claims == json.loads(Path("alone/manifest.json").read_text())["claims"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_of_several_leaves_no_kernel(workplace, number, code):
    write(SLOW)
    write(SLOW.replace("'there'", "'too'"), "other.ipynb")
    command = [*COMMAND, "tiny.ipynb", "other.ipynb", *SMOKE, "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeding_interrupts) as started:
        assert soon(lambda: Path("there").exists() and Path("too").exists())
        started.send_signal(number)
        assert started.wait(120) == code
    assert soon(lambda: not kernels(workplace))
    assert code < 0 or {path.name for path in Path("out").iterdir()} >= {"tiny.failed", "other.failed"}


def test_a_cell_has_a_time_limit(workplace):
    write(SLOW)
    done = run("tiny.ipynb", *SMOKE, "--limit", "2")
    assert done.returncode == 2
    assert lines(done)[-1].startswith("Error: tiny.ipynb, cell [3], took longer than the limit.")
    assert soon(lambda: not kernels(workplace))


def test_one_of_two_commands_has_the_folder(workplace):
    write(BODY + "import time\ntime.sleep(3)")
    both = [
        subprocess.Popen([*COMMAND, "tiny.ipynb", *SMOKE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    [refused] = [error for process, (_, error) in zip(both, said, strict=True) if process.returncode]
    assert "another antinb run is writing" in refused
    assert len(json.loads(Path("out/manifest.json").read_text())["claims"]) == 1


@pytest.mark.parametrize("place", ["{out_dir.__class__}", "a{b %s é"])
def test_paths_are_what_they_are(place):
    Path(place).mkdir()
    write(BODY, f"{place}/{place}.ipynb")
    done = run(f"{place}/{place}.ipynb", *SMOKE, "--out", f"{place}/out")
    assert done.returncode == 0, done.stderr
    assert Path(place, "out", place, f"{place}.ipynb").exists()


@pytest.mark.parametrize(
    ("environment", "code", "message"),
    [
        ({"MPLBACKEND": "nonsense"}, 2, "cell [3], raised ValueError: Key backend: 'nonsense'"),
        ({"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "JUPYTER_DATA_DIR": "/nowhere"}, 0, ""),
    ],
)
def test_odd_environments(environment, code, message):
    write(BODY.replace("a claim", "a clâim ±"))
    done = run("tiny.ipynb", *SMOKE, env={**os.environ, **environment})
    assert done.returncode == code, done.stderr
    assert message in "".join(lines(done)[-1:])


def test_a_deleted_working_folder_is_one_line(workplace):
    write(BODY)
    script = f"mkdir gone && cd gone && rmdir ../gone && {' '.join(COMMAND)} ../tiny.ipynb"
    done = subprocess.run(script, shell=True, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert len(lines(done)) == 1, done.stderr


@pytest.mark.parametrize("redirection", [">&- 2>&-", "| true", ">/dev/full"])
def test_closed_streams_cost_no_results_and_no_traceback(redirection):
    write(BODY)
    script = f"{' '.join([*COMMAND, 'tiny.ipynb', *SMOKE])} {redirection}"
    done = subprocess.run(script, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stdout + done.stderr
    assert len(lines(done)) <= 1, done.stderr


def test_a_profile_is_what_the_notebook_ran():
    """A notebook whose own default is smoke is judged as smoke: an undecided claim is none of the failures."""
    write(BODY.replace("low=low, high=-0.5", "low=low, high=0.5"))
    notebook = nbformat.read("tiny.ipynb", 4)
    assert run("tiny.ipynb").returncode == 1
    notebook.cells[0].source = notebook.cells[0].source.replace('"full"', '"smoke"')
    nbformat.write(notebook, "tiny.ipynb")
    assert run("tiny.ipynb").returncode == 0


@pytest.mark.parametrize("size", [0, 1000])
def test_a_file_that_cannot_be_written_costs_no_results(workplace, size):
    """No file may become longer than some bytes, in the command and its kernel, as on a disk that fills up."""
    write(BODY)
    assert run("tiny.ipynb", *SMOKE).returncode == 0
    old = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
    script += "from antinb.cli import main; main()"
    command = [sys.executable, "-c", script, "run", "tiny.ipynb", *SMOKE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr
    if done.returncode:
        new = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
        assert {path: new[path] for path in old if path.name != "claims.tex"} == {
            path: text for path, text in old.items() if path.name != "claims.tex"
        }
    assert run("tiny.ipynb", *SMOKE).returncode == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [
        ".antinb.lock",
        "claims.tex",
        "manifest.json",
        "tiny",
    ]


def test_the_time_left_is_told_from_the_last_run():
    write(BODY + "import time; time.sleep(2)")
    first, second = (run("tiny.ipynb", *SMOKE).stderr for _ in range(2))
    assert "Executing tiny.ipynb: cell 1 of " in first
    assert "left" not in first
    assert "Executing tiny.ipynb:   0%|" in second
    shares = [int(share) for share in re.findall(r" (\d+)%\|", second)]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert max(share for share in shares if share < 100) < 60  # the last cell takes the time
    write(BODY + "import time; time.sleep(1)")
    assert "left" not in run("tiny.ipynb", *SMOKE).stderr
