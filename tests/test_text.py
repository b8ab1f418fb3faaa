"""Long text becomes sentences, and what is still too long becomes less, and nothing is lost."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bark_fast import InputError
from bark_fast.text import estimate_duration_s, normalise, split_text


def split(
    text: str, *, max_tokens: int = 10**9, max_duration_s: float = 1e9, language: str = "en"
) -> list[str]:
    """A letter is a token."""
    return split_text(
        text,
        max_tokens=max_tokens,
        max_duration_s=max_duration_s,
        count_tokens=len,
        language=language,
    )


def letters(*texts: str) -> str:
    return "".join("".join(texts).split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello", "Hello"),
        ("  Hello,\n\tmy   dog \u3000is\u00a0cute\r\n", "Hello, my dog is cute"),
        ("你好\u2028世界", "你好 世界"),
        ("a\u200bb", "a\u200bb"),
        ("🙂", "🙂"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected


@pytest.mark.parametrize("text", [None, 3, b"a", ["a"], "", " \n\t", "\ud800", "a\udfffb"])
def test_normalise_refuses(text: object) -> None:
    with pytest.raises(InputError, match=r"^text must "):
        normalise(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("en", ["Dr. Smith paid 3.50 dollars at 5 p.m. on Monday.", "He left."]),
        ("en", ["The U.S. army, e.g. its cooks, came.", "Then it went."]),
        ("en", ["Mr. Fox met Mrs. Hen vs. Prof. Owl.", "Who won?", "Nobody!"]),
        ("en", ['"Is it?" he asked.', '"Yes!" she said.']),
        ("en", ["“Stop!” he said.", "Why?"]),
        ("en", ["It costs $1,234.56 and 7.5% more.", "Is that 10:30 or 11?"]),
        ("en", ["It was, well... odd.", "So be it."]),
        ("de", ["Das ist z.B. ein Satz.", "Hr. Dr. Müller kam am 3. Mai.", "Er ging."]),
        ("hi", ["नमस्ते।", "आप कैसे हैं?", "मैं ठीक हूँ।"]),
        ("ar", ["مرحبا.", "كيف حالك؟", "أنا بخير."]),
        # Marks of other scripts end sentences whatever the language says.
        ("en", ["नमस्ते।", "आप कैसे हैं?"]),
        ("xx", ["Hello there.", "And again."]),
    ],
)
def test_sentences(language: str, sentences: list[str]) -> None:
    assert split(" ".join(sentences), language=language) == sentences


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("zh", ["你好。", "今天天气很好！", "你去哪里？", "我不知道。"]),
        ("en", ["你好。", "今天天气很好！"]),
        ("ja", ["こんにちは。", "元気ですか？", "はい、元気です。"]),
    ],
)
def test_sentences_without_spaces(language: str, sentences: list[str]) -> None:
    assert split("".join(sentences), language=language) == sentences


def test_languages_differ() -> None:
    text = "Hr. Dr. Müller kam am 3. Mai. Er ging."
    assert split(text, language="en") != split(text, language="de")


def test_paragraphs_and_space() -> None:
    assert split("Two  lines.\n\n\n Another  one ") == ["Two lines.", "Another one"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\u2029", "\x85", "\n \n\t"])
def test_a_line_ends_a_sentence(end: str) -> None:
    lines = ["A heading", "The woods are lovely, dark", "And deep. But", "- 3 eggs", "你好"]
    sentences = ["A heading", "The woods are lovely, dark", "And deep.", "But", "- 3 eggs", "你好"]
    assert split(end.join(lines)) == sentences
    assert split(f"{end}{end.join(lines)}{end}") == sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MAN: Hello there. How are you?", ["MAN: Hello there.", "MAN: How are you?"]),
        (
            "WOMAN: A latte. Please!\nMAN: Wow. That is much. WOMAN: No. It is not.",
            [
                "WOMAN: A latte.",
                "WOMAN: Please!",
                "MAN: Wow.",
                "MAN: That is much.",
                "WOMAN: No.",
                "WOMAN: It is not.",
            ],
        ),
        ("[MAN] One. Two.\n\n[WOMAN] Three.", ["[MAN] One.", "[MAN] Two.", "[WOMAN] Three."]),
        ("Before. MAN: One.\nTwo", ["Before.", "MAN: One.", "MAN: Two"]),
        ("MAN:\nOne.\nTwo.", ["MAN: One.", "MAN: Two."]),
        (
            "Hi. WOMAN: One, said MAN: two. Three.",
            ["Hi.", "WOMAN: One, said MAN: two.", "MAN: Three."],
        ),
        (
            "A MANTRA: one. Two. Man: three. Four.",
            ["A MANTRA: one.", "Two.", "Man: three.", "Four."],
        ),
        ("MAN:", ["MAN:"]),
        ("One. WOMAN:", ["One.", "WOMAN:"]),
        ("WOMAN： One. Two.", ["WOMAN： One.", "WOMAN： Two."]),
    ],
)
def test_speakers(text: str, expected: list[str]) -> None:
    assert split(text) == expected


def test_a_speakers_sentence_that_is_cut() -> None:
    text = "MAN: one two three, four five six. Seven"
    assert split(text, max_tokens=20) == [
        "MAN: one two three,",
        "MAN: four five six.",
        "MAN: Seven",
    ]
    assert split(text, max_tokens=12) == [
        "MAN: one two",
        "MAN: three,",
        "MAN: four",
        "MAN: five",
        "MAN: six.",
        "MAN: Seven",
    ]
    assert all(len(piece) <= 12 for piece in split(text, max_tokens=12))
    # No room for a tag and a text: the text comes first.
    assert letters(*split(text, max_tokens=7)) == letters(text)
    assert all(len(piece) <= 7 for piece in split(text, max_tokens=7))


def test_what_is_spelled_is_split_as_it_is_said() -> None:
    def spell(text: str) -> str:
        return text.replace("Dr.", "doctor").replace("12", "twelve").replace("km", "kilometres")

    pieces = split_text(
        "Dr. Fox ran 12 km. Then\n12",
        max_tokens=20,
        max_duration_s=1e9,
        count_tokens=len,
        spell=spell,
    )
    assert pieces == ["doctor Fox ran", "twelve kilometres.", "Then", "twelve"]


def test_marks_alone_are_not_said() -> None:
    assert split("Well. ... And") == ["Well.", "And"]
    assert split("...") == ["..."]  # better than nothing at all


@pytest.mark.parametrize(
    ("text", "max_tokens", "expected"),
    [
        # Clauses as long as they fit, joined.
        ("One, two, three, four, five", 16, ["One, two, three,", "four, five"]),
        ("Alpha; beta: gamma", 12, ["Alpha; beta:", "gamma"]),
        ("你好，世界、再见；明天", 6, ["你好，世界、", "再见；明天"]),
        ("مرحبا، كيف حالك", 10, ["مرحبا،", "كيف حالك"]),
        # A number and a time stay whole.
        ("It is 1,000 at 10:30", 11, ["It is 1,000", "at 10:30"]),
        # A clause that is too long: words.
        ("Yes, one two three four", 9, ["Yes,", "one two", "three", "four"]),
        # A word that is too long: anywhere.
        ("No, abcdefghij", 4, ["No,", "abcd", "efgh", "ij"]),
        ("今天天气很好", 4, ["今天天气", "很好"]),
    ],
)
def test_too_many_tokens(text: str, max_tokens: int, expected: list[str]) -> None:
    assert split(text, max_tokens=max_tokens) == expected


def test_too_long_a_time() -> None:
    text = "one two three four five six seven eight nine ten, " * 8 + "done."
    pieces = split(text, max_duration_s=5)
    assert len(pieces) > 2
    assert all(estimate_duration_s(piece) <= 5 for piece in pieces)
    assert all(piece.endswith((",", ".")) for piece in pieces)  # no clause was cut
    assert letters(*pieces) == letters(text)


def test_estimate() -> None:
    """A news reader says some 15 letters or 5 ideographs a second."""
    assert 5 < estimate_duration_s("a" * 100) < 10
    assert 15 < estimate_duration_s("今" * 100) < 30
    assert 15 < estimate_duration_s("한" * 100) < 30


CLUSTERS = [
    "e\u0301",  # combining accent
    "क्षि",  # conjunct with a vowel sign
    "กำ",  # SARA AM is part of the consonant's cluster
    "👩\u200d👩\u200d👧",  # joined by ZWJ
    "👍🏽",  # skin tone
    "❤\ufe0f",  # variation selector
    "1\ufe0f\u20e3",  # keycap
    "🇩🇪",  # two regional indicators
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # tags
    "\u1112\u1161\u11ab",  # conjoining jamo
]


@pytest.mark.parametrize("cluster", CLUSTERS, ids=ascii)
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 8, 13])
def test_no_cluster_is_cut(cluster: str, max_tokens: int) -> None:
    text = cluster * 7
    pieces = split(text, max_tokens=max_tokens)
    assert "".join(pieces) == text
    assert all(set(piece.split(cluster)) == {""} for piece in pieces)
    assert len(pieces) > 1 or max_tokens >= len(text)


# Random text: letters of many scripts, marks, sentence ends, spaces.
_TEXT = st.text(
    st.one_of(
        st.sampled_from("abcdeABC .,;:!?…\n\"'()“”，。、！？；：।؟،"),
        st.sampled_from("今天あカ한नमسaéß123\u0301\u094d\u093f\ufe0f\u200d"),
        st.characters(exclude_categories=["Cs"]),
    ),
    min_size=1,
    max_size=120,
).filter(str.strip)


def _sayable(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c)[0] in "LNS")


@given(_TEXT, st.integers(1, 40), st.floats(0.3, 5))
def test_nothing_is_lost(text: str, max_tokens: int, max_duration_s: float) -> None:
    pieces = split(text, max_tokens=max_tokens, max_duration_s=max_duration_s)
    assert pieces
    assert _sayable("".join(pieces)) == _sayable(text)
    clean = normalise(text)
    at = 0
    for piece in pieces:
        assert piece == normalise(piece)
        # What stands between the pieces was marks alone.
        at = clean.index(piece, at) + len(piece)


@given(_TEXT, st.integers(1, 40), st.floats(0.3, 5))
def test_every_piece_fits(text: str, max_tokens: int, max_duration_s: float) -> None:
    for piece in split(text, max_tokens=max_tokens, max_duration_s=max_duration_s):
        fits = len(piece) <= max_tokens and estimate_duration_s(piece) <= max_duration_s
        # One character with its marks cannot be split, and may stand with spaces no more.
        assert fits or len(split("a" + piece, max_tokens=1)) <= 2


@given(st.text("abcABC ,;'-()今カ한न").filter(lambda text: any(map(str.isalpha, text))))
def test_what_fits_is_not_split(text: str) -> None:
    assert split(text) == [normalise(text)]


@given(_TEXT, st.integers(1, 6))
def test_marks_stay_with_their_letters(text: str, max_tokens: int) -> None:
    clean = normalise(text)
    pieces = split(clean, max_tokens=max_tokens)
    at = 0
    for piece in pieces:
        at = clean.index(piece, at)
        if at and unicodedata.category(piece[0])[0] == "M":
            # Only a mark that had a space for its letter may stand alone.
            assert clean[at - 1].isspace()
        at += len(piece)
