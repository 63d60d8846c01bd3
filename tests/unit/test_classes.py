"""Classes by number and by name, as `--classes` takes them."""

from __future__ import annotations

import pytest

from dydit_cli.errors import DyditError
from dydit_cli.sampling.classes import class_text, parse_classes

NAMES = ("tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "T-shirt/top", "crane", "a", "A", "Ankle boot")
LABELS = dict(enumerate(NAMES))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0,5-7", [0, 5, 6, 7]),
        ("7, 1 ,1", [7, 1, 1]),
        ("goldfish", [1]),
        ("Carassius auratus", [1]),
        ("goldfish, Carassius auratus", [1]),  # the whole label, commas and all
        ("goldfish,Carassius auratus,tench", [1, 0]),
        ("0,GoldFish,5-6,ankle boot", [0, 1, 5, 6, 7]),
        ("T-shirt/top", [3]),
        ("a,A", [5, 6]),
    ],
)
def test_numbers_ranges_and_names(text: str, numbers: list[int]) -> None:
    assert parse_classes(text, 8, LABELS) == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Goldfisch", "no class has the name 'Goldfisch'; did you mean 'goldfish'?"),
        ("goldfisch", "--classes goldfisch: no class has the name 'goldfisch'; did you mean 'goldfish'?"),
        ("ankleboot", "did you mean 'ankle boot'?"),
        ("0,zzz", "--classes 0,zzz: no class has the name 'zzz'; dydit inspect CKPT --json lists the names"),
        ("crane", "--classes crane: 'crane' is the name of classes 2 and 4; write the number"),
        ("CRANE", "'CRANE' is the name of classes 2 and 4; write the number"),
        ("8", "--classes 8: the model has classes 0 to 7"),
        ("0,3-8", "the model has classes 0 to 7"),
        ("0,100", "the model has classes 0 to 7"),
        ("5-3", "the model has classes 0 to 7"),
        ("0-999999999", "the model has classes 0 to 7"),
        ("9" * 5000, "no class has the name '9999"),
        ("1,,2", "no class has the name ''"),
        ("-3", "no class has the name '-3'"),
    ],
)
def test_what_is_no_class_is_one_line(text: str, message: str) -> None:
    with pytest.raises(DyditError) as error:
        parse_classes(text, 8, LABELS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_names_takes_numbers() -> None:
    assert parse_classes("0,5-7", 10) == [0, 5, 6, 7]
    for text in ("", "1,,2", "-3", "8-12", "5-3", "cat"):
        with pytest.raises(DyditError, match=r"is no class number; write for instance 0,1,5-7|has classes 0 to 9"):
            parse_classes(text, 10)


def test_numbers_as_the_option_takes_them() -> None:
    assert class_text([0, 1, 2, 7, 9, 10]) == "0-2,7,9-10"
    assert class_text(list(range(1000))) == "0-999"
    assert class_text([5]) == "5"
    assert class_text([3, 1, 3]) == "3,1,3"
