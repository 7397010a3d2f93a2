"""The command line: what it does on a tiny model, and the one sentence that every mistake ends in."""

import csv
import errno
import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from safetensors.torch import load_file, save_file
from torch._inductor.exc import InvalidCxxCompiler

import minipeft.tune
from minipeft import cli
from minipeft.bank import PromptBank
from minipeft.commands.pretrain import pretrain
from minipeft.commands.recipe import with_recipe
from minipeft.config import GPT2Config
from minipeft.corpus import build_corpus, is_held_out
from minipeft.files import json_bytes, read_json
from minipeft.gpt2 import GPT2
from minipeft.methods import METHODS, LoRA, SoftPrompt
from minipeft.metrics import PICTURE_FILE
from minipeft.pretrain import CONFIGS, TOKENS_FOLDER
from minipeft.sampling import Sampling
from minipeft.tasks import task_from_file
from minipeft.token_files import TokenFiles, prepare_tokens
from minipeft.tokenizer import Tokenizer
from minipeft.training_state import METRICS_FILE, STATE_FILE
from minipeft.tuned import CONFIG_FILE, WEIGHTS_FILE, attach, load
from tests.models import random_model

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]

# Every command below may be followed by other options: of two that are equal, the last counts.
COLUMNS = "--input text --target label"
MODEL = "--model {inputs}/model --device cpu"
TUNE_NOTHING = f"tune soft_prompt {MODEL} --length 4 --steps 5 --batch-size 2 --out {{out}}"
TUNE = f"{TUNE_NOTHING} --data {{inputs}}/reviews.tsv {COLUMNS}"
GENERATE = f"generate 'The end' {MODEL} --max-new-tokens 5"
BATCH = f"generate {MODEL} --batch {{inputs}}/requests.jsonl --out {{out}}/written.jsonl --max-new-tokens 5"
EVAL_NOTHING = f"eval {MODEL} --data {{inputs}}/reviews.tsv {COLUMNS}"
EVAL = f"{EVAL_NOTHING} --adapter {{inputs}}/adapter"
PRETRAIN = (
    "pretrain --data {inputs}/texts.txt --config tiny --steps 5 --eval-every 2 --batch-size 2 --device cpu --out {out}"
)
PREPARE = "prepare {inputs}/texts.txt {inputs}/one.txt --vocab-size 512 --held-out 20 --out {out}"
TWO_SLOTS = "{{text}} {{text}}"
INSPECT = "inspect {inputs}/adapter --model {inputs}/model"


@dataclass(frozen=True)
class Outcome:
    """What a person sees of a command, and the folder it was to write."""

    code: int
    out: str
    err: str
    folder: Path

    def files(self) -> dict[str, bytes]:
        """Everything in the folder, but for the tokens that its texts were made into."""
        found = (path for path in self.folder.rglob("*") if path.is_file() and path.parent.name != TOKENS_FOLDER)
        return {path.name: path.read_bytes() for path in found}


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, adapters and data, most of them with something wrong."""
    folder = tmp_path_factory.mktemp("inputs")
    model = random_model(vocab_size=512, n_positions=64)
    wide = random_model(vocab_size=512, n_positions=64, n_embd=48)
    attach(model, SoftPrompt(length=4)).save(folder / "adapter")
    (folder / "wrong.toml").write_text("stepz = 7\n")
    attach(wide, SoftPrompt(length=4)).save(folder / "wide_adapter")
    attach(model, LoRA()).save(folder / "lora")
    for name in ("model", "truncated", "junk", "nan", "lacking", "no_json", "other_kind"):
        model.save_pretrained(folder / name)
    weights = {name: folder / name / "model.safetensors" for name in ("truncated", "junk", "nan", "lacking")}
    weights["truncated"].write_bytes(weights["truncated"].read_bytes()[:-100])
    weights["junk"].write_bytes(b"\x89PNG" * 1000)
    tensors = load_file(weights["nan"])
    tensors["transformer.wpe.weight"][3, 3] = torch.nan
    save_file(tensors, weights["nan"])
    del tensors["transformer.wpe.weight"]
    save_file(tensors, weights["lacking"])
    (folder / "no_json" / "config.json").write_text("{")
    config = read_json(folder / "model" / "config.json")
    (folder / "other_kind" / "config.json").write_bytes(json_bytes({**config, "model_type": "llama"}))
    attach(model, SoftPrompt(length=4)).save(folder / "odd_adapter")
    (folder / "odd_adapter" / CONFIG_FILE).write_text('{"peft_type": "POLY"}')
    (folder / "nothing").mkdir()
    random_model(seed=1, vocab_size=512, n_positions=64).save_pretrained(folder / "second")

    draw = random.Random(0)
    rows = [f"{n} the {draw.choice(['best', 'worst'])} of it\t{draw.choice(['good', 'bad'])}\n" for n in range(40)]
    (folder / "reviews.tsv").write_text("text\tlabel\n" + "".join(rows))
    (folder / "second" / "reviews.tsv").write_text("text\tlabel\n" + "".join(rows).replace("good", "poor"))
    requests = [
        {"prompt": "The end", "task": "one"},
        {"prompt": "A"},
        {"prompt": "The end", "task": "two", "max_new_tokens": 2, "temperature": 0},
        {"prompt": "so", "task": "one", "stop": ["e"]},
        {"prompt": "The end", "task": None, "beams": 2, "temperature": 0},
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    bank = PromptBank(model)
    bank.add("one", folder / "adapter")
    bank.add("two", folder / "adapter")
    bank.save(folder / "bank")
    wrong_lines = {"no_json": "{", "no_prompt": '{"task": "one"}', "no_setting": '{"prompt": "a", "lenght": 3}'}
    wrong_lines |= {"no_task": '{"prompt": "a", "task": "three"}', "no_number": '{"prompt": "a", "top_k": 0}'}
    wrong_lines |= {
        "half_a_token": '{"prompt": "a", "max_new_tokens": 2.5}',
        "hot": '{"prompt": "a", "temperature": "x"}',
        "stops": '{"prompt": "a", "stop": "a"}',
    }
    wrong_lines |= {"half": '{"prompt": "a \\ud83d"}', "long": json.dumps({"prompt": "so " * 99})}
    wrong_lines |= {"a_number": '{"prompt": 3}', "a_list": "[]", "odd_task": '{"prompt": "a", "task": 3}'}
    for name, line in wrong_lines.items():
        (folder / f"{name}.jsonl").write_text('{"prompt": "fine"}\n' + line + "\n")
    (folder / "once.tsv").write_text("text\tlabel\n" + "".join(rows) + "so it is\tbetter\n")
    (folder / "long.tsv").write_text("text\tlabel\n" + "".join(rows) + "the end " * 60 + "\tgood\n")
    (folder / "latin1.tsv").write_bytes(b"text\tlabel\n" + "café\tgood\n".encode("latin-1"))
    (folder / "empty.tsv").write_bytes(b"")
    (folder / "header.tsv").write_text("text\tlabel\n")
    documents = [f"Document {n} tells of {n * n} ships." for n in range(400)]
    assert sum(map(is_held_out, documents)) >= 2
    (folder / "texts.txt").write_text("\n<|endoftext|>\n".join(documents))
    (folder / "one.txt").write_text("\n".join(documents))
    (folder / "short.txt").write_text("Too short.\n")
    prepare_tokens([folder / "texts.txt"], Tokenizer.for_vocab_size(512), folder / "tokens", 20.0)
    return folder


@pytest.fixture
def run(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`minipeft` with these options, within this process; {inputs} and {out} stand for folders."""
    monkeypatch.setitem(CONFIGS, "tiny", GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=512))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*options: str) -> Outcome:
        words = [word.format(inputs=inputs, out=tmp_path / "out") for word in shlex.split(" ".join(options))]
        monkeypatch.setattr(sys, "argv", ["minipeft", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), shown.out, shown.err, tmp_path / "out")

    return call


def assert_refused(outcome: Outcome, sentence: str) -> None:
    """Exit code 2 and one line that says what is wrong."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("minipeft: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.endswith("\n")
    assert "Traceback" not in outcome.err
    assert sentence in outcome.err


def assert_done(outcome: Outcome) -> Outcome:
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return outcome


# --- mistakes

DATA_MISTAKES = {
    "empty": ("--data {inputs}/empty.tsv", "empty.tsv is empty."),
    "header alone": ("--data {inputs}/header.tsv", "header.tsv has a header but no rows."),
    "missing": ("--data {inputs}/nowhere.tsv", "there is no file"),
    "a folder of no data": (
        "--data {inputs}/model",
        "has no file for the train split; it needs one, such as train.tsv",
    ),
    "wrong input column": ("--input words", "has no column 'words'; it has 'text', 'label'."),
    "wrong target column": ("--target team", "has no column 'team'; it has 'text', 'label'."),
    "not utf-8": ("--data {inputs}/latin1.tsv", "latin1.tsv is not UTF-8 (byte 14 is 0xe9)"),
    "a label once": ("--data {inputs}/once.tsv", "the label 'better' occurs once"),
    "unknown kind": ("--kind numbers", "kind is 'numbers'; it can be auto, labels or text."),
    "text too long": ("--data {inputs}/long.tsv", "line 42 of"),
    "unknown ending": ("--data {inputs}/model/config.json", "config.json ends in .json; data files end in"),
    "data and task": ("--task movie", "say what to learn: --task NAME (that ships) or --data FILE (your own)."),
}

MODEL_MISTAKES = {
    "unknown model": (
        "--model gpt5",
        "gpt5 is neither a folder, a file, a model that ships (nano, pico) nor a public",
    ),
    "model not here": ("--model gpt2-xl", "gpt2-xl is not here, and HF_HUB_OFFLINE forbids bringing it"),
    "no files": ("--model {inputs}/nothing", "there is no file"),
    "truncated model": ("--model {inputs}/truncated", "truncated/model.safetensors is no whole safetensors file"),
    "junk for a model": ("--model {inputs}/junk", "junk/model.safetensors is no whole safetensors file"),
    "NaN in a model": ("--model {inputs}/nan", "key wpe.weight holds NaN or infinity"),
    "key missing": ("--model {inputs}/lacking", "lacks key wpe.weight"),
    "config no JSON": ("--model {inputs}/no_json", "config.json is not JSON"),
    "another kind of model": ("--model {inputs}/other_kind", "model_type is 'llama'"),
}

DEVICE_MISTAKES = {
    "unknown device": ("--device abacus", "device is 'abacus'; here it can be auto, cpu"),
    "odd device": ("--device cpu:x", "cpu:x"),
}

ADAPTER_MISTAKES = {
    "unknown adapter": ("--adapter nowhere", "nowhere is neither a folder nor an adapter that ships"),
    "wrong width": ("--adapter {inputs}/wide_adapter", "was made for another model: its token_dim is 48"),
    "no adapter": ("--adapter {inputs}/nothing", "there is no file"),
    "unknown kind of adapter": ("--adapter {inputs}/odd_adapter", "peft_type is 'POLY'; minipeft reads"),
}

TUNE_MISTAKES = {
    "length without room": ("--length 64", "length 64 leaves no room for text: this model has 64 positions in all."),
    "length far beyond": ("--length 1000", "length 1000 leaves no room for text"),
    "length and text without room": ("--length 55", "positions with its target, but the model and method leave 9"),
    "length zero": ("--length 0", "length is 0; it must be a whole number of at least 1."),
    "unknown start": ("--init zeros", "init is 'zeros'; it can be"),
    "option of another method": ("--reparam 8", "soft_prompt has no --reparam."),
    "setting of another method": (
        "--set rank=4",
        "--set rank=4: write NAME=VALUE; the names of soft_prompt are length",
    ),
    "setting without a value": ("--set init", "--set init: write NAME=VALUE"),
    "setting of another kind": ("--set length=long", "--set length=long: 'long' is not of the kind that length needs."),
    "no rows at once": ("--micro-batch 0", "micro_batch is 0; it can be a number of rows"),
    "unknown rows at once": ("--micro-batch some", "micro_batch is 'some'; it can be a number of rows"),
    "learning rate below zero": ("--lr -1", "the learning rate must be a positive number, got -1.0."),
    "learning rate no number": ("--lr nan", "the learning rate must be a positive number, got nan."),
    "no steps": ("--steps 0", "steps must be at least 1, got 0."),
    "no batch": ("--batch-size 0", "batch_size must be at least 1, got 0."),
    "seed below zero": ("--seed -1", "seed"),
    "seed too large": ("--seed 99999999999999999999", "seed"),
    "patience below zero": ("--patience -1", "patience"),
    "nothing to resume": ("--resume", "there is no interrupted run in"),
    "out below a file": ("--out {inputs}/reviews.tsv/sub", "reviews.tsv/sub: Not a directory"),
}

OTHER_MISTAKES = {
    "unknown method": ("tune adapters --task movie --out {out}", "there is no method 'adapters'; there are"),
    "nothing to train": (TUNE.replace("soft_prompt", "hard_prompt").replace("--length 4", ""), "nothing to train"),
    "a length for two": (
        TUNE.replace("soft_prompt", "soft_prompt+prefix"),
        "--length: soft_prompt and prefix both have it; write --set soft_prompt.length=VALUE or --set prefix.length=",
    ),
    "two at one place": (
        TUNE.replace("soft_prompt", "lora+ia3").replace("--length 4", ""),
        "lora and ia3 cannot be stacked: both want h.0.attn.c_attn.",
    ),
    "methods for no model": ("methods --model nope", "nope is neither a folder nor one of nano, pico, gpt2, "),
    "methods without settings": ("methods --model {inputs}", "there is no file"),
    "a plan for two machines": ("plan --gpu 6GB --memory 2GB", "give one of them"),
    "a plan for no size": ("plan --gpu large", "'large' is no size of memory; write it like 6GB"),
    "a rate without a GPU": ("plan --tflops 3", "--tflops is a positive number, and of a --gpu."),
    "a plan for no tokens": ("plan --method lora --tokens 0", "length must be at least 1, got 0."),
    "a plan for too many tokens": ("plan --method lora --tokens 300", "300 tokens = 300 positions, but this model has"),
    "nothing to continue": (f"generate {MODEL}", "give either a text to continue, or a file of them with --batch"),
    "a text and a file": (f"{BATCH} 'The end'", "give either a text to continue, or a file of them with --batch"),
    "a file and nowhere to": (f"generate {MODEL} --batch {{inputs}}/requests.jsonl", "--batch needs --out"),
    "an adapter and a bank": (f"{GENERATE} --adapter {{inputs}}/adapter --bank {{inputs}}/bank", "give one"),
    "a task and no bank": (f"{GENERATE} --task one", "--task names a prompt of --bank"),
    "a task that is not there": (f"{GENERATE} --bank {{inputs}}/bank --task three", "there is no prompt for 'three'"),
    "no rows at once": (f"{BATCH} --bank {{inputs}}/bank --rows 0", "rows must be at least 1, got 0"),
    "beams that draw": (f"{GENERATE} --beams 2 --temperature 1", "beam search draws nothing"),
    "a line without its prompt": (BATCH, "requests.jsonl, line 1: there is no prompt for 'one'; see --bank"),
    **{
        f"a line with {name}": (f"{BATCH} --bank {{inputs}}/bank --batch {{inputs}}/{name}.jsonl", said)
        for name, said in {
            "no_json": "no_json.jsonl, line 2 is no JSON",
            "no_prompt": 'line 2 must be an object with a "prompt" that is a text',
            "a_number": 'line 2 must be an object with a "prompt" that is a text',
            "a_list": 'line 2 must be an object with a "prompt" that is a text',
            "no_setting": "line 2: there is no setting lenght; there are beams, ",
            "no_task": "line 2: there is no prompt for 'three'",
            "half": "line 2: half of a character (a lone surrogate) is in the prompt.",
            "long": "new ones do not fit into the 64 positions that there are; lower max_new_tokens or shorten",
            "odd_task": "line 2: task is 3; it must be a name, or null",
            "no_number": "line 2: top_k must be at least 1, got 0",
            "half_a_token": "line 2: max_new_tokens is 2.5; it must be a whole number",
            "hot": "line 2: temperature is 'x'; it must be a number",
            "stops": "line 2: stop is 'a'; it must be a list of texts",
        }.items()
    },
    "a plan for no model": ("plan --model nope", "nope is neither a folder nor one of nano, pico, gpt2, "),
    "a plan to train nothing": ("plan --method hard_prompt", "hard_prompt has nothing to train"),
    "settings of no method": ("plan --length 5", "--length, --reparam and --set are settings of a --method; name it."),
    "settings of pretraining": ("plan --method pretrain --set rank=4", "pretrain has no --length, --reparam or --set."),
    "unknown task": (f"{TUNE_NOTHING} --task films", "there is no task 'films'; there are movie, product"),
    "neither data nor task": (TUNE_NOTHING, "say what to learn: --task NAME (that ships) or --data FILE (your own)."),
    "no target column": (f"{TUNE_NOTHING} --data {{inputs}}/reviews.tsv", "say which column of"),
    "text too short": (f"{TUNE_NOTHING} --data {{inputs}}/short.txt", "short.txt: no text falls into the"),
    "unknown kind for a text file": (f"{TUNE_NOTHING} --data {{inputs}}/texts.txt --kind numbers", "kind is 'numbers'"),
    "unknown split": (f"{EVAL} --split valid", "split is 'valid'; it can be train, dev or test."),
    "nothing to measure": (EVAL_NOTHING, "say what to measure: --adapter DIR, or a hard prompt by --template"),
    "two to measure": (f"{EVAL} --template '{{{{text}}}}'", "say what to measure: --adapter DIR, or a hard prompt"),
    "answers without labels": (
        f"eval {MODEL} --data {{inputs}}/texts.txt --adapter nowhere --answers {{out}}/answers.csv",
        "has no labels, so there are no answers to write: leave --answers out.",
    ),
    "answers over a file": (
        f"{EVAL} --adapter nowhere --answers {{inputs}}/reviews.tsv",
        "reviews.tsv is there already, and stays as it is: give --answers another name.",
    ),
    "answers of a text": (
        f"eval {MODEL} --task text --data {{inputs}}/texts.txt --answers {{out}}/answers.csv",
        "text is measured as it is",
    ),
    "unknown file to measure": (f"eval {MODEL} --task text --data {{inputs}}/nowhere.txt", "there is no file"),
    "no text named": (f"eval {MODEL} --task text", "say which text: minipeft eval --task text --data FILE"),
    "stride too long": (
        f"eval {MODEL} --task text --data {{inputs}}/texts.txt --stride 65",
        "stride is 65; it must be between 1 and the 64 positions",
    ),
    "no rows": (f"eval {MODEL} --task text --data {{inputs}}/texts.txt --batch-size 0", "batch_size is 0"),
    "a template for a text": (
        f"eval {MODEL} --task text --data {{inputs}}/texts.txt --template '{{{{text}}}}'",
        "text is measured as it is",
    ),
    "a split of a text": (
        f"eval {MODEL} --task text --data {{inputs}}/texts.txt --split dev",
        "text is measured as it is: without --template, --input, --target, --kind, --split",
    ),
    "a stride for labels": (f"{EVAL} --stride 3", "--stride, --limit, --as-is and --fill are for wikitext2"),
    "no table to fill": (
        f"eval {MODEL} --task text --data {{inputs}}/texts.txt --fill {{inputs}}/texts.txt",
        "texts.txt has no row for text and",
    ),
    "filling with a limit": (
        f"eval {MODEL} --task text --data {{inputs}}/texts.txt --limit 5 --fill {{inputs}}/texts.txt",
        "--fill is for a model and protocol as they are: without --adapter",
    ),
    "filling with an adapter": (
        f"eval {MODEL} --task text --data {{inputs}}/texts.txt --adapter {{inputs}}/adapter --fill nowhere.md",
        "--fill is for a model and protocol as they are: without --adapter",
    ),
    "filling from another file": (
        f"eval {MODEL} --task wikitext2 --data {{inputs}}/texts.txt --fill {{inputs}}/texts.txt",
        "--fill writes the value of wikitext2's own data: not with --data.",
    ),
    "a download of nothing": ("download", "name a model: gpt2, gpt2-medium"),
    "a download of an unknown model": ("download gpt5", "'gpt5' is no public GPT-2: gpt2, gpt2-medium"),
    "a file that is not there": ("download gpt2 --from-file {inputs}/nowhere", "there is no file"),
    "another file": ("download gpt2 --from-file {inputs}/texts.txt", "is not gpt2's model.safetensors"),
    "two checks": ("download gpt2 --verify --from-file {inputs}/texts.txt", "Give one of them"),
    "checking what is not here": ("download gpt2 --verify", "gpt2 is not here; bring it with: minipeft download"),
    "template without slot": (f"{EVAL_NOTHING} --template 'It was'", "must contain {text} exactly once."),
    "template with two": (f"{EVAL_NOTHING} --template '{TWO_SLOTS}'", "must contain {text} exactly once."),
    "temperature below zero": (f"{GENERATE} --temperature -1", "temperature must be a number of at least 0, got -1.0."),
    "temperature no number": (f"{GENERATE} --temperature nan", "temperature must be a number of at least 0, got nan."),
    "top k below zero": (f"{GENERATE} --top-k -1", "top_k must be at least 1, got -1."),
    "top p zero": (f"{GENERATE} --top-p 0", "top_p must be above 0 and at most 1, got 0.0."),
    "no tokens": (f"{GENERATE} --max-new-tokens 0", "max_new_tokens must be at least 1, got 0."),
    "too many tokens": (f"{GENERATE} --max-new-tokens 64", "do not fit into this model's 64"),
    "no text": (GENERATE.replace("'The end'", "''"), "there is nothing to continue: a prompt is empty."),
    "seed of a text too large": (f"{GENERATE} --seed 99999999999999999999", "seed"),
    "unknown config": (f"{PRETRAIN} --config giga", "config is 'giga'; it can be pico, nano, micro, gpt2"),
    "unknown schedule": (f"{PRETRAIN} --schedule flat", "schedule is 'flat'; it can be 'linear', 'cosine' or 'wsd'."),
    "window of no text": (f"{PRETRAIN} --window 1", "a text of 1 token has nothing to predict; it takes at least 2."),
    "patience for nothing": (f"{PRETRAIN} --held-out 0 --patience 1", "so patience has nothing to wait for"),
    "prepared tokens and a text": (
        f"{PRETRAIN} --data {{inputs}}/tokens",
        "tokens holds prepared tokens, which are trained on alone; prepare all texts together.",
    ),
    "a text and a folder without": (f"{PRETRAIN} --data {{inputs}}/nothing", "there are no .txt files in"),
    "another part held out than prepared": (
        PRETRAIN.replace("texts.txt", "tokens") + " --held-out 5",
        "was prepared with 20 % of the text held out, and not 5 %; leave --held-out away",
    ),
    "two recipes": (f"{PRETRAIN} --recipe a.toml --recipe b.toml", "--recipe is there twice; put the options of both"),
    "everything held out": (f"{PRETRAIN} --held-out 100", "held_out is a percentage from 0 to below 100, got 100.0."),
    "no time at all": (f"{PRETRAIN} --time-limit 0s", "'0s' is no time; write it like 90s, 30m or 8h."),
    "time in words": (f"{TUNE} --time-limit soon", "'soon' is no time"),
    "no state to keep": (f"{TUNE} --keep 0", "keep must be at least 1, got 0."),
    "negative spike": (f"{PRETRAIN} --spike -1", "spike must be more than 0, got -1.0."),
    "unknown key in a recipe": (f"{PRETRAIN} --recipe {{inputs}}/wrong.toml", "there is no option 'stepz'"),
    "no recipe": (f"{PRETRAIN} --recipe nowhere.toml", "there is no file nowhere.toml."),
    "texts missing": (PRETRAIN.replace("texts.txt", "nowhere.txt"), "there is no file"),
    "texts empty": (PRETRAIN.replace("texts.txt", "empty.tsv"), "empty.tsv is empty."),
    "texts not utf-8": (PRETRAIN.replace("texts.txt", "latin1.tsv"), "latin1.tsv is not UTF-8"),
    "folder without texts": (PRETRAIN.replace("texts.txt", "nothing"), "there are no .txt files in"),
    "texts too short": (PRETRAIN.replace("texts.txt", "short.txt"), "are too few for a batch of 2 × 64"),
    "pretraining without steps": (f"{PRETRAIN} --steps 0", "steps must be at least 1"),
    "pretraining no rows at once": (f"{PRETRAIN} --micro-batch 0", "micro_batch is 0; it can be a number of rows"),
    "sharding in one process": (f"{PRETRAIN} --shard", "start them with torchrun --nproc-per-node N."),
    "sharding what is not trained": (f"{TUNE} --shard", "those of full; soft_prompt trains few"),
    "pretraining with a wrong rate": (f"{PRETRAIN} --lr 0", "the learning rate must be a positive number"),
    "pretraining with a seed below zero": (f"{PRETRAIN} --seed -1", "seed"),
    "no pretraining to resume": (f"{PRETRAIN} --resume", "there is no interrupted run in"),
    "pretraining below a file": (f"{PRETRAIN} --out {{inputs}}/reviews.tsv/sub", "reviews.tsv/sub: Not a directory"),
    "preparing for an unknown config": (
        PREPARE.replace("--vocab-size 512", "--config giga"),
        "config is 'giga'; it can be pico, nano, micro, gpt2",
    ),
    "preparing for two": (f"{PREPARE} --config nano", "--config and --vocab-size both say the vocabulary; give one"),
    "preparing for no vocabulary": (f"{PREPARE} --vocab-size 99", "no GPT-2 vocabulary has 99 tokens"),
    "preparing what is missing": (PREPARE.replace("one.txt", "nowhere.txt"), "there is no file"),
    "preparing what is empty": (PREPARE.replace("one.txt", "empty.tsv"), "empty.tsv is empty."),
    "preparing what is no UTF-8": (PREPARE.replace("one.txt", "latin1.tsv"), "latin1.tsv is not UTF-8 (byte 14 is"),
    "preparing what is no text": (
        PREPARE.replace("one.txt", "model/model.safetensors"),
        "safetensors is not a text file",
    ),
    "preparing a folder without texts": ("prepare {inputs}/nothing --out {out}", "there are no .txt files in"),
    "preparing to hold out all": (f"{PREPARE} --held-out 100", "must be at least 0 and less than 100 percent"),
    "preparing below a file": (f"{PREPARE} --out {{inputs}}/reviews.tsv/sub", "reviews.tsv/sub: Not a directory"),
    "inspecting nothing": ("inspect {inputs}/nothing", "there is no file"),
    "inspecting nowhere": ("inspect nowhere", "nowhere is neither a folder nor"),
    "inspecting a wrong width": (f"{INSPECT.replace('adapter', 'wide_adapter')}", "was made for another model"),
    "attention to no prompt": (
        "inspect {inputs}/lora --model {inputs}/model --text The",
        "lora puts nothing before the",
    ),
    "attention of a checkpoint": ("inspect {inputs}/model --text The", "--text and --plot are for adapters, and "),
    "attention to no text": (f"{INSPECT} --text ''", "there are no tokens: the text is empty."),
    "attention to a long text": (f"{INSPECT} --text '{'The ' * 70}'", "positions, but this model has 64"),
    "a plot in a folder": (f"{INSPECT} --plot {{inputs}}", "it is a folder; nothing was changed"),
    "inspecting junk": ("inspect {inputs}/junk", "junk/model.safetensors is no whole safetensors file"),
}

GROUPS = {
    TUNE: DATA_MISTAKES | MODEL_MISTAKES | DEVICE_MISTAKES | TUNE_MISTAKES,
    EVAL: DATA_MISTAKES | MODEL_MISTAKES | ADAPTER_MISTAKES,
    GENERATE: MODEL_MISTAKES | DEVICE_MISTAKES | ADAPTER_MISTAKES,
    PRETRAIN: DEVICE_MISTAKES,
}
MISTAKES = [
    pytest.param(f"{command} {options}", sentence, id=f"{command.split()[0]}: {what}")
    for command, mistakes in GROUPS.items()
    for what, (options, sentence) in mistakes.items()
    if not (command == EVAL and what == "text too long")  # that text is in another split
]
MISTAKES += [pytest.param(options, sentence, id=what) for what, (options, sentence) in OTHER_MISTAKES.items()]


@pytest.mark.parametrize(("options", "sentence"), MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(options: str, sentence: str, run: Run) -> None:
    outcome = run(options)
    assert_refused(outcome, sentence)
    assert outcome.files() == {}


@pytest.mark.parametrize(
    "options",
    [f"{TUNE} --lr much", f"{TUNE} --steps 1.5", f"{TUNE} --dtype int8", f"{TUNE} --colour", "tune prefix", "fly"],
)
def test_an_option_that_cannot_be_read_is_refused_with_the_usage(options: str, run: Run) -> None:
    outcome = run(options)
    assert (outcome.code, outcome.out, outcome.files()) == (2, "", {})
    assert outcome.err.startswith("Usage: ")
    assert "Traceback" not in outcome.err


def test_a_text_that_is_too_long_can_be_cut(run: Run) -> None:
    assert_refused(run(TUNE, "--data {inputs}/long.tsv"), "cut long texts with --truncate.")
    assert_done(run(TUNE, "--data {inputs}/long.tsv --truncate"))


@pytest.mark.parametrize("command", [TUNE, PRETRAIN], ids=["tune", "pretrain"])
def test_a_run_is_not_overwritten_unasked(command: str, run: Run) -> None:
    before = assert_done(run(command)).files()
    outcome = run(command, "--seed 1")
    assert_refused(outcome, "already holds a run; go on with --resume, or start anew with --overwrite.")
    assert outcome.files() == before
    assert_done(run(command, "--resume"))
    after = assert_done(run(command, "--seed 1 --overwrite")).files()
    weights = WEIGHTS_FILE if command == TUNE else "model.safetensors"
    assert after[weights] != before[weights]


def test_resuming_with_another_setting_shows_the_difference(run: Run) -> None:
    before = assert_done(run(TUNE)).files()
    outcome = run(TUNE, "--resume --lr 0.5 --length 5")
    assert_refused(outcome, "belongs to a run with another setting (length was 4, is 5; lr was 0.01, is 0.5)")
    assert outcome.files() == before


@pytest.mark.parametrize("other", ["--model {inputs}/second", "--data {inputs}/second/reviews.tsv", "--dtype bfloat16"])
def test_resuming_with_another_model_or_data_is_refused(other: str, run: Run) -> None:
    """Else the result is one that no uninterrupted run gives."""
    before = assert_done(run(TUNE)).files()
    outcome = run(TUNE, "--resume", other)
    assert_refused(outcome, "belongs to a run with another setting")
    assert outcome.files() == before


def test_a_damaged_state_is_refused(run: Run) -> None:
    state = assert_done(run(TUNE)).folder / STATE_FILE
    state.write_bytes(state.read_bytes()[:-9])
    assert_refused(run(TUNE, "--resume"), f"{STATE_FILE} is no whole safetensors file")


# --- disks and interrupts


def finished_files(outcome: Outcome) -> set[str]:
    """What a run leaves, but for the log that grows with it."""
    return set(outcome.files()) - {METRICS_FILE}


@pytest.mark.parametrize("command", [TUNE, PRETRAIN], ids=["tune", "pretrain"])
def test_a_full_disk_ends_in_one_sentence_and_leaves_no_part_of_a_file(
    command: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = run(command)
    assert_refused(outcome, ": No space left on device; nothing was changed")
    assert finished_files(outcome) == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB at {out}."""
    disk = tmp_path / "out"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("this system has no mount command")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_ends_in_one_sentence(small_disk: Path, run: Run) -> None:
    outcome = run(TUNE.replace("soft_prompt", "full").replace("--length 4", ""))
    assert outcome.folder == small_disk
    assert_refused(outcome, "No space left on device; nothing was changed")
    assert finished_files(outcome) == set()


def test_a_promise_to_resume_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the first step, while the texts are tokenised."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(minipeft.tune, "encoder_for", interrupted)
        outcome = run(TUNE)
    assert (outcome.code, outcome.out) == (130, "")
    assert "Traceback" not in outcome.err
    if "--resume goes on" in outcome.err:
        assert_done(run(TUNE, "--resume"))


def assert_strict_json(outcome: Outcome) -> None:
    """NaN is no JSON: JavaScript, jq and most other readers refuse the whole file."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    files = outcome.files()
    for text in (files["report.json"], *files[METRICS_FILE].splitlines()):
        json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("options", ["--lr 10 --steps 30", "--lr 1e4 --steps 30", "--lr 1e30 --steps 30", "--lr 1e30"])
@pytest.mark.parametrize("command", [TUNE, PRETRAIN], ids=["tune", "pretrain"])
def test_an_absurd_learning_rate_gives_a_whole_result_or_a_sentence(command: str, options: str, run: Run) -> None:
    outcome = run(command, options)
    if outcome.code:
        assert_refused(outcome, "start anew with a lower learning rate")
        assert finished_files(outcome) <= {STATE_FILE}
    else:
        assert_strict_json(outcome)
        use = "--model {out}" if command == PRETRAIN else "--adapter {out}"
        assert_done(run(GENERATE, use))


# --- what it does


def test_generate_continues_the_text(run: Run, inputs: Path) -> None:
    written = assert_done(run(GENERATE, "--seed 3")).out
    sampling = Sampling(max_new_tokens=5, temperature=0.8, top_k=50, seed=3)
    assert written == minipeft.generate(GPT2.from_pretrained(inputs / "model"), "The end", sampling) + "\n"
    assert run(GENERATE, "--seed 4").out != written


def test_generate_takes_an_adapter(run: Run, inputs: Path) -> None:
    written = assert_done(run(GENERATE, "--temperature 0 --adapter {inputs}/adapter")).out
    tuned = load(inputs / "adapter", GPT2.from_pretrained(inputs / "model"))
    assert written == tuned.generate("The end", max_new_tokens=5) + "\n"
    assert written != run(GENERATE, "--temperature 0").out


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")]


def test_generate_writes_every_line_of_a_file(run: Run, inputs: Path) -> None:
    outcome = assert_done(run(BATCH, "--bank {inputs}/bank --rows 2 --seed 3"))
    found, model = lines_of(outcome.folder / "written.jsonl"), GPT2.from_pretrained(inputs / "model")
    assert [(row["line"], row["task"], row["prompt"]) for row in found] == [
        (1, "one", "The end"),
        (2, None, "A"),
        (3, "two", "The end"),
        (4, "one", "so"),
        (5, None, "The end"),
    ]
    usual = {"temperature": 0.8, "top_k": 50}
    assert found[1]["text"] == minipeft.generate(model, "A", Sampling(5, seed=5, **usual)).removeprefix("A")
    tuned = load(inputs / "adapter", model)
    alone = tuned.generate("The end", 5, seed=4, **usual).removeprefix("The end")
    assert found[0]["text"] == alone
    assert found[2]["text"] == tuned.generate("The end", 2, temperature=0.0).removeprefix("The end")
    together = assert_done(run(BATCH, "--bank {inputs}/bank --rows 16 --seed 3 --overwrite"))
    assert lines_of(together.folder / "written.jsonl") == found


def test_a_file_of_prompts_is_gone_on_with(run: Run, inputs: Path) -> None:
    whole = assert_done(run(BATCH, "--bank {inputs}/bank --rows 2")).folder / "written.jsonl"
    text = whole.read_text()
    lines = text.splitlines(keepends=True)
    for rest in ("", lines[0], lines[0] + lines[1][:9], "".join(lines[:3]), text):
        whole.write_text(rest)
        assert_refused(run(BATCH, "--bank {inputs}/bank --rows 2"), "is there already; --resume goes on with it")
        assert_done(run(BATCH, "--bank {inputs}/bank --rows 2 --resume"))
        assert whole.read_text() == text
    whole.write_text(lines[1])
    assert_refused(run(BATCH, "--bank {inputs}/bank --resume"), "line 1 answers none of these prompts")
    assert whole.read_text() == lines[1]
    assert_done(run(BATCH, "--bank {inputs}/bank --rows 2 --overwrite"))
    assert whole.read_text() == text


def test_a_prompt_that_leaves_little_room_is_inspected(run: Run, inputs: Path) -> None:
    attach(GPT2.from_pretrained(inputs / "model"), SoftPrompt(length=60)).save(inputs / "long_prompt")
    told = assert_done(run("inspect {inputs}/long_prompt --model {inputs}/model")).out
    assert "60 positions stand before a text that reads: The " in told


def test_texts_come_as_they_are_written(
    run: Run, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tabs, the names of smileys, what else ends a line in Python, and a mark that Windows puts before a file."""
    text = "col1\tcol2 :heart: [/b]\u2028\x85 end"
    assert assert_done(run(GENERATE.replace("'The end'", shlex.quote(text)))).out.startswith(text)
    (tmp_path / "odd.jsonl").write_text("\ufeff" + json.dumps({"prompt": text}, ensure_ascii=False) + "\n")
    command = BATCH.replace("{inputs}/requests.jsonl", str(tmp_path / "odd.jsonl"))
    whole = assert_done(run(command)).folder / "written.jsonl"
    assert [line["prompt"] for line in lines_of(whole)] == [text]
    windows = whole.read_bytes().replace(b"\n", b"\r\n")
    whole.write_bytes(windows)
    assert_done(run(command, "--resume"))
    assert whole.read_bytes() == windows


def test_a_name_in_brackets_is_shown(run: Run) -> None:
    assert_done(run("bank add {out}/[v1] [/INST] {inputs}/adapter --model {inputs}/model"))
    listed = assert_done(run("bank list {out}/[v1] --model {inputs}/model")).out
    assert "[/INST]" in listed
    assert "[v1] holds 1 prompt" in listed


def test_a_bank_is_made_changed_and_listed(run: Run, inputs: Path) -> None:
    assert_done(run("bank add {out}/bank spam {inputs}/adapter --model {inputs}/model"))
    told = assert_done(run("bank add {out}/bank ham {inputs}/adapter --model {inputs}/model"))
    assert "bank holds 2 prompts" in told.out
    assert_done(run("bank rename {out}/bank ham eggs --model {inputs}/model"))
    listed = assert_done(run("bank list {out}/bank --model {inputs}/model")).out
    assert all(name in listed for name in ("spam", "eggs", "soft_prompt"))
    assert "ham" not in listed.replace("spam", "")
    assert_done(run("bank remove {out}/bank spam --model {inputs}/model"))
    assert_refused(run("bank remove {out}/bank spam --model {inputs}/model"), "there is no prompt for 'spam'")
    assert_refused(run("bank list {out}/nope --model {inputs}/model"), "there is no file")
    assert_refused(run("bank add {out}/bank l {inputs}/lora --model {inputs}/model"), "lora uses neither the input")


@pytest.mark.parametrize(
    ("method", "options", "trained"),
    [
        ("soft_prompt", "--length 4", 4 * 32),
        ("soft_prompt", "--length 4 --init labels", 4 * 32),
        ("prefix", "--length 3 --gradient-checkpointing", 3 * 2 * 2 * 32),
        ("prefix", "--length 3 --init 'text:the end'", 3 * 2 * 2 * 32),
        ("prefix", "--length 3 --reparam 8", 3 * 32 + 33 * 8 + 9 * 2 * 2 * 32),
        ("p_tuning", "--length 4 --set encoder=mlp", 4 * 32 + 3 * (32 * 32 + 32)),
        ("lora", "--set rank=2 --set dropout=0.1", 2 * 2 * (32 + 96)),
        ("lora", "--set rank=2 --set alpha=0.5 --set targets=attn.c_proj,mlp.c_fc", 2 * 2 * (32 + 32 + 32 + 128)),
        ("ia3", "", 7 * 2 * 32),
        ("adapter", "--set width=4 --set form=lin --set norms=false", 2 * (2 * 32 * 4 + 32 + 4 + 2 * 32)),
        ("llama_adapter", "--length 3 --set top_layers=1", 3 * 32 + 2),
        ("llama_adapter", "--length 3 --set top_layers=none", 2 * (3 * 32 + 2)),
        ("bitfit", "", 11 * 2 * 32 + 32),
        ("lora+soft_prompt", "--set lora.rank=2 --length 3 --init labels", 2 * 2 * (32 + 96) + 3 * 32),
        ("full", "--lr 1e-3 --dtype bfloat16", 12 * 2 * 32**2 + 13 * 2 * 32 + (512 + 64) * 32 + 2 * 32),
    ],
)
def test_a_tuned_method_can_be_measured_inspected_and_used(
    method: str, options: str, trained: int, run: Run, inputs: Path
) -> None:
    start, name = TUNE.replace("soft_prompt", method).replace("--length 4", ""), "stack" if "+" in method else method
    tuned = assert_done(run(start, options))
    assert tuned.out.startswith(f"{trained:,} trained numbers, best at step 5 of 5, dev score ")
    assert re.search(r"dev score \d\.\d+ \(the commonest label alone: [01]\.\d{4}\), \d+ s\.", tuned.out)
    assert f"minipeft generate $'TEXT\\nLabel:' --adapter {tuned.folder} --model " in tuned.out
    assert set(tuned.files()) == {CONFIG_FILE, WEIGHTS_FILE, STATE_FILE, METRICS_FILE, PICTURE_FILE, "report.json"}
    report = read_json(tuned.folder / "report.json")
    assert (report["method"]["name"], report["trainable"], report["steps"]) == (name, trained, 5)

    dtype = torch.bfloat16 if "bfloat16" in options else torch.float32
    assert load(tuned.folder, GPT2.from_pretrained(inputs / "model", dtype=dtype)).method.name == name
    measured = assert_done(run(EVAL, "--adapter {out} --split dev --answers {out}/new/answers.csv")).out
    assert f"{report['dev_accuracy']:.1%} ±" in measured
    with open(tuned.folder / "new" / "answers.csv", newline="", encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    labelled = task_from_file(inputs / "reviews.tsv", "text", "label")
    dev = labelled.splits["dev"]
    assert [(row["text"], row["label"]) for row in answers] == [(one.text, one.target) for one in dev]
    assert {row["answer"] for row in answers} <= set(labelled.labels)
    assert sum(row["answer"] == row["label"] for row in answers) / len(dev) == pytest.approx(report["dev_accuracy"])
    encode = Tokenizer.for_vocab_size(512).encode  # asked with the words it is told to be, it writes as much as a label
    most = max(len(encode(labelled.word(label))) for label in labelled.labels)
    assert f" --temperature 0 --max-new-tokens {most}\n" in tuned.out
    if dtype is torch.float32:  # eval reads the base in fp32
        assert f"{report['dev_loss']:.3f}" in measured
    assert (
        str(tuple(load_file(tuned.folder / WEIGHTS_FILE).popitem()[1].shape))
        in assert_done(run("inspect {out} --model {inputs}/model")).out
    )
    assert assert_done(run(GENERATE, "--adapter {out}")).out.startswith("The end")


@pytest.mark.parametrize(
    ("data", "options"),
    [("reviews.tsv", "--target text"), ("reviews.tsv", "--input text --target text"), ("texts.txt", "")],
)
def test_free_text_is_tuned_and_measured(data: str, options: str, run: Run) -> None:
    data = f"--data {{inputs}}/{data} {options} --truncate"
    tuned = assert_done(run(TUNE_NOTHING, data))
    report = read_json(tuned.folder / "report.json")
    assert report["dev_accuracy"] is None
    measured = assert_done(run("eval", MODEL, data, "--split dev --adapter {out}")).out
    assert f"{report['dev_loss']:.3f}" in measured
    assert "accuracy" not in measured


@pytest.mark.parametrize(("model", "shown"), [("nano", "6,918,400"), ("gpt2-xl", "1,557,611,200")])
def test_the_methods_are_counted_without_weights(model: str, shown: str, run: Run) -> None:
    told = assert_done(run(f"methods --model {model}")).out
    assert f"{model}: {shown} parameters" in told
    assert shown in told.split("FullFinetuning()")[1]


def test_what_does_not_fit_a_model_is_said_in_its_row(run: Run) -> None:
    random_model(n_positions=12, n_layer=1).save_pretrained(run("methods --model nano").folder / "short")
    told = assert_done(run("methods --model {out}/short")).out
    assert told.count("does not fit") == 4  # 20 vectors, twice by a network, and two layers of one


def test_a_plan_tells_what_a_step_needs_without_weights(run: Run) -> None:
    """The weights of GPT-2 medium, which is not here: 354,823,168 numbers of two bytes."""
    told = assert_done(run("plan --model gpt2-medium --method lora --dtype bfloat16 --batch-size 1 --tokens 8")).out
    (row,) = (line.split() for line in told.splitlines() if line.strip().startswith("lora"))
    assert row[1:3] == ["710", "MB"]
    assert row[-3] == "yes"


def test_a_plan_shows_every_method_and_what_to_lower(run: Run) -> None:
    command = "plan --model {inputs}/model --tokens 32"
    told = assert_done(run(command, "--batch-size 4 --memory 1GB")).out
    rows = {line.split()[0] for line in told.splitlines() if " yes " in line}
    assert rows == METHODS.keys() - {"hard_prompt"}
    assert "prefix --reparam 512" in told
    told = assert_done(run(command, "--method lora --batch-size 2048 --memory 200MB")).out
    assert re.search(r"lora fits with --micro-batch \d+: 1\d\d MB", told), told
    told = assert_done(run(command, "--method lora --batch-size 2 --memory 20MB")).out
    assert "lora does not fit, whatever is lowered." in told


def test_a_plan_for_a_gpu_tells_operations_or_with_its_rate_seconds(run: Run) -> None:
    command = "plan --model {inputs}/model --tokens 32 --gpu 6GB --method"
    assert re.search(r"pretrain .* yes .*TFLOP", assert_done(run(command, "pretrain")).out)
    assert re.search(r"lora\+soft_prompt .* yes +≥ .* s", assert_done(run(command, "lora+soft_prompt --tflops 20")).out)


@pytest.mark.parametrize("command", [TUNE, PRETRAIN], ids=["tune", "pretrain"])
def test_rows_at_once_change_nothing(command: str, run: Run) -> None:
    """Gradients of parts add up in another order, and where they are nearly nothing AdamW's step follows the rest."""
    name = WEIGHTS_FILE if command == TUNE else "model.safetensors"
    whole, *others = (
        load_file(assert_done(run(command, f"--overwrite --micro-batch {rows}")).folder / name)
        for rows in ("whole", "1", "auto")
    )
    lr = 0.01 if command == TUNE else 2e-3
    for other in others:
        for key, tensor in whole.items():
            apart = (tensor - other[key]).abs().mean() / lr
            assert apart < 1e-4, key


OUT_OF_MEMORY = """
import os, resource
import minipeft.pretrain as pretraining
from minipeft import cli
from minipeft.config import GPT2Config

pretraining.CONFIGS["tiny"] = GPT2Config(n_layer=4, n_head=2, n_embd=128, n_positions=64, vocab_size=512)
whole = pretraining.train

def train_in_little_memory(parameters, loss_at, *given, **named):
    def limited(step):
        if os.environ["LIMITED"] == "yes" and step == 0:
            now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + 200_000_000, resource.RLIM_INFINITY))
        return loss_at(step)
    result = whole(parameters, limited, *given, **named)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return result

pretraining.train = train_in_little_memory
cli.main()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to limit a process's memory")
def test_a_process_that_runs_out_of_memory_goes_on_with_fewer_rows(inputs: Path, tmp_path: Path) -> None:
    """With what one batch of 256 rows needs, 400 MB, out of reach; the result is that of a process that has it."""
    (tmp_path / "texts.txt").write_text((inputs / "texts.txt").read_text() * 6)
    command = f"pretrain --data {tmp_path}/texts.txt --config tiny --steps 3 --batch-size 256 --device cpu --out"
    found = {}
    for limited in ("yes", "no"):
        done = subprocess.run(
            [sys.executable, "-c", OUT_OF_MEMORY, *command.split(), str(tmp_path / limited)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "LIMITED": limited},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[limited] = load_file(tmp_path / limited / "model.safetensors")
        assert ("out of memory; from here on 128 rows at a time, same batch." in done.stderr) == (limited == "yes")
    for key, tensor in found["no"].items():
        assert (tensor - found["yes"][key]).abs().mean() / 2e-3 < 1e-4, key


def test_a_window_is_the_models_positions(run: Run) -> None:
    """What it was not trained on it cannot be asked: a text is measured and continued within the window."""
    done = assert_done(run(PRETRAIN, "--window 16"))
    assert GPT2.from_pretrained(done.folder).config.n_positions == 16
    assert read_json(done.folder / "report.json")["tokens_seen"] == 5 * 2 * 16


def test_a_text_of_which_nothing_is_held_out_is_trained_on_and_that_is_said(run: Run) -> None:
    done = run(PRETRAIN, "--held-out 1e-9")
    assert (done.code, "perplexity" in read_json(done.folder / "report.json")) == (0, False)
    assert "nothing fell to the 1e-09 % that is held out" in done.err


@pytest.mark.parametrize("command", [TUNE, PRETRAIN], ids=["tune", "pretrain"])
def test_a_run_that_is_out_of_time_says_how_to_go_on(command: str, run: Run) -> None:
    going_on = "It was stopped at step 1 of 5: the same command with --resume goes on."
    assert going_on in assert_done(run(command, "--time-limit 0.000001s")).out
    assert "--resume" not in assert_done(run(command, "--time-limit 1h --resume")).out


@pytest.mark.parametrize(
    ("options", "difference"),
    [("--dtype bfloat16", "activations was 'float32', is 'bfloat16'"), ("--data {inputs}/flipped", "dev was '")],
)
def test_a_full_run_is_not_resumed_with_other_numbers_or_data(
    options: str, difference: str, run: Run, inputs: Path
) -> None:
    header, *rows = (inputs / "reviews.tsv").read_text().splitlines(keepends=True)
    turned = [row.replace("good", "?").replace("bad", "good").replace("?", "bad") for row in rows]
    for name, dev in (("split", rows[:8]), ("flipped", turned[:8])):
        (inputs / name).mkdir(exist_ok=True)
        for split, some in (("train", rows[8:]), ("dev", dev), ("test", rows[:8])):
            (inputs / name / f"{split}.tsv").write_text(header + "".join(some))
    start = f"tune full {MODEL} --steps 5 --batch-size 2 {COLUMNS} --out {{out}} --data"
    assert_done(run(f"{start} {{inputs}}/split"))
    assert_refused(run(f"{start} {{inputs}}/split {options} --resume"), difference)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "not enough memory (CUDA out of"),
        (InvalidCxxCompiler(), "--compile does not work here (No working C++ compiler found in"),
    ],
)
def test_what_pytorch_does_not_manage_is_a_sentence(
    error: RuntimeError, sentence: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(GPT2, "__init__", fails)
    assert_refused(run(PRETRAIN), sentence)


def test_patience_stops_a_run(run: Run) -> None:
    tuned = assert_done(run(TUNE, "--steps 2000 --lr 1e-9 --patience 1"))
    assert "best at step 100 of 200," in tuned.out


def test_the_same_seed_tunes_the_same_adapter(run: Run) -> None:
    first, again, other = (
        assert_done(run(TUNE, f"--overwrite --seed {seed}")).files()[WEIGHTS_FILE] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_template_is_measured_beside_the_majority(run: Run) -> None:
    measured = assert_done(run(EVAL_NOTHING, "--template '{{text}} It was' --split train")).out
    assert "reviews, train:" in measured
    assert "majority class" in measured
    assert "hard_prompt" in measured


def test_inspect_shows_the_tokens_next_to_a_soft_prompt(run: Run, inputs: Path) -> None:
    shown = assert_done(run(INSPECT)).out
    assert "(PROMPT_TUNING), 128 numbers" in shown
    assert "nearest tokens" in shown
    assert shown.count(" 1.00 ") >= 4  # an untrained prompt is made of tokens


def test_inspect_shows_and_draws_where_attention_goes(run: Run, inputs: Path) -> None:
    shown = assert_done(run(INSPECT)).out
    assert "before a text that reads: The film tells the story" in shown
    drawn = assert_done(run(INSPECT, "--text 'The end of all.' --plot {out}/attention.png"))
    assert "before a text that reads: The end of all." in drawn.out
    assert drawn.files()["attention.png"].startswith(b"\x89PNG")


def test_inspect_tells_how_an_adapter_was_tuned(run: Run) -> None:
    tuned = assert_done(run(TUNE, "--init labels"))
    shown = assert_done(run("inspect {out} --model {inputs}/model")).out
    assert "method: name=soft_prompt, length=4, init=labels, labels=[" in shown
    assert "best step: 5\nsteps: 5\n" in shown
    (tuned.folder / "report.json").write_text("[")
    assert "SoftPrompt(length=4, " in assert_done(run("inspect {out} --model {inputs}/model")).out


def test_inspect_counts_the_parameters_of_a_checkpoint(run: Run, inputs: Path) -> None:
    shown = assert_done(run("inspect {inputs}/model")).out
    assert "2 layers, 2 heads, 32 wide, 64 positions" in shown
    counts = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) [│┃|]\n", shown)]
    weights = load_file(inputs / "model" / "model.safetensors")
    assert counts[-1] == sum(counts[:-1]) == sum(tensor.numel() for tensor in weights.values())
    alone = assert_done(run("inspect {inputs}/model/model.safetensors --all")).out
    assert shown.splitlines()[0] == alone.splitlines()[0]
    assert all(name.removeprefix("transformer.") in alone for name in weights)


def test_inspecting_the_file_of_an_adapter_is_inspecting_its_folder(run: Run) -> None:
    shown = assert_done(run(INSPECT.replace("inputs}/adapter", "inputs}/adapter/adapter_model.safetensors"))).out
    assert "(PROMPT_TUNING), 128 numbers" in shown


def test_a_text_of_ones_own_can_be_measured(run: Run, inputs: Path) -> None:
    text = f"eval {MODEL} --task text --data {{inputs}}/texts.txt"
    shown = assert_done(run(text)).out
    assert "perplexity per token" in shown
    assert "every token is scored once" in " ".join(shown.split())
    assert assert_done(run(text, "--adapter {inputs}/adapter")).out != shown
    assert assert_done(run(text, "--limit 20 --stride 4")).out != shown


def test_a_pretrained_model_can_be_used(run: Run) -> None:
    pretrained = assert_done(run(PRETRAIN))
    weights = {"config.json", "model.safetensors"}
    kept = "training_state-000000000.safetensors"
    assert set(pretrained.files()) == {*weights, STATE_FILE, kept, METRICS_FILE, PICTURE_FILE, "report.json"}
    assert (pretrained.folder / TOKENS_FOLDER / "train-00000.bin").exists()
    model = GPT2.from_pretrained(pretrained.folder)
    assert f"{model.num_parameters():,} parameters;" in pretrained.out
    assert assert_done(run(GENERATE, "--model {out}")).out.startswith("The end")
    assert_done(run("inspect {out}"))


def test_prepared_tokens_are_those_of_the_corpus(run: Run, inputs: Path) -> None:
    prepared = assert_done(run(PREPARE))
    made = TokenFiles.open(prepared.folder)
    expected = build_corpus([inputs / "texts.txt", inputs / "one.txt"], Tokenizer.for_vocab_size(512), 20.0)
    assert made.train[:].tolist() == expected.train.tolist()
    assert list(made.held_out) == list(expected.held_out)
    held_out = sum(map(len, expected.held_out.values()))
    assert re.search(r"^[\d,]+ tokens in [\d.]+ s: [\d,]+ a second\.$", prepared.out, re.MULTILINE)
    assert f"{len(expected.train):,} tokens to train on and {held_out:,} held out are in" in prepared.out


def test_a_finished_preparation_is_used_again_and_another_is_not_written_over_unasked(run: Run) -> None:
    before = assert_done(run(PREPARE)).files()
    again = assert_done(run(PREPARE))
    assert "Nothing has changed since these tokens were made" in again.out
    outcome = run(PREPARE, "--held-out 2")
    assert_refused(outcome, "made otherwise (held_out_percent was 20.0, is 2.0); use another --out, or start anew with")
    assert again.files() == outcome.files() == before
    assert assert_done(run(PREPARE, "--held-out 2 --overwrite")).files() != before


def test_an_interrupted_preparation_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("minipeft.token_files.prepare.encode", interrupted)
        outcome = run(PREPARE)
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "minipeft: stopped; what is done is kept, and the same command goes on from there.\n"
    assert_done(run(PREPARE))


def test_texts_are_prepared_for_nano_unless_told_otherwise(run: Run) -> None:
    for options, size in (("", 8257), ("--config nano", 8257), ("--config gpt2 --overwrite", 50257)):
        prepared = assert_done(run("prepare {inputs}/one.txt --out {out}", options))
        assert TokenFiles.open(prepared.folder).vocab_size == size


def test_pretraining_from_prepared_tokens_is_pretraining_from_their_text(run: Run, tmp_path: Path) -> None:
    words = "--vocab-size 512 --out"
    assert_done(run(f"prepare {{inputs}}/texts.txt {words} {tmp_path}/tokens"))
    from_text = assert_done(run(PRETRAIN)).files()
    from_tokens = assert_done(run(PRETRAIN.replace("{inputs}/texts.txt", f"{tmp_path}/tokens"), "--overwrite")).files()
    assert from_tokens["model.safetensors"] == from_text["model.safetensors"]
    assert_done(run(f"prepare {{inputs}}/texts.txt --vocab-size 600 --out {tmp_path}/others"))
    refused = run(PRETRAIN.replace("{inputs}/texts.txt", f"{tmp_path}/others"), "--overwrite")
    assert_refused(refused, "holds tokens of a vocabulary of 600, but this model's has 512; prepare the text with")


def test_pretraining_again_on_another_text_is_refused_unless_it_may_overwrite(run: Run, inputs: Path) -> None:
    done = assert_done(run(PRETRAIN))
    (done.folder / STATE_FILE).unlink()
    other = PRETRAIN.replace("texts.txt", "short.txt --data {inputs}/texts.txt")
    assert_refused(run(other), "holds tokens that were made otherwise (there were 1 texts, there are 2")
    assert_done(run(other, "--overwrite"))


def test_pretraining_reads_every_text_file_of_a_folder(run: Run, inputs: Path) -> None:
    pretrained = assert_done(run(PRETRAIN.replace("/texts.txt", "")))
    one = assert_done(run(PRETRAIN, "--overwrite --data {inputs}/short.txt"))
    tokens = [json.loads(outcome.files()["report.json"])["corpus_tokens"] for outcome in (pretrained, one)]
    assert tokens[0] == tokens[1] > 1000


@pytest.mark.parametrize("command", [TUNE, PRETRAIN], ids=["tune", "pretrain"])
def test_a_report_is_strict_json(command: str, run: Run) -> None:
    assert_strict_json(assert_done(run(command)))
    if command == PRETRAIN:  # nothing of this text is held out, so there is no perplexity
        assert_strict_json(assert_done(run(PRETRAIN.replace("texts.txt", "one.txt"), "--overwrite --held-out 0")))


# --- help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_an_example(name: str, run: Run) -> None:
    shown = assert_done(run(name, "--help")).out
    assert re.search(rf"Examples?:\s+minipeft {name} ", shown)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_in_the_help_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where recipes/ is
    examples = re.findall(r"`minipeft (.+?)`", COMMANDS[name].help)
    assert examples
    for example in examples:
        command, *options = with_recipe(shlex.split(example), pretrain, "pretrain")
        assert command == name
        with COMMANDS[name].make_context("minipeft", options):
            pass


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    shown = run("").out
    assert all(name in shown for name in COMMANDS)


# --- as a person runs it


def in_a_process(*options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "minipeft.cli", *map(str, options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_process_writes_what_python_does(inputs: Path, run: Run) -> None:
    done = in_a_process("generate", "The end", "--model", inputs / "model", "--device", "cpu", "--max-new-tokens", 5)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run(GENERATE).out


def test_a_process_ends_a_mistake_with_code_2_and_one_sentence(inputs: Path) -> None:
    done = in_a_process("generate", "The end", "--model", inputs / "junk", "--device", "cpu")
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr, inputs), "is no whole safetensors file")
