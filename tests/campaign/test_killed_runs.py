"""Kill runs by SIGKILL at any moment, and resume them: weights stay exact, and all completed steps are counted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..children import start

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

# One process imports everything once. It forks a process for each attempt, and kills it after a random time: often
# while the run trains, and sometimes before it has begun.
CHILD = """
import json, os, random, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from astralora.training import RunConfig, RunFolder, train

config = RunConfig.load(None, {"task": "digits-deep", "epochs": 4, "batch_size": 500, "in_features": 16,
                               "out_features": 8})
random.seed(7)

def run(path):
    resume = (path / "config.toml").exists()
    train(RunFolder.reopen(path) if resume else RunFolder(path, config), resume=resume, report=False)

def attempt(path, kill):
    child = os.fork()
    if not child:
        code = 1
        try:
            run(path)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    lines = path / "metrics.jsonl"
    before = lines.stat().st_mtime_ns if lines.exists() else 0
    if kill and random.random() < 0.8:
        # Wait for the first line of this attempt, or for its end.
        while not lines.exists() or lines.stat().st_mtime_ns == before:
            ended = os.waitpid(child, os.WNOHANG)
            if ended[0]:
                return ended[1]
            time.sleep(0.002)
    if kill:
        time.sleep(random.uniform(0, 0.9 * seconds))
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

run(Path("imports"))
assert attempt(Path("reference"), False) == 0
seconds = Path("reference/summary.json").stat().st_mtime - Path("reference/config.toml").stat().st_mtime

def state(path):
    return RunFolder.reopen(path).load()

def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a if not str(k).endswith("seconds"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b

reference, expected = state(Path("reference")), RunFolder.reopen(Path("reference")).summary()
kills, runs, before_begin, wrong = 0, 0, 0, []
while kills < int(sys.argv[1]):
    path = Path(f"run{runs}")
    runs += 1
    status = -1
    while status != 0:
        last = random.random() < 0.3 or kills >= int(sys.argv[1])
        status = attempt(path, not last)
        if os.WIFSIGNALED(status):
            kills += 1
            before_begin += not (path / "config.toml").exists()
        elif status:
            wrong.append(f"run {runs} was refused")
            break
    else:
        summary, found = RunFolder.reopen(path).summary(), RunFolder.reopen(path).metrics()
        if not equal(state(path)["fit"], reference["fit"]):
            wrong.append(f"run {runs} has other weights")
        if found.damaged or summary["damaged_lines"]:
            wrong.append(f"run {runs} has damaged lines")
        for what in ("programs", "vectors"):
            if summary[what] - summary["repeated"][what] != expected[what]:
                wrong.append(f"run {runs}: {summary[what]} {what}, {summary['repeated'][what]} of them repeated")
        if [f.name for f in path.rglob("*") if f.name.endswith(".tmp") or f.name.startswith(".lock")]:
            wrong.append(f"run {runs} left drafts or locks")
print(json.dumps({"kills": kills, "runs": runs, "before_begin": before_begin, "wrong": wrong}))
"""


@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.campaign)])
def test_killed_runs_end_with_the_same_weights_and_count_everything(kills: int, tmp_path: Path) -> None:
    child = start([sys.executable, "-c", CHILD, str(kills)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=None)
    out, _ = child.communicate()
    print(out)
    found: dict[str, Any] = json.loads(out)
    assert found["kills"] >= kills
    assert found["wrong"] == []
