"""One address for the page: which facts a patch file holds, so that its node can show a switch for each."""

import logging

import folder_paths

from refact.errors import RefactError
from refact.record import read_record


def facts_in(name):
    """[{name, title}] of the facts in a file of the folder for LoRAs; [] where it is no patch."""
    if name not in folder_paths.get_filename_list("loras"):
        return []
    try:
        record = read_record(folder_paths.get_full_path("loras", name))
    except RefactError as error:
        logging.info("ReFACT: %s", error)
        return []
    edits = {edit["name"]: edit for edit in record["edits"]}
    parts = [*record["edits"], *record.get("imported", [])]
    return [{"name": part["name"], "title": _title(edits.get(part["name"]))} for part in parts]


def _title(edit):
    if edit is None:
        return ""
    return f"{edit['prompt']}: {edit['new'] if isinstance(edit['new'], str) else 'a picture'}"


def add():
    """Offer it where ComfyUI's server runs; without a server there is no page either."""
    from aiohttp import web
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    @server.routes.get("/refact/facts")
    async def facts(request):
        return web.json_response(facts_in(request.rel_url.query.get("file", "")))
