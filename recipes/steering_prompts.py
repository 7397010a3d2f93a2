"""Tune the prompts that ship in `minipeft/assets/prompts/`: three prefixes that each write in their own way.

    python recipes/steering_prompts.py --shakespeare ../shared/corpus/shakespeare --out runs/steering

`positive` and `negative` learn to write the movie reviews that people rated so; `shakespeare` learns pieces of six
plays. `OUT/NAME` holds the whole run, the assets its adapter.
"""

import argparse
import shutil
from pathlib import Path

import minipeft as mp
from minipeft.tasks import Task, open_task, task_from_file
from minipeft.tasks.base import SPLITS
from minipeft.training_state import STATE_FILE
from minipeft.tune import TuneConfig, tune
from minipeft.tuned import CONFIG_FILE, SHIPPED_ADAPTERS, WEIGHTS_FILE

PLAYS = ("as_you_like_it", "hamlet", "macbeth", "much_ado_about_nothing", "othello", "twelfth_night")
METHOD = mp.Prefix(length=10, reparam=None, init="vocab")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shakespeare", type=Path, required=True, help="folder of plays, NAME_gut.txt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("positive", "negative", "shakespeare"), help="one prompt instead of all")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lr", type=float, default=0.03)
    options = parser.parse_args()
    model = mp.GPT2.from_pretrained("nano")
    for name in ("positive", "negative", "shakespeare") if options.only is None else (options.only,):
        task = plays(options.shakespeare) if name == "shakespeare" else open_task(name)
        out = options.out / task.name
        batch_size = 8 if task.name == "shakespeare" else 32  # pieces of plays are long, reviews short
        config = TuneConfig(options.steps, batch_size, options.lr, eval_every=100, truncate=True)
        _, result = tune(model, METHOD, task, config, out, resume=(out / STATE_FILE).exists())
        print(f"{task.name}: dev loss {-result.best_score:.3f} at step {result.best_step}", flush=True)
        (SHIPPED_ADAPTERS / task.name).mkdir(parents=True, exist_ok=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(out / name, SHIPPED_ADAPTERS / task.name / name)


def plays(folder: Path) -> Task:
    """Pieces of six plays, as texts to write."""
    parts = [task_from_file(folder / f"{play}_gut.txt", None, None).splits for play in PLAYS]
    splits = {split: tuple(piece for part in parts for piece in part[split]) for split in SPLITS}
    return Task(name="shakespeare", splits=splits)


if __name__ == "__main__":
    main()
