"""Words that may stand for each other, and words that must never be touched.

Two tables, because words mean different things in different data: in COCO photographs a "box" is not a square and
a "donut" is food, in the embedded shapes they are names of a shape. A colour, a place, a number, an ordinal, a
superlative or a negation is in no table: exchanging or dropping it names another object.

Source and licence: both tables were written for this project and are under its licence; nothing is taken from WordNet.
"""

PHOTO_GROUPS: tuple[tuple[str, ...], ...] = (
    ("man", "guy", "gentleman", "dude"),
    ("woman", "lady"),
    ("kid", "child"),
    ("person", "human"),
    ("people", "persons"),
    ("baby", "infant"),
    ("couch", "sofa"),
    ("tv", "television"),
    ("bike", "bicycle"),
    ("motorcycle", "motorbike"),
    ("car", "automobile"),
    ("plane", "airplane", "aeroplane"),
    ("phone", "cellphone"),
    ("fridge", "refrigerator"),
    ("glasses", "spectacles"),
    ("pants", "trousers"),
    ("hat", "cap"),
    ("shirt", "tshirt"),
    ("jacket", "coat"),
    ("purse", "handbag"),
    ("suitcase", "luggage"),
    ("cup", "mug"),
    ("picture", "photo", "image", "pic"),
    ("bunny", "rabbit"),
    ("puppy", "pup"),
    ("pony", "horse"),
    ("donut", "doughnut"),
    ("veggies", "vegetables"),
    ("big", "large"),
    ("small", "little", "tiny"),
    ("huge", "giant"),
    ("striped", "stripy"),
    ("spotted", "dotted"),
    ("wearing", "dressed"),
    ("holding", "carrying"),
    ("looking", "gazing", "staring"),
    ("near", "by"),
    ("beside", "alongside"),
    ("partially", "partly"),
    ("visible", "seen"),
    ("closest", "nearest"),
)
"""Groups for photographs (RefCOCO, RefCOCO+, RefCOCOg)."""

SHAPE_GROUPS: tuple[tuple[str, ...], ...] = (
    ("circle", "disc"),
    ("ring", "donut"),
    ("oval", "ellipse"),
    ("crescent", "moon"),
    ("square", "box"),
    ("diamond", "rhombus"),
    ("cross", "plus"),
    ("small", "little", "tiny"),
    ("large", "big", "huge"),
    ("plain", "solid"),
    ("striped", "stripy"),
    ("dotted", "spotted"),
    ("object", "shape", "thing"),
    ("picture", "scene"),
)
"""Groups for the embedded data of drawn shapes; every word is in its vocabulary."""

TABLES: dict[str, tuple[tuple[str, ...], ...]] = {"photo": PHOTO_GROUPS, "shapes": SHAPE_GROUPS}
"""Table name (a config value) -> groups."""

MIRRORED_WORDS: tuple[tuple[str, str], ...] = (
    ("left", "right"),
    ("leftmost", "rightmost"),
    ("leftest", "rightest"),
    ("leftish", "rightish"),
    ("leftward", "rightward"),
    ("leftwards", "rightwards"),
    ("lefthand", "righthand"),
    ("leftside", "rightside"),
    ("lefty", "righty"),
    ("lft", "rght"),
    ("lt", "rt"),
    ("lh", "rh"),
    ("lhs", "rhs"),
)
"""Words of which each names the place of the other in the mirrored image."""

PROTECTED_WORDS: frozenset[str] = frozenset(word for pair in MIRRORED_WORDS for word in pair) | frozenset(
    """
    top bottom upper lower uppermost lowermost topmost up down above below over under beneath underneath
    front back behind rear foreground background middle center centre central corner edge side far
    inside outside between first second third fourth fifth last next one two three four five six
    red green blue yellow orange purple pink brown black white gray grey cyan magenta teal violet gold silver tan
    beige maroon navy turquoise dark light bright pale
    no not without non never except only other another than
    largest biggest smallest littlest tallest shortest longest oldest youngest
    taller shorter bigger smaller larger older younger
    """.split()
)
"""Never replaced, inserted, moved or deleted."""


def synonym_table(name: str) -> dict[str, tuple[str, ...]]:
    """Word -> the other words of its group, for the table `name`."""
    return {word: tuple(w for w in group if w != word) for group in TABLES[name] for word in group}
