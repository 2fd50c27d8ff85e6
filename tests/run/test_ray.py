"""A run on a real Ray cluster of two workers, one of which is killed in mid-run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dkn_engine as dkn
from dkn_engine.facts import write_facts
from tests.run.test_pipeline import parquet
from tests.support.saved import many_facts, save_tiny

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]

KILLER = """
import os, signal, sys
from pathlib import Path
from dkn_engine.cli import main as cli
from dkn_engine.run.workers import ray as ray_workers

messages, killed = ray_workers.RayPool._messages, []

def killing(self):
    import ray
    for worker, message in messages(self):
        yield worker, message
        busy = [w for w in self._workers if w is not worker and w.task and w.identity]
        if message is not None and message[0] == "done" and busy and not killed:
            killed.append(ray.get(busy[0].actor.process.remote()))
            os.kill(killed[0], signal.SIGKILL)

class Actor(ray_workers._Actor):
    def process(self):
        return os.getpid()

if __name__ == "__main__":
    ray_workers.RayPool._messages, ray_workers._Actor = killing, Actor
    code = cli.main(sys.argv[1:])
    print("killed", len(killed))
    sys.exit(code)
"""


@pytest.mark.parametrize("kill", [False, True])
def test_two_workers_of_a_cluster_give_the_bits_of_one_process(tmp_path: Path, kill: bool) -> None:
    folder = save_tiny(tmp_path / "model")
    model, _ = dkn.load_model(folder, device="cpu")
    write_facts(tmp_path / "facts.jsonl", many_facts(model, 30))

    def find(out: str, *more: str, program: tuple[str, ...] = ("-m", "dkn_engine")) -> str:
        done = subprocess.run(
            [
                *[sys.executable, *program, "find", "--model", str(folder), "--device", "cpu"],
                *["--facts", str(tmp_path / "facts.jsonl"), "--out", str(tmp_path / out)],
                *["--threads", "1", "--quiet", "--set", "facts_per_chunk=2", *more],
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    find("whole")
    program = ("-c", KILLER) if kill else ("-m", "dkn_engine")
    printed = find("ray", "--ray", "--workers", "2", program=program)
    assert ("killed 1" in printed) == kill
    assert parquet(tmp_path / "ray") == parquet(tmp_path / "whole")
