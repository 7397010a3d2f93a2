"""Round a pretrained model to fp16 and put it where the package ships it, with its report and manifest.

python recipes/ship_model.py runs/nano build/nano-corpus minipeft/assets/nano
"""

import shutil
import sys
from pathlib import Path

import torch

from minipeft.checkpoint import load_gpt2, save_gpt2


def main() -> None:
    run, corpus, assets = map(Path, sys.argv[1:4])
    save_gpt2(load_gpt2(run), assets, torch.float16)
    shutil.copyfile(run / "report.json", assets / "report.json")
    shutil.copyfile(corpus / "manifest.json", assets / "manifest.json")


if __name__ == "__main__":
    main()
