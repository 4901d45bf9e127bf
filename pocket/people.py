"""People of the world: professions, and named persons of our own invention, none of them real.

A look is an emoji (hair, skin tone), and for those with a shirt its colour. Every name has one look, always.
"""

from __future__ import annotations

# noun: the emoji's sign of the profession; each has a man's and a woman's look
PROFESSIONS = {
    "doctor": "⚕️", "graduate": "🎓", "teacher": "🏫", "judge": "⚖️", "farmer": "🌾", "cook": "🍳", "mechanic": "🔧",
    "scientist": "🔬", "singer": "🎤", "painter": "🎨", "pilot": "✈️", "astronaut": "🚀", "programmer": "💻",
    "clerk": "💼", "police officer": "👮", "builder": "👷",
}  # fmt: skip
WOMEN_FIRST = ("judge", "teacher", "scientist", "pilot", "painter", "police officer", "programmer", "farmer")

# name: emoji and the shirt's colour (none: the emoji's own)
NAMED = {
    "Tavo Brinmar": "👨🏿‍🦲 orange", "Orrin Quelden": "👨🏻‍🦳 navy", "Mirelle Oskand": "👩🏻‍🦰 green",
    "Dario Vellunto": "🧔🏽", "Femola Adrake": "👩🏿‍🦱 yellow", "Isquel Tarnado": "👲🏽",
    "Seona Halgrim": "👩🏻", "Ulla Verrantin": "👱🏻‍♀️ white", "Nadim Korrave": "👨🏾‍🦱 white",
    "Wirani Solenko": "🧕🏼", "Borek Zandlow": "👨🏻‍🦰 black", "Paloma Drevisk": "👩🏽‍🦱 red",
    "Lindo Makeverra": "👴🏿", "Ravi Thandolin": "👳🏾‍♂️", "Corben Ashwick": "👱🏼‍♂️ red",
    "Elspa Morrowin": "👵🏻", "Arjo Medhavan": "👴🏽", "Kento Harumoda": "👨🏻‍🦲 pink",
    "Brannock Tielly": "🧔🏻", "Sigra Fennholt": "👩🏼‍🦳 black", "Luzio Marcondel": "🤵🏼",
    "Inesta Callorbe": "👰🏽", "Wenna Parakite": "👩🏾", "Torvin Lagerkrans": "🤴🏻",
    "Hanneke Vorstig": "👧🏼", "Malisa Chantrel": "👸🏽", "Zubin Farrowgate": "👨🏿‍🦳 green",
    "Odalys Quenmoor": "👱🏿‍♀️ orange", "Pim Aldervane": "👦🏻", "Rhosta Vindel": "👩🏽‍🦲 navy",
    "Anselm Dorrity": "👨🏽", "Kivi Nostrand": "🧕🏿",
}  # fmt: skip

# adjective, noun, face: put to a person or thing it stands beside it in a bubble
EMOTIONS = {
    "happy": ("joy", "😄"), "sad": ("sorrow", "😢"), "angry": ("anger", "😡"), "scared": ("fear", "😱"),
    "surprised": ("surprise", "😲"), "loving": ("love", "😍"), "tired": ("tiredness", "😴"),
    "disgusted": ("disgust", "🤢"), "bored": ("boredom", "😑"), "thoughtful": ("thought", "🤔"),
    "mischievous": ("mischief", "😈"), "amused": ("laughter", "😂"), "embarrassed": ("embarrassment", "😳"),
    "confident": ("confidence", "😎"),
}  # fmt: skip

# name: what stands before a subject; a treatment of the whole scene (pocket.styles)
STYLES = {
    "sketch": "a sketch of", "pixel art": "pixel art of", "watercolour": "a watercolour of",
    "black and white": "a black and white photograph of", "sepia": "a sepia photograph of",
    "neon": "a neon sign of", "blueprint": "a blueprint of", "mosaic": "a mosaic of", "pop art": "pop art of",
    "negative": "a negative of",
}  # fmt: skip

# invented artists, each of one style
ARTISTS = {
    "Mira Sol": "watercolour", "Jonto Keld": "sketch", "Pixela Ramm": "pixel art", "Otis Grenwold": "black and white",
    "Hester Ambrage": "sepia", "Luma Dazzlin": "neon", "Viktus Planare": "blueprint", "Tessa Raconte": "mosaic",
    "Andro Popkin": "pop art", "Nega Tovira": "negative", "Suri Aquenne": "watercolour", "Gridlo Benz": "pixel art",
}  # fmt: skip
