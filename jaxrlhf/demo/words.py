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
        details={
            "good": ("spotless", "bright", "spacious", "quiet"),
            "bad": ("dirty", "gloomy", "cramped", "noisy"),
        },
        reasons={
            "good": (("maids", "scrubbed"), ("lamps", "glowed"), ("windows", "gleamed"), ("sunlight", "entered")),
            "bad": (("pipes", "leaked"), ("mould", "spread"), ("doors", "rattled"), ("bulbs", "flickered")),
        },
    ),
    Family(
        aspects=("soup", "bread", "breakfast", "coffee", "cake"),
        details={
            "good": ("tasty", "fresh", "fragrant", "hearty"),
            "bad": ("bland", "stale", "burnt", "greasy"),
        },
        reasons={
            "good": (("cooks", "cared"), ("spices", "mingled"), ("butter", "melted"), ("recipes", "worked")),
            "bad": (("cooks", "hurried"), ("milk", "soured"), ("pans", "smoked"), ("oil", "dripped")),
        },
    ),
    Family(
        aspects=("staff", "waiter", "guide", "driver", "clerk"),
        details={
            "good": ("friendly", "helpful", "patient", "attentive"),
            "bad": ("rude", "careless", "impatient", "sullen"),
        },
        reasons={
            "good": (("everyone", "smiled"), ("jokes", "landed"), ("answers", "came"), ("manners", "mattered")),
            "bad": (("nobody", "listened"), ("phones", "distracted"), ("tempers", "flared"), ("requests", "failed")),
        },
    ),
    Family(
        aspects=("bed", "chair", "table", "boat", "bike"),
        details={
            "good": ("comfortable", "sturdy", "modern", "polished"),
            "bad": ("wobbly", "broken", "outdated", "rusty"),
        },
        reasons={
            "good": (("bolts", "held"), ("wood", "shone"), ("cushions", "helped"), ("parts", "matched")),
            "bad": (("screws", "loosened"), ("paint", "peeled"), ("springs", "squeaked"), ("nails", "bent")),
        },
    ),
    Family(
        aspects=("garden", "beach", "pool", "path", "view"),
        details={
            "good": ("peaceful", "scenic", "inviting", "sunny"),
            "bad": ("crowded", "muddy", "littered", "polluted"),
        },
        reasons={
            "good": (("birds", "sang"), ("flowers", "bloomed"), ("waves", "sparkled"), ("trees", "swayed")),
            "bad": (("trucks", "roared"), ("weeds", "grew"), ("rubbish", "floated"), ("crowds", "shouted")),
        },
    ),
)

VAGUE: dict[Mood, tuple[str, ...]] = {
    "good": ("nice", "good", "great", "fine"),
    "bad": ("bad", "poor", "awful", "terrible"),
}
"""Adjectives that fit every aspect and say little."""

VERBS: dict[Mood, tuple[str, ...]] = {
    "good": ("liked", "loved", "enjoyed"),
    "bad": ("disliked", "hated", "regretted"),
}
"""What a prompt says of the guest, and so the mood that a review should have."""

NAMES = ("mia", "tom", "ada", "leo", "eva", "sam", "ida", "max", "zoe", "ben")

PLACES = {
    "hotel": ("room", "lobby", "bathroom", "breakfast", "staff", "bed", "pool", "view"),
    "cafe": ("terrace", "coffee", "cake", "bread", "waiter", "chair", "table", "garden"),
    "restaurant": ("hall", "terrace", "soup", "bread", "waiter", "table", "staff", "view"),
    "museum": ("hall", "lobby", "coffee", "guide", "clerk", "chair", "garden", "path"),
    "harbour": ("soup", "coffee", "driver", "guide", "boat", "bike", "beach", "view"),
    "campsite": ("bathroom", "breakfast", "bread", "clerk", "table", "bike", "path", "beach"),
    "spa": ("room", "bathroom", "cake", "staff", "bed", "chair", "pool", "garden"),
    "farm": ("hall", "soup", "breakfast", "driver", "guide", "boat", "bike", "path"),
}
"""Place -> the aspects that a prompt about it can ask for."""

CHATTER = (
    ("it", "rained", "outside", "."),
    ("we", "arrived", "late", "."),
    ("my", "phone", "rang", "."),
    ("i", "wore", "gloves", "."),
    ("dogs", "barked", "somewhere", "."),
    ("time", "passed", "slowly", "."),
)
"""Sentences that are beside the point in any review."""

CLOSINGS = (("thanks", "!"), ("cheers", "!"), ("regards", "."), ("farewell", "."))

FAMILY_OF = {aspect: family for family in FAMILIES for aspect in family.aspects}
MOOD_OF_VERB: dict[str, Mood] = {verb: mood for mood, verbs in VERBS.items() for verb in verbs}
VAGUE_MOOD: dict[str, Mood] = {word: mood for mood, words in VAGUE.items() for word in words}
