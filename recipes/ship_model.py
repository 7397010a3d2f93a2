"""Round a pretrained model to fp16 and put it where the package ships it, with its manifest and report.

    python recipes/ship_model.py runs/nano build/nano-corpus minipeft/assets/nano

The perplexities in the report are measured anew, on the rounded weights that ship.
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from minipeft.checkpoint import load_gpt2, save_gpt2
from minipeft.corpus import build_corpus
from minipeft.files import read_json, write_json
from minipeft.pretrain import perplexities


def main() -> None:
    run, corpus_folder, assets = map(Path, sys.argv[1:4])
    save_gpt2(load_gpt2(run), assets, torch.float16)
    shipped = load_gpt2(assets)
    corpus = build_corpus(sorted(corpus_folder.glob("*.txt")), shipped.tokenizer)
    write_json(
        assets / "report.json", {**read_json(run / "report.json"), "perplexity": asdict(perplexities(shipped, corpus))}
    )
    shutil.copyfile(corpus_folder / "manifest.json", assets / "manifest.json")


if __name__ == "__main__":
    main()
