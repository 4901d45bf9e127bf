"""The judge: an independent CLIP, other seed and sizes, plainly trained on rendered scenes. python -m pocket.judge"""

from __future__ import annotations

from . import clip, training

TEXT = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
IMAGE = {
    "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 5, "num_attention_heads": 6, "patch_size": 16,
}  # fmt: skip
SHAPE = {"text": TEXT, "image": IMAGE, "seed": 77}
CPU_SHARE = 1 / 16


def part(asked: training.Given) -> clip.Clip:
    """The judge as a part."""
    return clip.Clip(asked, "judge", swaps=False, **SHAPE)


if __name__ == "__main__":
    given = training.given(training.parser(__doc__).parse_args(), CPU_SHARE)
    training.train(part(given), given)
