"""Real countries, what stands for them, and who holds office in them: invented people, everywhere."""

# ruff: noqa: E501 - tables
from __future__ import annotations

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

# office: country code -> the person who holds it; every one of them is invented (pocket.people)
OFFICES = {
    "president": {
        "KE": "Tavo Brinmar", "US": "Orrin Quelden", "FR": "Mirelle Oskand", "BR": "Dario Vellunto",
        "NG": "Femola Adrake", "PE": "Isquel Tarnado", "KR": "Seona Halgrim", "FI": "Ulla Verrantin",
        "EG": "Nadim Korrave", "ID": "Wirani Solenko", "PL": "Borek Zandlow", "CL": "Paloma Drevisk",
        "ZA": "Lindo Makeverra", "LK": "Ravi Thandolin",
    },
    "prime minister": {
        "CA": "Corben Ashwick", "GB": "Elspa Morrowin", "IN": "Arjo Medhavan", "JP": "Kento Harumoda",
        "AU": "Brannock Tielly", "NO": "Sigra Fennholt", "IT": "Luzio Marcondel", "ES": "Inesta Callorbe",
        "IE": "Wenna Parakite", "SE": "Torvin Lagerkrans", "NL": "Hanneke Vorstig", "TH": "Malisa Chantrel",
    },
}  # fmt: skip
