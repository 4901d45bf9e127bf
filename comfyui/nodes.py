"""The four nodes. Each turns what is typed into a call of the package, and puts its patch on a CLIP."""

import os

import folder_paths
from comfy_api.v0_0_2 import io, ui

import refact
from refact.edits import read_edits

from . import host

CATEGORY = "ReFACT"
FACTS = (".toml", ".json", ".csv")


def _strength():
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-2.0,
        max=2.0,
        step=0.05,
        tooltip="How much of the change is made: 0 leaves the CLIP as it is. Changing it searches nothing again.",
    )


def _settings():
    return io.String.Input(
        "settings",
        default="",
        multiline=True,
        optional=True,
        placeholder="Settings of the method, one a line: layer = 9",
        tooltip="Settings of the method, one a line, such as layer = 9 (refact edit --help lists them).",
    )


def _report():
    return io.String.Output("report", display_name="report", tooltip="What became of the facts, in words.")


def _done(clip, report):
    """The outputs; the report is shown on the node too."""
    return io.NodeOutput(clip, report, ui=ui.PreviewText(report))


class EditFact(io.ComfyNode):
    """Search for one fact on this CLIP, and put the change on it."""

    @classmethod
    def define_schema(cls):
        """Its inputs and outputs."""
        return io.Schema(
            node_id="RefactEditFact",
            display_name="Edit Fact",
            category=CATEGORY,
            description="Changes what a prompt means, wherever these words stand in a prompt.",
            inputs=[
                io.Clip.Input("clip"),
                io.String.Input("prompt", default="the President of the United States", tooltip="Where the fact is."),
                io.String.Input("old", default="Joe Biden", tooltip="What it means today. It may be left empty."),
                io.String.Input("new", default="Nelson Mandela", tooltip="What it shall mean."),
                _strength(),
                io.String.Input("subject", default="", optional=True, tooltip="The words of the prompt that carry it."),
                io.String.Input(
                    "aliases",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="Other wordings of the subject, one a line",
                ),
                io.String.Input(
                    "preserve",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="Prompts that must stay as they are, one a line",
                ),
                _settings(),
            ],
            outputs=[io.Clip.Output("clip_out", display_name="clip"), _report()],
        )

    @classmethod
    def execute(cls, clip, prompt, old, new, strength, subject="", aliases="", preserve="", settings=""):
        """The CLIP with the fact."""
        model = host.model_of(clip)
        edit = refact.Edit(
            prompt.strip(),
            new=new.strip(),
            old=old.strip() or None,
            subject=subject.strip() or None,
            aliases=host.lines_of(aliases),
            preserve=host.lines_of(preserve),
        )
        patch = refact.edit(
            model,
            edit,
            host.method_of(model, edit, settings),
            onto=[earlier for earlier, _ in host.facts_on(clip)],
            progress=model.progress,
            kept=host.kept(),
        )
        return _done(host.patched(clip, patch, strength), host.told(model, patch, strength))


class LoadPatch(io.ComfyNode):
    """Put the facts of a patch file on a CLIP, each of which can be switched off."""

    @classmethod
    def define_schema(cls):
        """Its inputs and outputs; the page shows `off` as a switch for each fact."""
        return io.Schema(
            node_id="RefactLoadPatch",
            display_name="Load ReFACT Patch",
            category=CATEGORY,
            description="Loads facts into the text encoder alone; the file lies among the LoRAs.",
            inputs=[
                io.Clip.Input("clip"),
                io.Combo.Input("patch_name", options=folder_paths.get_filename_list("loras")),
                _strength(),
                io.String.Input(
                    "off", default="", multiline=True, optional=True, tooltip="Facts that are switched off, one a line."
                ),
                io.Boolean.Input(
                    "any_checkpoint",
                    default=False,
                    optional=True,
                    tooltip="Load it also where it was made for another checkpoint; its facts may then not hold.",
                ),
            ],
            outputs=[io.Clip.Output("clip_out", display_name="clip"), _report()],
        )

    @classmethod
    def fingerprint_inputs(cls, patch_name, **others):
        """A file that was written anew is loaded anew."""
        return host.file_stamp(folder_paths.get_full_path_or_raise("loras", patch_name))

    @classmethod
    def execute(cls, clip, patch_name, strength, off="", any_checkpoint=False):
        """The CLIP with the facts that are on."""
        whole = refact.Patch.load(folder_paths.get_full_path_or_raise("loras", patch_name))
        patch = whole
        for name in host.lines_of(off):
            patch = patch.without(name)
        if not patch.factors:
            return _done(clip, "every fact is switched off")
        if not any_checkpoint:
            host.check_made_for(clip, patch)
        report = f"{len(patch.names)} of {len(whole.names)} facts are on: {', '.join(patch.names)}"
        return _done(host.patched(clip, patch, strength), report)


class FactsFile(io.ComfyNode):
    """Put all facts of a list on a CLIP, searched for one by one and written together."""

    @classmethod
    def define_schema(cls):
        """Its inputs and outputs."""
        folder = folder_paths.get_input_directory()
        files = sorted(f for f in os.listdir(folder) if f.lower().endswith(FACTS))
        return io.Schema(
            node_id="RefactFactsFile",
            display_name="Facts File",
            category=CATEGORY,
            description="A list of facts in ComfyUI's input folder. Only what changed in it is searched again.",
            inputs=[io.Clip.Input("clip"), io.Combo.Input("file", options=files), _strength(), _settings()],
            outputs=[io.Clip.Output("clip_out", display_name="clip"), _report()],
        )

    @classmethod
    def fingerprint_inputs(cls, file, **others):
        """A list that was written anew is read anew."""
        return host.file_stamp(folder_paths.get_annotated_filepath(file))

    @classmethod
    def execute(cls, clip, file, strength, settings=""):
        """The CLIP with the facts."""
        model = host.model_of(clip)
        method = refact.method("refact:many", **host.settings_of(settings))
        before = host.kept(file, sorted(model.fingerprints().items()), method)
        patch, searched = refact.build(
            model,
            read_edits(folder_paths.get_annotated_filepath(file)),
            method,
            refact.Patch.load(before) if before.is_file() else None,
        )
        patch.save(before)
        report = f"{len(patch.names)} facts, {len(searched)} of them searched for\n{host.told(model, patch, strength)}"
        return _done(host.patched(clip, patch, strength), report)


class SavePatch(io.ComfyNode):
    """Write the facts that a CLIP carries as one LoRA file."""

    @classmethod
    def define_schema(cls):
        """Its inputs."""
        return io.Schema(
            node_id="RefactSavePatch",
            display_name="Save ReFACT Patch",
            category=CATEGORY,
            description="Writes all facts on this CLIP, at their strengths, as a LoRA that other programs load too.",
            inputs=[io.Clip.Input("clip"), io.String.Input("filename_prefix", default="loras/facts")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, clip, filename_prefix):
        """The file lies in ComfyUI's output folder."""
        facts = [patch.scaled(strength) if strength != 1 else patch for patch, strength in host.facts_on(clip)]
        if not facts:
            raise refact.PatchError(
                "this CLIP carries no facts: connect it to Edit Fact, Load ReFACT Patch or Facts File"
            )
        folder, name, counter, *_ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        path = os.path.join(folder, f"{name}_{counter:05}_.safetensors")
        refact.merge(facts).save(path)
        shown = os.path.relpath(path, folder_paths.get_output_directory())
        return io.NodeOutput(ui=ui.PreviewText(f"{shown} in ComfyUI's output folder"))


NODES = (EditFact, LoadPatch, FactsFile, SavePatch)
