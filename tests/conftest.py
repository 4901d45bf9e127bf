"""Shapes in annotations are checked while tests run; one thread, for small matrices gain nothing from two."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

MATHS = ("solve", "search", "writing", "evidence.metrics")
MODEL = ("encoders.encoder", "encoders.hooks", "models.covariance", "editing")
install_import_hook([f"refact.{name}" for name in MATHS + MODEL], "beartype.beartype")

import pytest
import torch
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a law holds however slow the machine is
settings.load_profile("any machine")
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """Covariances of the tests are kept apart from the user's."""
    before = os.environ.get("REFACT_CACHE")
    os.environ["REFACT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("REFACT_CACHE")
    if before is not None:
        os.environ["REFACT_CACHE"] = before


@pytest.fixture
def model():
    """Two linears at two sites; files with a whole pipeline have a `model` of their own."""
    import tiny

    return tiny.Linears()


@pytest.fixture
def patch(model):
    """Two facts at two sites with different ranks, and one that is at one site only."""
    import tiny

    one, two = (tiny.CLIP_FC2.format(layer) for layer in (1, 2))
    return tiny.patch(model, {"canada": {one: 1, two: 2}, "france": {one: 2, two: 1}, "peru": {two: 1}})
