"""`import minipeft`: quick, and without the heavy libraries that only lessons, plots and comparisons need."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import minipeft

ROOT = Path(__file__).parents[1]
HEAVY = {
    "transformers",
    "peft",
    "matplotlib",
    "IPython",
    "jupyter",
    "jupyter_core",
    "jupyterlab",
    "ipywidgets",
    "sklearn",
}
PAIRS, MOST = 3, 1.3


def output_of(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def seconds_to_import(name: str) -> float:
    clock = "import time; start = time.perf_counter()"
    return float(output_of(f"{clock}; import {name}; print(time.perf_counter() - start)"))


def test_importing_loads_no_heavy_library() -> None:
    loaded = json.loads(output_of("import json, sys, minipeft; print(json.dumps(list(sys.modules)))"))
    assert "torch" in loaded
    assert HEAVY & {name.split(".")[0] for name in loaded} == set()


def test_importing_takes_little_longer_than_torch() -> None:
    ratios = [seconds_to_import("minipeft") / seconds_to_import("torch") for _ in range(PAIRS)]
    assert statistics.median(ratios) <= MOST, f"ratios of {PAIRS} pairs: {ratios}"  # DESIGN.md §6


@pytest.mark.parametrize("name", minipeft.__all__)
def test_a_public_name_exists(name: str) -> None:
    assert hasattr(minipeft, name)


def test_no_public_name_is_listed_twice() -> None:
    assert len(set(minipeft.__all__)) == len(minipeft.__all__)
