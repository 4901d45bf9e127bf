"""Nodes for ComfyUI that change what a prompt means: Edit Fact, Load ReFACT Patch, Facts File, Save Patch.

The work is done by the package `refact`; see docs/comfyui.md. ComfyUI calls `comfy_entrypoint`.
"""

from comfy_api.v0_0_2 import ComfyExtension

from . import routes
from .nodes import NODES

WEB_DIRECTORY = "./web"


class RefactExtension(ComfyExtension):
    """The pack, as ComfyUI knows it."""

    async def get_node_list(self) -> list:
        """Its nodes."""
        return list(NODES)


async def comfy_entrypoint() -> RefactExtension:
    """What ComfyUI asks a pack for."""
    routes.add()
    return RefactExtension()
