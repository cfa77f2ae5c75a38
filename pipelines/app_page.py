"""The page of `mmdit app`, in gradio: a form, a player, and a gallery of what was made since the page was opened."""

import logging
import shutil
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from mmdit.errors import MmditError, Refused
from mmdit.pipelines.app import Form, Made, Playground, Stop

log = logging.getLogger(__name__)

# What is read beside a clip, in these words; the file holds all.
SHOWN = {
    "prompt": "prompt", "label": "label", "given": "first frame", "frames": "frames", "size": "size", "fps": "fps",
    "seed": "seed", "steps": "steps", "guidance": "guidance", "step": "trained for", "weights": "weights",
}  # fmt: skip
MOST_KEPT = 200  # clips of one visit
CSS = """
.said p { margin: 0; padding: .6em .8em; border-left: 4px solid; border-radius: 4px; overflow-wrap: anywhere }
.said p.wrong { border-color: #dc2626; background: #dc262618 }
.said p.note { border-color: #ca8a04; background: #ca8a0418 }
.gallery .grid-wrap { min-height: 0 }
.facts dl { display: grid; grid-template-columns: auto 1fr; gap: .15em 1em; margin: 0 }
.facts dt { opacity: .7 }
.facts dd { margin: 0; overflow-wrap: anywhere }
"""
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
Updates = dict[Any, Any]


@dataclass
class Visit:
    """One opened page: where its files are, what was made, newest first, and how to stop what is being made."""

    folder: Path
    made: list[Made] = field(default_factory=list)
    stop: Stop = field(default_factory=Stop)


class Page:
    """The page over a playground; what it makes goes into `folder`, a folder a visit, gone when the page is closed."""

    def __init__(self, playground: Playground, folder: Path, title: str) -> None:
        self.playground = playground
        self.folder = folder
        self.visits: dict[str, Visit] = {}
        with gr.Blocks(title="mmdit", analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            gr.Markdown(f"## mmdit\n{escape(title)}")
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self._form()
                with gr.Column(scale=3, min_width=320):
                    self._results()
            self._wire()
            self.blocks.unload(self.leave)

    def visit(self, request: gr.Request) -> Visit:
        """What belongs to the page that a request comes from."""
        name = str(request.session_hash)
        if name not in self.visits:
            self.visits[name] = Visit(self.folder / f"visit-{len(self.visits)}")
        return self.visits[name]

    def begin(self, request: gr.Request) -> Updates:
        """A clip was asked for: it can be cancelled from now on, and what was said before is gone."""
        self.visit(request).stop = Stop()
        return {self.go: gr.update(interactive=False), self.cancel: gr.update(interactive=True), self.said: ""}

    def make(self, values: Updates, request: gr.Request, progress: Any = gr.Progress()) -> Updates:  # noqa: B008
        """Makes what the form (a value a field of it) asks for; whatever is wrong becomes a sentence on the page."""
        ready = {self.go: gr.update(interactive=True), self.cancel: gr.update(interactive=False)}
        visit = self.visit(request)
        try:
            form = Form(**{name: values[entry] for name, entry in self.inputs.items()})
            made = self.playground.make(
                form, visit.folder, stop=visit.stop, progress=lambda done, steps: progress((done, steps), unit="steps")
            )
        except MmditError as error:
            kind = "wrong" if isinstance(error, Refused) else "note"
            return ready | {self.said: _sentence(str(error), kind)}
        except Exception as error:  # of any library below; the page stays whole and says so
            log.exception("the clip could not be made")
            line = f"the clip could not be made: {type(error).__name__}: {error}"
            return ready | {self.said: _sentence(line, "wrong")}
        visit.made.insert(0, made)
        del visit.made[MOST_KEPT:]
        gallery = gr.update(value=[_thumbnail(each) for each in visit.made], selected_index=0, visible=True)
        notes = _sentence("; ".join(made.notes), "note") if made.notes else ""
        return ready | self._show(made) | {self.gallery: gallery, self.said: notes}

    def choose(self, event: gr.SelectData, request: gr.Request) -> Updates:
        """A clip of the gallery was picked: it is shown, with how it was made."""
        return self._show(self.visit(request).made[event.index])

    def stop(self, request: gr.Request) -> Updates:
        """Cancels what is being made."""
        self.visit(request).stop.ask()
        return {self.cancel: gr.update(interactive=False)}

    def leave(self, request: gr.Request) -> None:
        """The page was closed: its clips are removed."""
        visit = self.visits.pop(str(request.session_hash), None)
        if visit is not None:
            visit.stop.ask()
            shutil.rmtree(visit.folder, ignore_errors=True)

    def _form(self) -> None:
        """The fields; `inputs` holds them by the names of `Form`, those that the model has no use for hidden."""
        pipeline = self.playground.pipeline
        frames, height, width = pipeline.default_size()
        labels = list(pipeline.labels or ())
        steps = self.playground.size_step()
        lengths = [(_length(n, self.playground.fps), n) for n in self.playground.lengths()]
        prompt = gr.Textbox(
            label="Prompt", lines=1, max_lines=5, placeholder="What to show, in words", visible=pipeline.has_text
        )
        choices = [("any", "")] * pipeline.has_text + [(name, name) for name in labels]
        label = gr.Dropdown(choices, value=choices[0][1] if choices else None, label="Label", visible=bool(labels))
        image = gr.Image(
            label="First frame",
            sources=["upload", "clipboard"],
            height=200,
            buttons=[],
            visible=self.playground.takes_image,
        )
        image.preprocess = _path  # type: ignore  # unread: the playground says what is wrong with it
        length = gr.Dropdown(lengths, value=frames, label="Length")
        with gr.Row(equal_height=True):
            seed = gr.Number(0, label="Seed", precision=0, min_width=100)
            gr.Button("Next seed", min_width=130, scale=0).click(
                None, seed, seed, js="seed => (seed ?? -1) + 1", api_visibility="private"
            )
        with gr.Accordion("Size and sampling", open=False):
            with gr.Row():
                tall = gr.Number(height, label="Height", precision=0, step=steps[0], min_width=100)
                wide = gr.Number(width, label="Width", precision=0, step=steps[1], min_width=100)
            own, unsaid = pipeline.defaults, pipeline.null_conditions.default_guidance()
            number = gr.Slider(1, max(100, own.steps), own.steps, step=1, precision=0, label="Steps")
            scale = unsaid if own.guidance is None else own.guidance
            guidance = gr.Slider(0, 10, scale, step=0.1, label="Guidance", info="1 is without")
        with gr.Row():
            self.go = gr.Button("Generate", variant="primary", scale=2, min_width=120)
            self.cancel = gr.Button("Cancel", interactive=False, scale=1, min_width=80)
        self.said = gr.HTML(elem_classes="said")
        self.inputs: dict[str, Any] = {
            "prompt": prompt, "label": label, "image": image, "frames": length, "height": tall, "width": wide,
            "seed": seed, "steps": number, "guidance": guidance,
        }  # fmt: skip

    def _results(self) -> None:
        self.player = gr.Video(label="Clip", interactive=False, autoplay=True, loop=True, height=400, buttons=[])
        self.picture = gr.Image(label="Picture", interactive=False, height=400, visible=False, buttons=[])
        self.facts = gr.HTML(elem_classes="facts")
        self.download = gr.DownloadButton("Download this clip", visible=False)
        self.gallery = gr.Gallery(
            label="Made since this page was opened", show_label=False, columns=5, fit_columns=False, height="auto",
            allow_preview=False, buttons=[], object_fit="contain", interactive=False, visible=False,
            elem_classes="gallery",
        )  # fmt: skip

    def _wire(self) -> None:
        shown = [self.player, self.picture, self.facts, self.download]
        buttons = [self.go, self.cancel, self.said]

        begun = gr.on(
            [self.go.click, self.inputs["prompt"].submit],
            self.begin, None, buttons, queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        begun.then(
            self.make, set(self.inputs.values()), [*buttons, *shown, self.gallery],
            show_progress_on=self.player, concurrency_limit=1, api_visibility="private",
        )  # fmt: skip
        self.cancel.click(self.stop, None, self.cancel, queue=False, api_visibility="private")
        self.gallery.select(self.choose, None, shown, show_progress="hidden", api_visibility="private")

    def _show(self, made: Made) -> Updates:
        clip, picture = (None, str(made.file)) if made.is_picture else (str(made.file), None)
        return {
            self.player: gr.update(value=clip, visible=not made.is_picture),
            self.picture: gr.update(value=picture, visible=made.is_picture),
            self.facts: _facts(made.about),
            self.download: gr.update(value=str(made.file), visible=True),
        }


def _path(upload: Any) -> str | None:
    return upload.path if upload else None


def _sentence(text: str, kind: str) -> str:
    text = text[:1].upper() + text[1:]
    return f'<p class="{kind}" role="{"alert" if kind == "wrong" else "status"}">{escape(text)}</p>'


def _facts(about: dict[str, Any]) -> str:
    rows = [(words, _value(name, about[name])) for name, words in SHOWN.items() if about.get(name) not in (None, "")]
    return "<dl>" + "".join(f"<dt>{words}</dt><dd>{escape(value)}</dd>" for words, value in rows) + "</dl>"


def _value(name: str, value: Any) -> str:
    if name == "given":
        return str(value["image"]["file"])
    if name == "step":
        return f"{value} steps"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _thumbnail(made: Made) -> tuple[str, str]:
    return str(made.still), f"seed {made.about['seed']}"


def _length(frames: int, fps: float) -> str:
    return "1 frame, a picture" if frames == 1 else f"{frames} frames, {frames / fps:.1f} s"
