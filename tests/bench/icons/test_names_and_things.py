"""Names become keys, drawings become things, and no thing is in two splits."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.icons.drawings import Drawing
from bench.icons.names import clean_tags, name_key, natural_name
from bench.icons.sets import NPM_SETS
from bench.icons.things import Picture, make_things, split_things, unite_copies


def picture(name: str, content: str, code: str = "", style: str = "mdi") -> Picture:
    drawing = Drawing(NPM_SETS[4], style, name, (), Path("x.svg"), name, code)
    return Picture(drawing, f"pictures/{style}/{name}.png", content)


@pytest.mark.parametrize(
    ("identifier", "siblings", "expected"),
    [
        ("account-badge-outline", (), ("account badge", "outline")),
        ("outline", (), ("outline", "")),
        ("truck-variant-outline", (), ("truck", "outline")),
        ("brand-github", (), ("github logo", "")),
        ("trash-2", ("trash",), ("trash", "")),
        ("trash-2", (), ("trash 2", "")),
        ("dice-2", ("dice", "dice-4"), ("dice 2", "")),
    ],
)
def test_natural_names(identifier: str, siblings: tuple[str, ...], expected: tuple[str, str]) -> None:
    assert natural_name(identifier, siblings, ("outline",)) == expected


def test_keys_unite_spellings_and_keep_signs_apart() -> None:
    assert len({name_key(name) for name in ("light bulb", "Light-Bulb", "lightbulb")}) == 1
    assert name_key("piñata") == name_key("pinata")
    assert name_key("github logo") == name_key("github")
    assert name_key("x logo") != name_key("x")
    assert name_key("keycap #") != name_key("keycap *")
    assert name_key("!?")


def test_tags_say_what_the_name_does_not() -> None:
    assert clean_tags("red heart", ["heart", "love", "Love", 7, "red-heart", ""]) == ("love", "7")
    assert len(clean_tags("x", map(str, range(50)))) == 8


def test_name_code_point_and_picture_unite() -> None:
    by_name = [picture("bell", "1"), picture("Bell", "2", style="tabler-filled")]
    by_code = [picture("santa", "3", "1F385"), picture("Father Christmas", "4", "1F385", "apple")]
    by_picture = [picture("flag of Norway", "5", "A"), picture("flag of Bouvet Island", "5", "B", "apple")]
    chained = [picture("p", "6"), picture("q", "6", style="s"), picture("q", "7", style="t"), picture("r", "7")]
    things = make_things([*by_name, *by_code, *by_picture, *chained, picture("fox", "9")])
    assert [thing.id for thing in things] == ["bell", "santa", "flag-of-norway", "p", "fox"]
    assert [len(thing.pictures) for thing in things] == [2, 2, 2, 4, 1]


def test_equal_pictures_of_one_style_are_one() -> None:
    copies = unite_copies([picture("old", "1"), picture("new", "1"), picture("new", "1", style="s")])
    assert [copy.path for copy in copies] == ["pictures/mdi/old.png", "pictures/mdi/old.png", "pictures/s/new.png"]
    (thing,) = make_things(copies)
    assert thing.paths == ("pictures/mdi/old.png", "pictures/s/new.png")


def test_ids_differ_where_names_are_spelled_alike() -> None:
    things = make_things([picture("a+b", "1"), picture("a b", "2"), picture("ab", "3"), picture("a$b", "4")])
    assert len({thing.id for thing in things}) == len(things)


def test_the_split_depends_on_seed_and_id_alone() -> None:
    things = make_things([picture(f"thing {i}", str(i)) for i in range(60)])
    split = split_things(things, test=10, validation=5, seed=0)
    assert {name: len(part) for name, part in split.items()} == {"train": 45, "validation": 5, "test": 10}
    ids = [thing.id for part in split.values() for thing in part]
    assert sorted(ids) == sorted(thing.id for thing in things)
    shuffled = random.Random(1).sample(things, len(things))
    assert split_things(shuffled, 10, 5, 0) == split
    assert split_things(things, 10, 5, 1)["test"] != split["test"]
