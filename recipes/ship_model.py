"""Round a pretrained model to fp16 and put it where the package ships it, with its manifest, report and card.

    python recipes/ship_model.py runs/nano build/nano-corpus minipeft/assets/nano

The perplexities in the report are measured anew, on the rounded weights that ship. What stands between the two marks of
the card, `README.md`, is written from the report; the rest of it is a person's.
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from marked import between

from minipeft.checkpoint import load_gpt2, save_gpt2
from minipeft.corpus import build_corpus
from minipeft.files import read_json, write_atomically, write_json
from minipeft.perplexity import perplexities

BEGIN, END = "<!-- measured: made by recipes/ship_model.py -->", "<!-- end of what was measured -->"


def main() -> None:
    run, corpus_folder, assets = map(Path, sys.argv[1:4])
    save_gpt2(load_gpt2(run), assets, torch.float16)
    shipped = load_gpt2(assets)
    corpus = build_corpus(sorted(corpus_folder.glob("*.txt")), shipped.tokenizer)
    report = {**read_json(run / "report.json"), "perplexity": asdict(perplexities(shipped, corpus))}
    write_json(assets / "report.json", report)
    shutil.copyfile(corpus_folder / "manifest.json", assets / "manifest.json")
    card = assets / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else f"# Model card: {assets.name}\n\n{BEGIN}\n{END}\n"
    measured = told(assets.name, report, read_json(assets / "manifest.json"), assets / "model.safetensors")
    write_atomically(card, between(text, BEGIN, END, measured).encode())


def told(name: str, report: Mapping[str, Any], manifest: Mapping[str, Any], weights: Path) -> str:
    """What the card says of how the model was trained and how well it does."""
    s, shape = report["settings"], report["settings"]["model"]
    found, unigram, untrained = (report[key] for key in ("perplexity", "perplexity_unigram", "perplexity_untrained"))
    shown = (
        f"{shape['n_layer']} layers, {shape['n_head']} heads, {shape['n_embd']} wide, {shape['n_positions']} positions"
    )
    budget = f"{report['steps']:,} steps of {s['batch_size']} windows of {s['window']}"
    rates = (
        f"peak learning rate {s['lr']:g}, {s['warmup']:.0%} warm-up, then {s['schedule']} to {s['final_lr']:.0%} of it"
    )
    lines = [
        f"{report['parameters']:,} parameters: {shown}, {shape['vocab_size']:,} tokens; "
        f"{weights.stat().st_size / 1e6:.1f} MB in fp16.",
        "",
        f"Trained on {report['tokens_seen']:,} tokens ({budget}) out of {report['corpus_tokens']:,}, in "
        f"{report['seconds']:,} seconds on two CPU cores that did other work too, in {s['dtype']}. AdamW "
        f"{tuple(s['betas'])}, {rates}, weight decay {s['weight_decay']:g} on matrices, gradients clipped at "
        f"{s['clip']:g}.",
        "",
        f"| source | MB read | held-out tokens | {name} | unigram | untrained |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    read = sum(one["bytes"] for one in manifest.values() if isinstance(one, dict))
    lines.append(
        f"| all | {read / 1e6:.1f} | {sum(report['held_out_tokens'].values()):,} | **{found['overall']:.1f}** "
        f"| {unigram['overall']:.0f} | {untrained['overall']:.0f} |"
    )
    for source, value in found["by_source"].items():
        lines.append(
            f"| {source} | {manifest[source]['bytes'] / 1e6:.1f} | {report['held_out_tokens'][source]:,} | {value:.1f} "
            f"| {unigram['by_source'][source]:.0f} | {untrained['by_source'][source]:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
