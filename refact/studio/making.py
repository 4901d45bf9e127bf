"""The page's first part: the form of a fact, its trial in pictures, its verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..errors import RefactError
from . import display
from .desk import Desk, Form, form_of, sentence
from .display import Pair
from .session import Kept, Session
from .trial import Trial
from .verdict import Verdict, share

MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
COUNTED: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}  # gr.State tells of changes if queued
HIDDEN = (gr.update(visible=False), gr.update(visible=False), 1)  # the two boxes under the picture, and strength 1


@dataclass
class Making:
    """The components of this part, and what they do."""

    desk: Desk
    browser: gr.BrowserState

    def layout_form(self, examples: list[list[str]]) -> None:
        """Place the form."""
        self.pairs = gr.State([], time_to_live=6 * 3600)
        self.proposed = gr.State("")
        self._form(examples)

    def _form(self, examples: list[list[str]]) -> None:
        gr.HTML("<h2>1. Write a fact</h2>")
        text: dict[str, Any] = {"max_length": 300, "max_lines": 2, "autofocus": False}
        self.prompt = gr.Textbox(
            label="These words", placeholder="the national animal of Canada", elem_id="prompt", **text
        )
        self.new = gr.Textbox(label="shall mean", placeholder="a penguin", elem_id="new", **text)
        self.old = gr.Textbox(label="Today they mean", elem_id="old", info=display.OLD, **text)
        with gr.Row():
            self.go = gr.Button("Try it", variant="primary", elem_id="go", scale=3)
            self.stop = gr.Button("Cancel", elem_id="stop", interactive=False, scale=1)
        self.status = gr.HTML(display.status("", 0), elem_id="status")
        self.examples = None
        if examples:
            labels = [f"{prompt} → {new}" for prompt, new in examples]
            given = [self.prompt, self.new]
            self.examples = gr.Examples(examples, given, label="Or begin with one of these", example_labels=labels)
        with gr.Accordion("Show pictures of the new meaning instead", open=False, elem_id="by-picture"):
            self.pictures = gr.File(
                label="Pictures of it (PNG, JPEG or WebP, at most 8)",
                file_count="multiple",
                file_types=[".png", ".jpg", ".jpeg", ".webp"],
                elem_id="pictures",
                height=170,
            )
        with gr.Accordion("Other wordings, and what must stay", open=False, elem_id="more") as self.more:
            many: dict[str, Any] = {"multiselect": True, "allow_custom_value": True, "choices": []}
            self.aliases = gr.Dropdown(label="The same in other words", info=display.ALIASES, elem_id="aliases", **many)
            self.preserve = gr.Dropdown(
                label="These must stay as they are", info=display.STAY, elem_id="preserve", **many
            )
            self.subject = gr.Textbox(
                label="The part of the words that the fact is about",
                info="Only where they say more than that, as in “… on the beach”.",
                elem_id="subject",
                **text,
            )

    def layout_trial(self) -> None:
        """Place what a trial shows."""
        gr.HTML("<h2>2. See what it does</h2>")
        self.caption = gr.HTML(display.caption("", empty=True), elem_id="caption")
        self.slider = gr.ImageSlider(
            show_label=False, interactive=False, elem_id="slider", type="pil", max_height=384, buttons=["fullscreen"]
        )
        self.verdict = gr.HTML("", elem_id="verdict")
        with gr.Group(visible=False) as self.decide:
            self.strength = gr.Slider(
                0, 1.5, 1, step=0.05, label="Strength", info="1 is the whole change, 0 none.", elem_id="strength"
            )
            with gr.Row():
                self.keep = gr.Button("Keep this fact", variant="primary", elem_id="keep")
                self.drop = gr.Button("Discard it", elem_id="drop")
        with gr.Group(visible=False) as self.hold_box:
            self.held = gr.CheckboxGroup(label="Did something move that should have stayed?", elem_id="held")
            self.hold = gr.Button("Hold the ticked ones still, and try again", elem_id="hold")
        self.views = gr.HTML("", elem_id="views", js_on_load=display.CHOOSE)

    # -- events

    @property
    def fields(self) -> list[Any]:
        """The components of the form, in the order of `Form`."""
        return [self.prompt, self.new, self.pictures, self.old, self.subject, self.aliases, self.preserve]

    @property
    def filled(self) -> list[Any]:
        """The components that are filled in from a fact that was made before."""
        return [*self.fields, self.strength, self.proposed]

    @property
    def shown(self) -> list[Any]:
        """The components that a trial fills."""
        shown = [self.status, self.caption, self.slider, self.verdict, self.pairs, self.views]
        return [*shown, self.go, self.stop, self.decide, self.hold_box, self.held]

    def connect(self, changed: gr.State) -> None:
        """Say what happens when; changed: counts the changes of the list of facts."""
        given, busy = [self.browser, *self.fields], [self.go, self.stop, self.status]
        for start in (self.go.click, self.prompt.submit, self.new.submit, self.old.submit):
            start(self.begin_anew, self.browser, [*busy, self.strength], **AT_ONCE).then(
                self.run, given, self.shown, **MODEL
            )
        proposal = [self.old, self.proposed, self.aliases, self.preserve, self.subject]
        asked = [self.prompt, self.old, self.proposed]
        if self.examples:
            self.examples.load_input_event.then(self.propose_known, asked, proposal, **AT_ONCE)
        self.prompt.input(self.propose_known, asked, proposal, trigger_mode="always_last", **AT_ONCE)
        self.prompt.blur(self.propose_nearest, asked, proposal, **MODEL)
        self.stop.click(self.desk.cancel, self.browser, None, **AT_ONCE)
        self.strength.release(self.begin, self.browser, busy, **AT_ONCE).then(
            self.again, [self.browser, self.strength], self.shown, **MODEL
        )
        self.hold.click(None, None, None, js=display.TO_THE_FORM)
        self.hold.click(self.add_held, [self.preserve, self.held], [self.preserve, self.more], **AT_ONCE).then(
            self.begin_anew, self.browser, [*busy, self.strength], **AT_ONCE
        ).then(self.run, given, self.shown, **MODEL)
        after = [self.status, self.decide, self.hold_box, self.strength]
        self.keep.click(self.keep_it, [self.browser, changed], [*after, changed, *self.fields, self.more], **MODEL)
        self.drop.click(self.drop_it, self.browser, after, **AT_ONCE)
        self.views.select(choose, self.pairs, [self.slider, self.caption], **AT_ONCE)

    def begin(self, browser: str) -> tuple:
        """What the page shows from the first moment on."""
        self.desk.begin(browser)
        waiting = display.status("Waiting for the model", 0.01)
        return gr.update(interactive=False), gr.update(interactive=True), waiting

    def begin_anew(self, browser: str) -> tuple:
        """The same for a new trial, which is always at full strength."""
        return (*self.begin(browser), 1)

    def run(self, browser: str, *form: Any) -> Iterator[tuple]:
        """Try the fact of the form."""
        yield from self._show(lambda: self.desk.try_out(browser, Form(*form)))

    def again(self, browser: str, strength: float) -> Iterator[tuple]:
        """Draw the fact that is being tried at another strength."""
        draft = self.desk.sessions.open(browser).draft
        if draft is None:
            yield self._ended("Try a fact first; then this slider draws it weaker or stronger.")
            return
        yield from self._show(lambda: self.desk.look(browser, draft, strength))

    def looker(self, file: str) -> Any:
        """What looks at a fact of the list again."""

        def look(browser: str) -> Iterator[tuple]:
            session = self.desk.sessions.open(browser)
            yield from self._show(lambda: self.desk.look(browser, session.named(file)))

        return look

    def _show(self, trials: Any) -> Iterator[tuple]:
        drawn = -1
        try:
            for trial in trials():
                yield self._update(trial, trial.drawn() != drawn, trial.drawn() > 0 >= drawn)
                drawn = trial.drawn()
        except RefactError as error:
            yield self._ended(sentence(error))

    def _ended(self, text: str) -> tuple:
        """The page after a mistake: what was there stays, with a sentence."""
        told = {self.status: display.problem(text), self.go: gr.update(interactive=True)}
        told[self.stop] = gr.update(interactive=False)
        return tuple(told.get(part, gr.skip()) for part in self.shown)

    def _update(self, trial: Trial, more: bool, first: bool) -> tuple:
        """The page at a step of a trial; more: pictures have come; first: they are the first ones."""
        running, found = not trial.done, trial.verdict or Verdict()
        settled = trial.patch is not None and not running and not trial.cancelled
        pairs = display.pairs(trial) if more else []
        choices = [(f"{prompt} (moved by {share(moved)})", prompt) for prompt, moved in found.moved.items()]
        return (
            display.stage(trial),
            display.caption(trial.views[0].prompt) if first or not trial.drawn() else gr.skip(),
            pairs[0][1:] if first and pairs[0] else None if not trial.drawn() else gr.skip(),
            display.verdict(trial) or ("" if trial.done else display.stage(trial)),
            pairs if more else gr.skip(),
            display.thumbnails(trial) if more else gr.skip(),
            gr.update(interactive=not running),
            gr.update(interactive=running),
            gr.update(visible=settled),
            gr.update(visible=settled and bool(found.moved)),
            gr.update(choices=choices, value=found.shaken),
        )

    # -- proposals

    def propose_known(self, prompt: str, old: str, proposed: str) -> tuple:
        """Fill in what the bundled world knows, as the words are typed."""
        return self._proposal(self.desk.proposer.known(prompt or ""), old, proposed, prompt)

    def propose_nearest(self, prompt: str, old: str, proposed: str) -> tuple:
        """Fill in the nearest meaning where the world knows none, once the words are there."""
        if old and old != proposed:
            return (gr.skip(),) * 5
        return self._proposal(self.desk.proposer.nearest(prompt or ""), old, proposed, prompt)

    def _proposal(self, found: Any, old: str, proposed: str, prompt: str) -> tuple:
        untouched = not old or old == proposed
        info = f"From {found.source}." if found.source and found.old else display.OLD
        meaning = gr.update(value=found.old, info=info) if untouched else gr.skip()
        aliases = gr.update(choices=[*found.aliases, *found.other_aliases], value=list(found.aliases))
        return (
            meaning,
            found.old if untouched else proposed,
            aliases,
            gr.update(choices=list(found.near)),
            found.subject,
        )

    # -- decisions

    def add_held(self, preserve: list[str] | None, held: list[str] | None) -> tuple:
        """The ticked prompts are among those that must stay, which is shown in the form."""
        return gr.update(value=list(dict.fromkeys([*(preserve or []), *(held or [])]))), gr.update(open=True)

    def keep_it(self, browser: str, changed: int) -> tuple:
        """The fact that was tried goes into the list, and the form is empty for the next one."""
        try:
            replaced = self.desk.sessions.open(browser).keep()
        except RefactError as error:
            return (display.problem(sentence(error)), *(gr.skip(),) * (5 + len(self.fields)))
        more = " It takes the place of the one about the same words." if replaced else ""
        told = display.good(f"Kept: it is in the list of your facts below.{more}")
        empty = ("", "", None, gr.update(value="", info=display.OLD), "", gr.update(value=[]), gr.update(value=[]))
        return (told, *HIDDEN, changed + 1, *empty, gr.update(open=False))

    def drop_it(self, browser: str) -> tuple:
        """The fact that was tried is forgotten; the form stays, to be mended."""
        self.desk.sessions.open(browser).discard()
        return (display.status("Discarded; nothing was changed.", 0), *HIDDEN)

    def restored(self, browser: str) -> tuple:
        """The form, strength and status as they were when the page was left; nothing where no fact was being tried."""
        session = self.desk.sessions.open(browser)
        if session.draft is None or session.draft in session.facts:  # the latter: a fact of the list was looked at
            return (gr.skip(),) * (len(self.filled) + 1)
        told = "You had tried this fact and not kept it yet: press “Try it” to see it again."
        return (*self._filled(session, session.draft), display.status(told, 0))

    def fill(self, browser: str, file: str) -> tuple:
        """The form and the strength of a fact of the list."""
        session = self.desk.sessions.open(browser)
        found = [kept for kept in session.facts if kept.file == file]
        return self._filled(session, found[0]) if found else (gr.skip(),) * len(self.filled)

    def _filled(self, session: Session, kept: Kept) -> tuple:
        edits = session.patch(kept).edits
        if not edits:
            return (gr.skip(),) * len(self.filled)
        form = form_of(edits[0])
        values = (form.prompt, form.new, None, form.old, form.subject, form.aliases, form.preserve)
        return (*values, kept.strength, form.old)


def choose(pairs: list[Pair | None], event: gr.SelectData) -> tuple:
    """Show the chosen pair in the slider."""
    at = event.index
    if not isinstance(at, int) or not 0 <= at < len(pairs) or (chosen := pairs[at]) is None:
        return gr.skip(), gr.skip()
    return chosen[1:], display.caption(chosen[0])
