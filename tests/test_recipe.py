"""Recipes: a command's options in a file, with a person's own before them, and refused with one sentence."""

from pathlib import Path

import pytest

from minipeft.commands.pretrain import pretrain
from minipeft.commands.recipe import RecipeError, read_recipe, with_recipe
from minipeft.compare import read_study

FILES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
STUDIES = [path for path in FILES if "[[parts]]" in path.read_text(encoding="utf-8")]
RECIPES = [path for path in FILES if path not in STUDIES]


def followed(text: str, words: str, folder: Path) -> list[str]:
    (folder / "a.toml").write_text(text)
    return with_recipe(words.replace("RECIPE", str(folder / "a.toml")).split(), pretrain, "pretrain")


def test_a_recipe_is_its_options_typed_out(tmp_path: Path) -> None:
    text = 'data = ["a.txt", "b c.txt"]\nsteps = 7\nlr = 1e-3\ncompile = true\nresume = false\ndtype = "bfloat16"'
    found = followed(text, "pretrain --recipe RECIPE --out here", tmp_path)
    typed = [
        "--data",
        "a.txt",
        "--data",
        "b c.txt",
        "--steps",
        "7",
        "--lr",
        "0.001",
        "--compile",
        "--dtype",
        "bfloat16",
    ]
    assert found == ["pretrain", *typed, "--out", "here"]


@pytest.mark.parametrize("own", ["--steps 9 --data mine.txt", "--steps=9 --data=mine.txt"])
def test_a_persons_own_options_count_more(own: str, tmp_path: Path) -> None:
    found = followed('data = "a.txt"\nsteps = 7\nseed = 1', f"pretrain {own} --recipe=RECIPE", tmp_path)
    assert found == ["pretrain", "--seed", "1", *own.split()]


def test_a_switch_of_a_recipe_is_turned_off(tmp_path: Path) -> None:
    found = followed("compile = true\nseed = 1", "pretrain --no-compile --recipe RECIPE --steps 2", tmp_path)
    assert found == ["pretrain", "--seed", "1", "--steps", "2"]


def test_without_a_recipe_words_stay_as_they_are() -> None:
    for words in ([], ["pretrain", "--out", "a"], ["generate", "--recipe"], ["--help"]):
        assert with_recipe(words, pretrain, "pretrain") == words


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stepz = 7", "there is no option 'stepz'; there are batch_size,"),
        ("return = 7", "there is no option 'return'"),
        ('recipe = "b.toml"', "there is no option 'recipe'"),
        ('steps = "many"', "steps must be a whole number, got 'many'"),
        ("steps = 7.5", "steps must be a whole number, got 7.5"),
        ("steps = true", "steps must be a whole number, got True"),
        ('lr = "high"', "lr must be a number, got 'high'"),
        ("compile = 1", "compile must be true or false, got 1"),
        ("config = 5", "config must be text in quotation marks, got 5"),
        ("data = [1]", "data must be a list of texts, got [1]"),
        ('dtype = "int8"', "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ("steps = ", "is no TOML file: "),
        ("", "is empty."),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.toml") as error:
        followed(text, "pretrain --recipe RECIPE", tmp_path)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_not_there_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file nowhere.toml"):
        with_recipe(["pretrain", "--recipe", "nowhere.toml"], pretrain, "pretrain")
    with pytest.raises(RecipeError, match="--recipe needs a file"):
        with_recipe(["pretrain", "--recipe"], pretrain, "pretrain")


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_recipes_that_are_there_name_options(path: Path) -> None:
    assert read_recipe(path, pretrain)["config"] in ("pico", "nano", "micro", "gpt2")


def test_the_study_that_is_there_can_be_read() -> None:
    (study,) = map(read_study, STUDIES)
    main = study.part("main")
    assert (len(main.tasks), len(main.models), len(main.contenders), len(main.seeds)) == (3, 2, 18, 3)
    assert {len(study.contenders[name].trials) for name in main.contenders} == {0, 4}
