"""Wrong sizes for a budget of numbers."""

from tests.lessons.wrong import fails_with


def _sizes(numbers, steps, rounded=None):
    def nearest(step):
        below = max(1, numbers // step)
        return below if numbers - below * step <= step / 2 else below + 1

    return {name: (rounded or nearest)(step) for name, step in steps.items()}


def _steps(L, D):
    return {"soft_prompt": D, "prefix": 2 * L * D, "lora": 4 * L * D}


@fails_with("a prefix keeps keys and values")
def keys_alone(numbers, L, D):
    return _sizes(numbers, {**_steps(L, D), "prefix": L * D})


@fails_with("a prefix stands in every block")
def one_block_of_prefix(numbers, L, D):
    return _sizes(numbers, {**_steps(L, D), "prefix": 2 * D})


@fails_with("a LoRA stands in every block")
def one_block_of_lora(numbers, L, D):
    return _sizes(numbers, {**_steps(L, D), "lora": 4 * D})


@fails_with("three times as wide")
def square_lora(numbers, L, D):
    return _sizes(numbers, {**_steps(L, D), "lora": 2 * L * D})


@fails_with("rounded down")
def rounded_down(numbers, L, D):
    return _sizes(numbers, _steps(L, D), lambda step: max(1, numbers // step))


@fails_with("rounded up")
def rounded_up(numbers, L, D):
    return _sizes(numbers, _steps(L, D), lambda step: -(-numbers // step))


@fails_with("rounded up: one less is nearer to the budget, or as near and smaller")
def rounded_to_even(numbers, L, D):
    return _sizes(numbers, _steps(L, D), lambda step: max(1, round(numbers / step)))


@fails_with("got 0; a method of size 0 is none")
def nothing_at_all(numbers, L, D):
    return _sizes(numbers, _steps(L, D), lambda step: round(numbers / step))


@fails_with("a size is a whole number, not")
def a_share(numbers, L, D):
    return _sizes(numbers, _steps(L, D), lambda step: max(1, numbers / step))


@fails_with("the names must be soft_prompt, prefix, lora")
def other_names(numbers, L, D):
    return {"prompt": 1, "prefix": 1, "lora": 1}


@fails_with("must return a dict, not a tuple")
def a_tuple(numbers, L, D):
    return tuple(_sizes(numbers, _steps(L, D)).values())
