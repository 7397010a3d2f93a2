"""The public GPT-2 weights, verified: `python weights_download.py gpt2`, or `--help` for all it can do.

The same as `minipeft download`, for whoever looks for a script.
"""

import sys

try:
    from minipeft.cli import run_download
except ModuleNotFoundError as missing:
    sys.exit(
        f"weights_download.py: {missing.name} is not installed here; set minipeft up with `make demo` and use its "
        "Python: .venv/bin/python weights_download.py gpt2"
    )

if __name__ == "__main__":
    run_download()
