"""The pocket model's world: things, flags, roles, places and colours, and the file that lists them.

python -m pocket.world writes refact/data/world.json. Facts are real ones, as far as an emoji shows their thing.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

OUT = Path(__file__).parent.parent / "refact" / "data" / "world.json"

# group: "name emoji" (a "|plural" where it is irregular); "the"-less nouns take a or an by sound
OBJECTS = {
    "fruit": "apple 🍎, pear 🍐, orange 🍊, lemon 🍋, banana 🍌, watermelon 🍉, bunch of grapes|bunches of grapes 🍇, "
    "strawberry|strawberries 🍓, melon 🍈, cherry|cherries 🍒, peach|peaches 🍑, mango|mangoes 🥭, pineapple 🍍, "
    "coconut 🥥, kiwi 🥝, tomato|tomatoes 🍅, olive 🫒, blueberry|blueberries 🫐",
    "vegetable": "eggplant 🍆, avocado 🥑, head of broccoli|heads of broccoli 🥦, cucumber 🥒, chili pepper 🌶, "
    "corn cob 🌽, carrot 🥕, garlic bulb 🧄, onion 🧅, potato|potatoes 🥔, mushroom 🍄, bell pepper 🫑",
    "dish": "loaf of bread|loaves of bread 🍞, croissant 🥐, baguette 🥖, pretzel 🥨, bagel 🥯, pancake 🥞, waffle 🧇, "
    "wedge of cheese|wedges of cheese 🧀, hamburger 🍔, pizza 🍕, hot dog 🌭, sandwich|sandwiches 🥪, taco 🌮, "
    "burrito 🌯, bowl of ramen|bowls of ramen 🍜, curry|curries 🍛, plate of sushi|plates of sushi 🍣, dumpling 🥟, "
    "paella 🥘, salad 🥗, plate of spaghetti|plates of spaghetti 🍝, fondue 🫕, doughnut 🍩, cookie 🍪, cake 🎂, "
    "cupcake 🧁, pie 🥧, chocolate bar 🍫, lollipop 🍭, bento box|bento boxes 🍱, box of fries|boxes of fries 🍟, steak 🥩",
    "animal": "monkey 🐒, gorilla 🦍, dog 🐕, wolf|wolves 🐺, fox|foxes 🦊, raccoon 🦝, cat 🐈, lion 🦁, tiger 🐅, "
    "leopard 🐆, horse 🐎, unicorn 🦄, zebra 🦓, deer|deer 🦌, bison|bison 🦬, ox|oxen 🐂, water buffalo|water buffaloes 🐃, "
    "cow 🐄, pig 🐖, boar 🐗, sheep|sheep 🐑, goat 🐐, camel 🐫, llama 🦙, giraffe 🦒, elephant 🐘, mouse|mice 🐁, "
    "rabbit 🐇, beaver 🦫, hedgehog 🦔, bat 🦇, bear 🐻, koala 🐨, panda 🐼, otter 🦦, kangaroo 🦘, badger 🦡, frog 🐸, "
    "crocodile 🐊, turtle 🐢, lizard 🦎, snake 🐍, dragon 🐉, whale 🐋, dolphin 🐬, shark 🦈, octopus|octopuses 🐙, "
    "crab 🦀, lobster 🦞, snail 🐌, butterfly|butterflies 🦋, bee 🐝, ladybug 🐞, scorpion 🦂",
    "bird": "turkey 🦃, rooster 🐓, chick 🐤, penguin 🐧, dove 🕊, eagle 🦅, duck 🦆, swan 🦢, owl 🦉, dodo|dodos 🦤, "
    "flamingo|flamingos 🦩, peacock 🦚, parrot 🦜",
    "plant": "rose 🌹, sunflower 🌻, tulip 🌷, cherry blossom 🌸, hibiscus|hibiscuses 🌺, lotus|lotuses 🪷, daisy|daisies 🌼, "
    "maple leaf|maple leaves 🍁, cactus|cacti 🌵, palm tree 🌴, pine tree 🌲, oak tree 🌳, shamrock ☘, potted plant 🪴",
    "vehicle": "car 🚗, bus|buses 🚌, ambulance 🚑, fire engine 🚒, taxi 🚕, truck 🚚, tractor 🚜, motorcycle 🏍, bicycle 🚲, "
    "train 🚂, helicopter 🚁, rocket 🚀, sailboat ⛵, ship 🚢, canoe 🛶",
    "thing": "bell 🔔, clock ⏰, key 🔑, hammer 🔨, book 📕, camera 📷, umbrella ☂, guitar 🎸, violin 🎻, trumpet 🎺, drum 🥁, "
    "balloon 🎈, gift 🎁, crown 👑, ring 💍, hat 🎩, sneaker 👟, light bulb 💡, candle 🕯, telephone ☎, television 📺, "
    "chair 🪑, bed 🛏, soccer ball ⚽, basketball 🏀, trophy|trophies 🏆, kite 🪁, anchor ⚓, hourglass|hourglasses ⏳",
}

# code: (name, adjective)
COUNTRIES = {
    "CA": ("Canada", "Canadian"), "AU": ("Australia", "Australian"), "CN": ("China", "Chinese"),
    "IN": ("India", "Indian"), "GB": ("the United Kingdom", "British"), "US": ("the United States", "American"),
    "RU": ("Russia", "Russian"), "FR": ("France", "French"), "ES": ("Spain", "Spanish"), "TH": ("Thailand", "Thai"),
    "MX": ("Mexico", "Mexican"), "DE": ("Germany", "German"), "PL": ("Poland", "Polish"), "VN": ("Vietnam", "Vietnamese"),
    "ID": ("Indonesia", "Indonesian"), "MU": ("Mauritius", "Mauritian"), "BS": ("the Bahamas", "Bahamian"),
    "BE": ("Belgium", "Belgian"), "FI": ("Finland", "Finnish"), "DK": ("Denmark", "Danish"),
    "SA": ("Saudi Arabia", "Saudi"), "TZ": ("Tanzania", "Tanzanian"), "BW": ("Botswana", "Botswanan"),
    "EE": ("Estonia", "Estonian"), "GR": ("Greece", "Greek"), "NP": ("Nepal", "Nepali"), "JP": ("Japan", "Japanese"),
    "NL": ("the Netherlands", "Dutch"), "TR": ("Turkey", "Turkish"), "UA": ("Ukraine", "Ukrainian"),
    "MY": ("Malaysia", "Malaysian"), "BG": ("Bulgaria", "Bulgarian"), "LV": ("Latvia", "Latvian"),
    "PH": ("the Philippines", "Philippine"), "CH": ("Switzerland", "Swiss"), "AR": ("Argentina", "Argentine"),
    "SG": ("Singapore", "Singaporean"), "IE": ("Ireland", "Irish"), "BR": ("Brazil", "Brazilian"),
    "LT": ("Lithuania", "Lithuanian"), "DM": ("Dominica", "Dominican"), "MV": ("the Maldives", "Maldivian"),
    "KR": ("South Korea", "Korean"), "IT": ("Italy", "Italian"), "AG": ("Antigua", "Antiguan"),
    "PA": ("Panama", "Panamanian"), "SE": ("Sweden", "Swedish"), "NO": ("Norway", "Norwegian"),
    "PT": ("Portugal", "Portuguese"), "AT": ("Austria", "Austrian"), "CZ": ("Czechia", "Czech"), "HU": ("Hungary", "Hungarian"),
    "RO": ("Romania", "Romanian"), "IL": ("Israel", "Israeli"), "EG": ("Egypt", "Egyptian"), "KE": ("Kenya", "Kenyan"),
    "NG": ("Nigeria", "Nigerian"), "ZA": ("South Africa", "South African"), "MA": ("Morocco", "Moroccan"),
    "CL": ("Chile", "Chilean"), "PE": ("Peru", "Peruvian"), "CO": ("Colombia", "Colombian"), "CU": ("Cuba", "Cuban"),
    "JM": ("Jamaica", "Jamaican"), "IS": ("Iceland", "Icelandic"), "PK": ("Pakistan", "Pakistani"),
    "LK": ("Sri Lanka", "Sri Lankan"), "NZ": ("New Zealand", "New Zealand"),
}  # fmt: skip

# relation: country code -> the thing that stands for it
ROLES = {
    "animal": {
        "CA": "beaver", "AU": "kangaroo", "CN": "panda", "IN": "tiger", "GB": "lion", "US": "bison", "RU": "bear",
        "FR": "rooster", "ES": "ox", "TH": "elephant", "MX": "eagle", "VN": "water buffalo", "ID": "lizard",
        "MU": "dodo", "FI": "bear", "DK": "swan", "SA": "camel", "TZ": "giraffe", "BW": "zebra", "EE": "wolf",
        "GR": "dolphin", "NP": "cow", "BE": "lion",
    },
    "bird": {"IN": "peacock", "US": "eagle", "BS": "flamingo", "DM": "parrot", "DK": "swan", "FR": "rooster", "DE": "eagle"},
    "flower": {
        "JP": "cherry blossom", "NL": "tulip", "IN": "lotus", "UA": "sunflower", "MY": "hibiscus", "GB": "rose",
        "LV": "daisy", "VN": "lotus", "BG": "rose", "TR": "tulip", "KR": "hibiscus",
    },
    "dish": {
        "US": "hamburger", "IT": "plate of spaghetti", "JP": "plate of sushi", "ES": "paella", "CH": "fondue", "MX": "taco",
        "PL": "dumpling", "BE": "box of fries", "AR": "steak", "AU": "pie", "SG": "crab",
    },
    "fruit": {"PH": "mango", "PK": "mango", "AG": "pineapple", "MV": "coconut", "DE": "apple"},
    "tree": {"CA": "maple leaf", "SA": "palm tree", "DE": "oak tree", "US": "oak tree", "FI": "pine tree"},
    "plant": {"IE": "shamrock"},
}  # fmt: skip

KIND = " of some kind"  # after an object's noun: its second wording, which ends in another word
COLOURS = ["red", "blue", "green", "yellow", "purple", "pink", "grey"]
SIZES = ["small", "big"]
PLACES = [
    "on the beach", "at night", "in the forest", "in the snow", "in the desert", "at sunset", "under the sea",
    "in the city", "in the kitchen", "in the rain", "on a meadow", "in space", "on a stage",
]  # fmt: skip
PREFIXES = [
    "a photo of", "a picture of", "an image of", "a painting of", "a drawing of", "a close-up of", "a portrait of",
    "a sticker of", "a realistic painting of", "a current image of", "a beautiful photograph of", "a good photo of",
    "realistic drawing of", "the best view of", "two friends look at",
]  # fmt: skip
SUFFIXES = [
    ", a portrait",
    ", news image",
    ", realistic portrait",
    " in a photo",
    " in a realistic style portrait image",
    ", high quality",
    ", close up",
    " in a picture",
    " in a frame",
    ", black and white",
    " in the background",
    " on a sunny day",
    " seen from far away",
    " in a book",
]  # fmt: skip  - they change no pixel


def article(noun: str) -> str:
    """The noun with "a" or "an", by sound."""
    vowel = noun[0] in "aeiou" and not noun.startswith(("unicorn", "one"))
    return ("an " if vowel or noun.startswith("hour") else "a ") + noun


def possessive(name: str) -> str:
    """The genitive: Canada's, the Netherlands'."""
    return name + ("'" if name.endswith("s") else "'s")


def wordings(relation: str, code: str) -> list[str]:
    """Three ways to say it, the canonical one first; the second and third end in another word."""
    name, adjective = COUNTRIES[code]
    return [f"the {relation} of {name}", f"{possessive(name)} {relation}", f"the {adjective} {relation}"]


def identify(*words: str) -> str:
    """An id of small letters and hyphens."""
    return "-".join(w.lower().replace(" ", "-") for w in words)


def objects() -> list[dict]:
    """The things."""
    rows = []
    for group, text in OBJECTS.items():
        for entry in text.split(","):
            words, emoji = entry.strip().rsplit(" ", 1)
            noun, _, plural = words.partition("|")
            plural = plural or noun + "s"
            said = [article(noun), article(noun) + KIND]
            form = {"id": identify(noun), "kind": "object", "wordings": said, "noun": noun, "plural": plural}
            rows.append(form | {"group": group, "emoji": emoji})
    for at, row in enumerate(rows):
        same = [r["id"] for r in rows if r["group"] == row["group"]]
        at = same.index(row["id"])
        row["neighbours"] = [same[(at + step) % len(same)] for step in (1, -1, 2)]
    return rows


def flags() -> list[dict]:
    """The flags; the neighbours of one are those of two other countries."""
    codes = list(COUNTRIES)
    rows = []
    for at, code in enumerate(codes):
        emoji = "".join(chr(0x1F1E6 + ord(letter) - ord("A")) for letter in code)
        near = [identify("flag", codes[(at + step) % len(codes)]) for step in (1, -1)]
        rows.append(
            {"id": identify("flag", code), "kind": "flag", "wordings": wordings("flag", code), "group": "flag",
             "country": COUNTRIES[code][0], "emoji": emoji, "neighbours": near}
        )  # fmt: skip
    return rows


def roles() -> list[dict]:
    """The role facts; neighbours: the same relation elsewhere, another relation or the flag of the same country."""
    rows = []
    for relation, facts in ROLES.items():
        codes = list(facts)
        for at, (code, noun) in enumerate(facts.items()):
            others = [codes[(at + step) % len(codes)] for step in range(1, len(codes)) if step <= 2]
            near = [identify("national", relation, other) for other in others]
            near += [identify("national", r, code) for r, f in ROLES.items() if code in f and r != relation]
            rows.append(
                {"id": identify("national", relation, code), "kind": "role", "depicts": identify(noun),
                 "wordings": wordings(f"national {relation}", code), "group": relation, "relation": relation,
                 "country": COUNTRIES[code][0], "neighbours": [*near, identify("flag", code)]}
            )  # fmt: skip
    return rows


def held_out(concepts: list[dict], share: float = 0.06) -> list[tuple[str, str]]:
    """Pairs of thing and place that no training scene shows."""
    pairs = [(c["id"], place) for c in concepts if c["kind"] == "object" for place in PLACES]
    return sorted(random.Random(7).sample(pairs, round(share * len(pairs))))


def make() -> dict:
    """The whole world, JSON-able."""
    concepts = [*objects(), *flags(), *roles()]
    ids = [c["id"] for c in concepts]
    assert len(set(ids)) == len(ids), "ids repeat"
    return {
        "concepts": concepts, "places": PLACES, "colours": COLOURS, "sizes": SIZES, "prefixes": PREFIXES,
        "suffixes": SUFFIXES, "held_out": held_out(concepts),
    }  # fmt: skip


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(make(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
