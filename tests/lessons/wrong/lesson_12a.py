"""Wrong readings of a table of results."""

from tests.lessons.wrong import fails_with


def _split(table):
    methods = {}
    for row in table:
        methods.setdefault(row["method"], {"sweep": [], "final": []})[row["stage"]].append(row)
    return methods


def _right(table):
    methods, found = _split(table), set()
    found |= {name for name in ("steps", "examples") if len({row[name] for row in table}) > 1}
    for name, stage in (("trials", "sweep"), ("seeds", "final")):
        if len({len(own[stage]) for own in methods.values()}) > 1:
            found.add(name)
    trials = [row for row in table if row["stage"] == "sweep"]
    if any(row["split"] == "test" for row in trials):
        found.add("chosen on test")
    if {row["seed"] for row in trials} & {row["seed"] for row in table if row["stage"] == "final"}:
        found.add("seed of the sweep")
    return found


@fails_with("“trials”: in a table where one of the two was given more trials")
def nothing_is_wrong(table):
    return _right(table) - {"trials"}


@fails_with("“trials”: in a table .*It is not the only fault of that table")
def runs_for_trials(table):
    counts = {method: len(own["sweep"]) + len(own["final"]) for method, own in _split(table).items()}
    return (_right(table) - {"trials"}) | ({"trials"} if len(set(counts.values())) > 1 else set())


@fails_with("“chosen on test” was found .* scored on test is as it should be")
def any_row_on_test(table):
    return _right(table) | ({"chosen on test"} if any(row["split"] == "test" for row in table) else set())


@fails_with("“seed of the sweep” was found .* Trials may share a seed")
def any_seed_twice(table):
    seeds = [row["seed"] for row in table if row["method"] == table[0]["method"]]
    return _right(table) | ({"seed of the sweep"} if len(set(seeds)) < len(seeds) else set())


@fails_with("“seeds”: in a table where one of the two was tested with more seeds")
def seeds_that_differ(table):
    return _right(table) - {"seeds"}


@fails_with("“seed of the sweep”: in a table where a run that was tested has a seed that a trial had")
def no_look_at_the_sweep(table):
    return _right(table) - {"seed of the sweep"}


@fails_with("must return a set of names, not a list")
def a_list(table):
    return sorted(_right(table))


@fails_with("'unequal' is none of the names")
def own_names(table):
    return _right(table) | {"unequal"}


@fails_with("“steps” was found in a table without that fault")
def knows_the_methods(table):
    return _right(table) | ({"steps"} if table[0]["method"] not in ("prefix", "soft_prompt") else set())


@fails_with("“seed of the sweep”: in a table where a run that was tested has a seed that a trial had")
def the_sweep_has_seed_zero(table):
    zero = any(row["seed"] == 0 for row in table if row["stage"] == "final")
    return (_right(table) - {"seed of the sweep"}) | ({"seed of the sweep"} if zero else set())


@fails_with("“seed of the sweep”: in a table")
def seeds_of_one_method(table):
    own = any(
        {row["seed"] for row in runs["sweep"]} & {row["seed"] for row in runs["final"]}
        for runs in _split(table).values()
    )
    return (_right(table) - {"seed of the sweep"}) | ({"seed of the sweep"} if own else set())


@fails_with("“chosen on test”: in a table where a trial was scored on test")
def all_on_test(table):
    trials = [row for row in table if row["stage"] == "sweep"]
    return (_right(table) - {"chosen on test"}) | (
        {"chosen on test"} if all(row["split"] == "test" for row in trials) else set()
    )


@fails_with("“steps”: in a table where the two were trained for unlike numbers")
def finals_alone(table):
    finals = [row for row in table if row["stage"] == "final"]
    return (_right(table) - {"steps"}) | ({"steps"} if len({row["steps"] for row in finals}) > 1 else set())


@fails_with("“seeds”: in a table where one of the two was tested with more seeds")
def only_the_second(table):
    first, second = (len(runs["final"]) for runs in _split(table).values())
    return (_right(table) - {"seeds"}) | ({"seeds"} if second > first else set())


@fails_with("several may be wrong at once")
def one_fault_at_a_time(table):
    return set(sorted(_right(table))[:1])


@fails_with("“seeds”: in a table")
def who_was_never_tested(table):
    from collections import Counter

    counts = Counter(row["method"] for row in table if row["stage"] == "final")
    return (_right(table) - {"seeds"}) | ({"seeds"} if len(set(counts.values())) > 1 else set())


@fails_with("“trials”: in a table where one of the two was given more trials")
def who_had_no_trial(table):
    from collections import Counter

    counts = Counter(row["method"] for row in table if row["stage"] == "sweep")
    return (_right(table) - {"trials"}) | ({"trials"} if len(set(counts.values())) > 1 else set())


@fails_with("“seed of the sweep”: in a table")
def seed_of_the_first_trial(table):
    first = next(row["seed"] for row in table if row["stage"] == "sweep")
    lucky = any(row["seed"] == first for row in table if row["stage"] == "final")
    return (_right(table) - {"seed of the sweep"}) | ({"seed of the sweep"} if lucky else set())
