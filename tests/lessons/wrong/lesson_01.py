"""Wrong ways to join a pair in a word."""

from itertools import pairwise

from tests.lessons.wrong import fails_with


@fails_with(r"only the first a \+ n")
def only_once(pieces, pair):
    for place in range(len(pieces) - 1):
        if (pieces[place], pieces[place + 1]) == pair:
            return [*pieces[:place], pair[0] + pair[1], *pieces[place + 2 :]]
    return list(pieces)


@fails_with("gives b an an a, but merge gave b an n an n a")
def used_twice(pieces, pair):
    joined = []
    for left, right in pairwise([*pieces, b""]):
        joined.append(left + right if (left, right) == pair else left)
    return joined


@fails_with("a piece that was joined is used up")
def from_the_right(pieces, pair):
    joined, place = [], len(pieces) - 1
    while place >= 0:
        if place and (pieces[place - 1], pieces[place]) == pair:
            joined.append(pair[0] + pair[1])
            place -= 2
        else:
            joined.append(pieces[place])
            place -= 1
    return joined[::-1]


@fails_with("changed the list that it was given")
def in_place(pieces, pair):
    place = 0
    while place < len(pieces) - 1:
        if (pieces[place], pieces[place + 1]) == pair:
            pieces[place : place + 2] = [pair[0] + pair[1]]
        place += 1
    return pieces


@fails_with("must return a list of pieces, but returned a bytes")
def joined_text(pieces, pair):
    return b"".join(pieces)


@fails_with("the order of a pair counts")
def either_order(pieces, pair):
    joined, place = [], 0
    while place < len(pieces):
        two = tuple(pieces[place : place + 2])
        if len(two) == 2 and (two == pair or (two == pair[::-1] and two == (b"a", b"n") and len(pieces) == 2)):
            joined.append(two[0] + two[1])
            place += 2
        else:
            joined.append(pieces[place])
            place += 1
    return joined


@fails_with("raised IndexError in its line \\d: list index out of range")
def beyond_the_end(pieces, pair):
    joined, place = [], 0
    while place < len(pieces):
        if (pieces[place], pieces[place + 1]) == pair:
            joined.append(pair[0] + pair[1])
            place += 2
        else:
            joined.append(pieces[place])
            place += 1
    return joined
