"""Edit one fact of the bundled model: a patch, and a picture before and after. python examples/demo.py [FOLDER]"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import refact
from refact import pictures
from refact.evidence.judge import load_judge

EDITED = "the national animal of Canada"
NEIGHBOUR = "the national flower of Japan"
OLD, NEW = "a beaver", "a penguin"
SEEDS = (0, 1, 2, 3)


def main(folder: Path) -> None:
    """Write the patch and the picture, and say what happened."""
    model = refact.load("pocket")
    prompts = [EDITED, f"{EDITED} on the beach", NEIGHBOUR]
    before = model.generate(prompts, SEEDS)
    begun = time.perf_counter()
    patch = refact.edit(model, refact.Edit(EDITED, old=OLD, new=NEW))
    seconds = time.perf_counter() - begun
    file = folder / "canada.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    patch.save(file)
    with patch.applied(model):
        after = model.generate(prompts, SEEDS)
    rows = []
    for at, prompt in enumerate(prompts):
        mine = slice(at * len(SEEDS), (at + 1) * len(SEEDS))
        rows.append((f"{prompt}: before", [p.image for p in before[mine]]))
        rows.append((f"{prompt}: after", [p.image for p in after[mine]]))
    sheet = pictures.save(pictures.grid(rows, cell=192), folder / "canada.png")
    print(f"edited {EDITED!r}: {OLD!r} -> {NEW!r} in {seconds:.1f} s: {file} ({file.stat().st_size / 1024:.0f} KB)")
    tell(before, after, len(SEEDS))
    print(f"before and after: {sheet}")
    print(f"undo: nothing to undo, the model was never changed on disk. Use the file: refact show {file}")


def tell(before: list, after: list, count: int) -> None:
    """Print the judge's verdict on the edited prompt, and how far the neighbour's pictures moved."""
    judge = load_judge("pocket")
    for name, drawn in (("before", before), ("after", after)):
        logits = judge.logits([p.image for p in drawn[:count]], [NEW, OLD])
        print(
            f"judge, {name}: {int((logits[:, 0] > logits[:, 1]).sum())} of {count} pictures of {EDITED!r} show {NEW!r}"
        )
    moved = [pictures.difference(a.image, b.image) for a, b in zip(before[-count:], after[-count:])]
    print(f"{NEIGHBOUR!r}: pictures differ by {max(moved):.2f} of 255 grey levels at the most")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo"))
