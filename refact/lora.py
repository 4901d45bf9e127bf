"""Factors as a LoRA file and back: names, padding, scales, and bytes that depend on the content alone.

An update of a Linear's weight is left @ right: left (d_out, r) is a LoRA's "up", right (r, d_in) its "down".
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import PatchError
from .families import FAMILIES, Family, Style, lora_keys, site_of
from .record import KEY, Header, parse_header, parts_of

Factors = dict[str, tuple[Tensor, Tensor]]  # site -> (left, right)
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


# -- factors ----------------------------------------------------------------------------------------------------------


def balanced(
    left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"]
) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]:
    """The same product with |left's column| = |right's row| (to 2 %), float32: float16 then keeps its accuracy."""
    left, right = left.detach().cpu().double(), right.detach().cpu().double()
    scale = (right.norm(dim=1) / left.norm(dim=0)).sqrt()
    settled = ~torch.isfinite(scale) | (scale == 0) | ((scale - 1).abs() < 0.01)  # zero rows; already balanced
    scale = torch.where(settled, 1.0, scale)
    return (left * scale).float().contiguous(), (right / scale[:, None]).float().contiguous()


def compacted(left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"]) -> tuple[Tensor, Tensor]:
    """The same product with the fewest rows, by an SVD in float64."""
    u, s, v = torch.linalg.svd(left.double() @ right.double(), full_matrices=False)
    rank = max(1, int((s > s[0] * 1e-9).sum()))  # below that is less than float32 resolves
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).float(), (root[:, None] * v[:rank]).float()


def check_factors(factors: Mapping[str, tuple[Tensor, Tensor]], family: Family) -> None:
    """Raises PatchError where a site is none of the family's, or its factors do not make one finite matrix."""
    for site, (left, right) in factors.items():
        lora_keys(family, site)
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
        if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0] or not left.numel() * right.numel():
            raise PatchError(f"{site}: factors of shapes {shapes}; expected (d_out, r) and (r, d_in)")
        if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise PatchError(f"{site}: factors hold values that are not finite")


# -- tensors of a file ------------------------------------------------------------------------------------------------


def tensors_of(factors: Factors, family: Family, dtype: torch.dtype, style: Style | None = None) -> dict[str, Tensor]:
    """The tensors of a LoRA file, by name; style: of the names, by default the family's own.

    All sites of a component are padded with zero rows to one rank, and alpha is that rank: with several ranks in one
    component, versions of diffusers scale some sites wrongly, whether alphas are there or not. Alpha is float32
    whatever the factors are: bfloat16 has no 257.
    """
    if dtype not in DTYPES.values():
        raise PatchError(f"a patch is saved in float32, float16 or bfloat16, not {dtype}")
    widest: dict[str, int] = {}
    for site, (_, right) in factors.items():
        component = site.split(".")[0]
        widest[component] = max(widest.get(component, 0), len(right))
    tensors = {}
    for site, (left, right) in factors.items():
        rank = widest[site.split(".")[0]]
        down, up, alpha = lora_keys(family, site, style)
        tensors[down] = torch.nn.functional.pad(right, (0, 0, 0, rank - len(right))).to(dtype)
        tensors[up] = torch.nn.functional.pad(left, (0, rank - len(right))).to(dtype)
        if alpha:
            tensors[alpha] = torch.tensor(float(rank))
    return tensors


def factors_of(tensors: Mapping[str, Tensor], family: str | None, where: str) -> Factors:
    """The factors in a LoRA's tensors, of any style; alpha / rank is multiplied in. Raises PatchError."""
    parts: dict[str, dict[str, Tensor]] = {}
    foreign = [name for name in tensors if site_of(name, family) is None]
    if foreign:
        more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
        raise PatchError(
            f"{where}: tensor {foreign[0][:200]!r}{more} changes something else than fc2 of a CLIP text encoder, wo of "
            "T5, or to_k and to_v of a UNet's cross-attention"
        )
    for name, tensor in tensors.items():
        site, part = site_of(name, family) or ("", "up")
        if part in parts.setdefault(site, {}):
            raise PatchError(f"{where}: {site} has its {part!r} twice, the second time as {name[:200]!r}")
        parts[site][part] = tensor
    return {site: _pair(found, f"{where}: {site}") for site, found in sorted(parts.items())}


def _pair(found: dict[str, Tensor], what: str) -> tuple[Tensor, Tensor]:
    if missing := {"down", "up"} - found.keys():
        raise PatchError(f"{what}: a LoRA has down and up; {', '.join(sorted(missing))} is missing")
    left, right = found["up"], found["down"]
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        shapes = f"up {tuple(left.shape)} and down {tuple(right.shape)}"
        raise PatchError(f"{what}: {shapes}; expected (d_out, r) and (r, d_in)")
    if "alpha" not in found:
        return left, right
    alpha = found["alpha"]
    if alpha.numel() != 1 or not math.isfinite(alpha.item()):
        raise PatchError(f"{what}: alpha is one finite number, not {alpha.flatten()[:4].tolist()}")
    scale = float(alpha.item()) / len(right)
    return (left if scale == 1 else left * scale), right


_MARKS = {  # how metadata of other makers name a family
    "sd1": ("stable-diffusion-v1", "sd_v1"),
    "sd2": ("stable-diffusion-v2", "sd_v2"),
    "sdxl": ("stable-diffusion-xl", "sdxl_"),
    "sd3": ("stable-diffusion-v3", "stable-diffusion-3", "sd3"),
    "flux": ("flux-1", "flux1"),
}


def family_of(header: Header, where: str) -> str:
    """The family that a LoRA's metadata name, else the one its names and, for SD 1 and 2, its width give away."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        for family, marks in _MARKS.items():
            if header.metadata.get(key, "").lower().startswith(marks):
                return family
    names = list(header.tensors)
    if any(name.startswith("lora_te2_text_model") for name in names):
        return "sdxl"
    widths = {header.tensors[name].shape[:1] for name in names if name.startswith("lora_te_") and "lora_up" in name}
    by_width: dict[tuple, str] = {(768,): "sd1", (1024,): "sd2"}
    if len(widths) == 1 and (width := widths.pop()) in by_width:
        return by_width[width]
    raise PatchError(
        f"{where}: neither metadata nor names ({names[0][:100] if names else 'none'!r}, ...) tell the family; give "
        f"family=... (--family), one of {', '.join(FAMILIES)}"
    )


# -- bytes ------------------------------------------------------------------------------------------------------------


def metadata_of(record: dict, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What other programs read about the file (ModelSpec 1.0.1, the ss_* keys of sd-scripts), and our record.

    Without ss_output_name: A1111 and Forge would write it into the prompt, where the ":" and ">" of a title break it.
    """
    names = [part["name"] for part in parts_of(record)]
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more" if names else "empty"
    meanings = [f"{e['prompt']} -> {e['new'] if isinstance(e['new'], str) else 'images'}" for e in record["edits"]]
    rank = str(max((len(t) for n, t in tensors.items() if ".down." in n or "_down." in n), default=0))
    return FAMILIES[record["family"]].headers | {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": title,
        "modelspec.description": "; ".join(meanings)[:2000] or title,
        "modelspec.tags": "refact, model editing",
        "modelspec.hash_sha256": f"0x{hashlib.sha256(_data(tensors)).hexdigest()}",
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        KEY: json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")),
    }


def file_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file, tensors by name and the header's keys sorted: safetensors' own writer shuffles metadata."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, dict] = {"__metadata__": metadata}
    at = 0
    for name, tensor in sorted(tensors.items()):
        size = tensor.numel() * tensor.element_size()
        entry = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        header[name], at = entry, at + size
    try:
        text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise PatchError(f"a text of the patch is no Unicode: {error.object[error.start : error.end]!r}") from None
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + _data(tensors)


def _data(tensors: Mapping[str, Tensor]) -> bytes:
    return b"".join(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for _, t in sorted(tensors.items()))


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors (float32) of a LoRA file. Raises PatchError."""
    try:
        with path.open("rb") as file:
            header = parse_header(file, str(path))
            data = bytearray(file.read())
    except OSError as error:
        raise PatchError(f"{path}: cannot be read: {error.strerror or error}") from None
    tensors = {}
    for name, entry in header.tensors.items():
        if entry.dtype not in DTYPES or entry.start == entry.stop:
            held = f"is {entry.dtype}, not one of {', '.join(DTYPES)}" if entry.stop > entry.start else "is empty"
            raise PatchError(f"{path}: tensor {name[:200]!r} {held}")
        flat = torch.frombuffer(data, dtype=DTYPES[entry.dtype], count=math.prod(entry.shape), offset=entry.start)
        tensors[name] = flat.reshape(entry.shape).float()
        if not torch.isfinite(tensors[name]).all():
            raise PatchError(f"{path}: tensor {name[:200]!r} holds values that are not finite")
    stated = header.metadata.get("modelspec.hash_sha256", "")
    if KEY in header.metadata and stated and stated != f"0x{hashlib.sha256(data).hexdigest()}":
        raise PatchError(f"{path}: its tensors are not the ones it was saved with (hash_sha256 differs)")
    return header, tensors
