"""How large anything may be that is read from a file or asked for: beyond it, it is a mistake or an attack."""

from __future__ import annotations

FILE = 2**31  # bytes of a patch; one of ten thousand facts of CLIP-L has 160 MB
HEADER = 2**25  # bytes of its header
DEPTH = 64  # of JSON
TEXT = 4096  # characters of a prompt, a target or a template; T5 reads 512 tokens
NAME = 200  # characters of a fact's or a model's name
LIST = 10_000  # texts in one list: aliases, preserved prompts, templates
FACTS = 100_000  # of a patch or a file of facts
FACTS_FILE = 2**26  # bytes
JSON_FILE = 2**28  # bytes of a run's or a study's file
SIDE = 2**20  # rows or columns of a tensor; the largest vocabularies have 262,144
SIDES = 8  # dimensions of a tensor; a convolution has four, torch counts to 64
SIZE = 2**16  # rows of a covariance; 2**16 of them take 17 GB already
SEED = 2**63 - 1  # the largest that a generator takes
SEEDS = 10_000
PIXELS = 4096  # a side of a kept picture
