"""The words of the toy language, and which of them go together. `language.py` explains the language."""

from __future__ import annotations

from typing import Literal, NamedTuple

Mood = Literal["good", "bad"]
Reason = tuple[str, str]


class Family(NamedTuple):
    """Aspects that can be described by the same words.

    Attributes:
        aspects: the nouns that a review can speak about.
        details: mood -> adjectives that say something concrete about such an aspect.
        reasons: mood -> (noun, verb) pairs that can follow "because".
    """

    aspects: tuple[str, ...]
    details: dict[Mood, tuple[str, ...]]
    reasons: dict[Mood, tuple[Reason, ...]]


FAMILIES = (
    Family(
        aspects=("room", "lobby", "hall", "bathroom", "terrace"),
        details={"good": ("spotless", "bright", "spacious"), "bad": ("dirty", "gloomy", "cramped")},
        reasons={
            "good": (("maids", "scrubbed"), ("lamps", "glowed"), ("sunlight", "entered")),
            "bad": (("pipes", "leaked"), ("mould", "spread"), ("bulbs", "flickered")),
        },
    ),
    Family(
        aspects=("soup", "bread", "breakfast", "coffee", "cake"),
        details={"good": ("tasty", "fresh", "fragrant"), "bad": ("bland", "stale", "burnt")},
        reasons={
            "good": (("spices", "mingled"), ("butter", "melted"), ("recipes", "worked")),
            "bad": (("milk", "soured"), ("pans", "smoked"), ("oil", "dripped")),
        },
    ),
    Family(
        aspects=("staff", "waiter", "guide", "driver", "clerk"),
        details={"good": ("friendly", "helpful", "patient"), "bad": ("rude", "careless", "sullen")},
        reasons={
            "good": (("everyone", "smiled"), ("jokes", "landed"), ("answers", "came")),
            "bad": (("nobody", "listened"), ("tempers", "flared"), ("requests", "failed")),
        },
    ),
)

VAGUE: dict[Mood, tuple[str, ...]] = {
    "good": ("nice", "great", "fine"),
    "bad": ("bad", "poor", "awful"),
}
"""Adjectives that fit every aspect and say little."""

VERBS: dict[Mood, tuple[str, ...]] = {
    "good": ("liked", "loved", "enjoyed"),
    "bad": ("disliked", "hated", "regretted"),
}
"""What a prompt says of the guest, and so the mood that a review should have."""

NAMES = ("mia", "tom", "ada", "leo", "eva", "sam", "ida", "max", "zoe", "ben")

PLACES = {
    "hotel": ("room", "lobby", "bathroom", "breakfast", "coffee", "staff", "clerk", "driver"),
    "cafe": ("hall", "terrace", "coffee", "cake", "bread", "breakfast", "waiter", "staff"),
    "restaurant": ("hall", "terrace", "bathroom", "soup", "bread", "cake", "waiter", "staff"),
    "museum": ("hall", "lobby", "terrace", "coffee", "cake", "guide", "clerk", "staff"),
    "harbour": ("terrace", "soup", "coffee", "bread", "driver", "guide", "waiter", "clerk"),
    "campsite": ("bathroom", "hall", "breakfast", "bread", "soup", "clerk", "guide", "driver"),
    "spa": ("room", "bathroom", "lobby", "cake", "breakfast", "staff", "waiter", "clerk"),
    "farm": ("room", "hall", "soup", "breakfast", "bread", "driver", "guide", "staff"),
}
"""Place -> the aspects that a prompt about it can ask for."""

CHATTER = (
    ("it", "rained", "outside", "."),
    ("we", "arrived", "late", "."),
    ("my", "phone", "rang", "."),
    ("dogs", "barked", "somewhere", "."),
)
"""Sentences that are beside the point in any review."""

CLOSINGS = (("thanks", "!"), ("cheers", "!"), ("regards", "."), ("farewell", "."))

FAMILY_OF = {aspect: family for family in FAMILIES for aspect in family.aspects}
MOOD_OF_VERB: dict[str, Mood] = {verb: mood for mood, verbs in VERBS.items() for verb in verbs}
VAGUE_MOOD: dict[str, Mood] = {word: mood for mood, words in VAGUE.items() for word in words}
