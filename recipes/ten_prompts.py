"""Ten hand-written prompts beside one learned one, on the test split of movie reviews: the figure of lesson 07.

    minipeft tune soft_prompt --task movie --init labels --lr 0.1 --steps 1200 --batch-size 32 --eval-every 150 \
        --out runs/movie
    python recipes/ten_prompts.py --adapter runs/movie --out docs/results/ten_prompts.json

Each hand-written prompt is scored as it is, and calibrated: a label's mean log-likelihood over the dev texts is taken
off (Zhou et al. 2023). The learned one has the step that was best on dev; nothing is chosen on test.
"""

import argparse
from pathlib import Path
from typing import Any

import minipeft as mp
from minipeft.evaluate import Score, label_log_likelihoods, score_labels
from minipeft.files import write_json
from minipeft.progress import progress_bar
from minipeft.tasks import TASKS
from minipeft.tune import encoder_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model, task = mp.GPT2.from_pretrained("nano"), TASKS["movie"]()
    rows = []
    with progress_bar("ten prompts", len(task.hard_prompts)) as advance:
        for template in task.hard_prompts:
            rows.append({"prompt": template, **asked(mp.attach(model, mp.HardPrompt(template)))})
            advance(template)
    learned = asked(mp.load(options.adapter, model))
    write_json(options.out, {"examples": len(task.splits["test"]), "prompts": rows, "learned": learned})


def asked(tuned: mp.Tuned) -> dict[str, Any]:
    """Test accuracy as it is and calibrated, and the share of texts that it answers "good" to."""
    task = TASKS["movie"]()
    encoder = encoder_for(tuned, task)
    dev, test = (label_log_likelihoods(tuned, encoder, task.splits[split]) for split in ("dev", "test"))

    def score(taken_off: Any) -> Score:
        return score_labels(encoder, task.splits["test"], test - taken_off)

    plain = score(0.0)
    return {
        "accuracy": round(plain.accuracy, 4),
        "calibrated": round(score(dev.mean(dim=0)).accuracy, 4),
        "standard_error": round(plain.standard_error, 4),
        "answers_good": round(float((test[:, 1] > test[:, 0]).float().mean()), 4),
    }


if __name__ == "__main__":
    main()
