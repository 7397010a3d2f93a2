"""Write what the three `theory_*.py` found into docs/theory.md, between its marks.

python recipes/theory_page.py            # from docs/results/theory_*.json
python recipes/theory_page.py --check    # change nothing; fail if the page is not as it would be written
"""

import argparse
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from marked import between
from theory_pictures import power

from minipeft.compare.tables import table
from minipeft.files import read_json, write_atomically

DOCS = Path(__file__).parents[1] / "docs"
CASES = {
    "seen": "seen in pretraining, beside three others",
    "unseen": "never seen, only ascending was",
    "unseen, two layers": "never seen, only ascending was; two layers",
}
TARGETS = {
    "compiled": "a compiled soft prompt",
    "trained": "a trained prefix (`shakespeare`)",
    "random": "random numbers",
}
CONTROLS = (("compiled", "soft_prompt"), ("trained", "prefix"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if something would change")
    path = DOCS / "theory.md"
    found = wanted = path.read_text(encoding="utf-8")
    for name, written in {"gated_sum": gated_sum, "elicit_or_teach": elicit_or_teach, "compile": compile_}.items():
        text = written(read_json(DOCS / "results" / f"theory_{name}.json"))
        wanted = between(wanted, f"<!-- {name}: begin -->", f"<!-- {name}: end -->", text)
    if parser.parse_args().check:
        sys.exit(None if found == wanted else "docs/theory.md is not as the results are: python recipes/theory_page.py")
    write_atomically(path, wanted.encode("utf-8"))


def gated_sum(found: dict[str, Any]) -> str:
    """The largest error and the mean λ of each layer, a row for each prefix."""
    rows = []
    for name, prefix in found["prefixes"].items():
        layers = [f"{100 * share:.0f} %" for share in prefix["mean_lambda_by_layer"]]
        rows.append((f"`{name}`" if name != "random" else name, power(max(prefix["largest_error_by_layer"])), *layers))
    head = ("prefix of 10", "largest error", *(f"λ in h.{layer}" for layer in range(len(rows[0]) - 2)))
    return table(head, rows, right=len(head) - 1)


def elicit_or_teach(found: dict[str, Any]) -> str:
    """Answers and digits that are right, seed by seed, and how far attention among the text's tokens moved."""
    rows = []
    for case, told in CASES.items():
        alone = found[case]["by_itself"]["descending"]
        rows.append((told, "nothing tuned", "0", "", f"{100 * alone:.1f}", "", "", ""))
        for name, row in found[case]["methods"].items():
            exact = [f"{100 * one:.1f}" for one in row["exact"]]
            digits = mean(mean(seed) for seed in row["digits"])
            moved = row["share_moved_by_layer"][0]
            rows.append(
                (
                    "",
                    name,
                    f"{row['trained']:,}",
                    f"{row['lr']:g}",
                    f"**{100 * mean(row['exact']):.1f}**",
                    ", ".join(exact),
                    f"{100 * digits:.1f}",
                    f"{100 * moved:.0f} %" if moved > 0.01 else power(moved),
                )
            )
    head = ("descending order was", "tuned", "numbers", "rate", "answers right, %", "seeds", "digits right, %")
    minutes = sum(case["seconds"] for case in found.values()) / 60
    written = table((*head, "shares moved, first layer"), rows, right=6)
    return f"{written}\n\nTraining took {minutes:.0f} minutes beside other work."


def compile_(found: dict[str, Any]) -> str:
    """What is left between a target and each fit, in nats and as a share of the target's effect."""
    exact, rows = found["exact"], []
    for target, told in TARGETS.items():
        fits = found["targets"][target].values()
        cells = [f"{fit['kl']:.2g} ({100 * fit['kl'] / fit['kl_of_bare_model']:.1f} %)" for fit in fits]
        missing = found["first_layer_missing"][target]
        rows.append((told, f"{100 * missing:.0f} %" if missing > 1e-3 else power(missing), *cells))
    numbers = [f"{fit['trained']:,}" for fit in found["targets"]["trained"].values()]
    head = ("target", "first layer out of reach", f"soft prompt of 10: {numbers[0]} numbers")
    fitted = table((*head, f"soft prompt of 120: {numbers[1]}", f"prefix of 10: {numbers[2]}"), rows, right=4)
    left = {
        (target, name): fit["kl"] / fit["kl_of_bare_model"]
        for target, fits in found["targets"].items()
        for name, fit in fits.items()
    }
    control, other = (left["trained", "soft_prompt"] / left[pair] for pair in CONTROLS)
    minutes = found["seconds"] / 60
    above = (
        f"A soft prompt of 10 and the prefix it compiles to differ by at most {power(exact['logits'])} in a logit\n"
        f"(the largest is {exact['largest_logit']:.0f}) and by a KL of {power(exact['kl'])} nats: rounding."
    )
    below = (
        f"By these shares, the short soft prompt comes {control:.0f} times nearer to a target that has an answer than\n"
        f"to the trained prefix; a prefix in its place comes {other:.0f} times nearer to that.\n"
        f"Fitting took {minutes:.0f} minutes beside other work."
    )
    return f"{above} The other way:\n\n{fitted}\n\n{below}"


if __name__ == "__main__":
    main()
