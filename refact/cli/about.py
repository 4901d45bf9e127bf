"""`refact stats` and `refact models`: what is known of a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import shown
from .app import AsJson, Device, ModelName, Quiet, app, bar, open_model, say, tell_json
from .cluster import with_cluster


@app.command()
@with_cluster
def stats(
    model: ModelName = "pocket",
    layer: Annotated[
        list[int] | None, typer.Option(min=0, max=1000, help="Layers; by default every one that takes edits.")
    ] = None,
    corpus: Annotated[
        str, typer.Option(help="captions (built in), a text or csv file, or hf:NAME; by default what edits use.")
    ] = "",
    tokens: Annotated[int, typer.Option(min=1, max=10**9, help="How many tokens to read.")] = 100_000,
    texts: Annotated[int, typer.Option(min=0, max=10**9, help="How many texts to read, instead of tokens.")] = 0,
    cut: Annotated[int, typer.Option(min=0, max=10**6, help="Longest text in tokens; 0: as the encoder has it.")] = 0,
    padding: Annotated[bool, typer.Option(help="Count the pipeline's padding rows too.")] = False,
    rarity: Annotated[
        float, typer.Option(min=0, max=4, help="Weight of a key: its token's frequency to minus this power.")
    ] = 1.0,
    device: Device = None,
    quiet: Quiet = False,
    *,
    cluster: Any,
) -> None:
    """Collect the second moments of the MLPs' inputs over a corpus, and keep it in the cache ($REFACT_CACHE).

    Example: refact stats -m stable-diffusion-v1-5/stable-diffusion-v1-5 --layer 7 --layer 9
    """
    from ..models.covariance import obtain_all, together
    from ..models.parallel import joined, of_encoder

    ready = open_model(model, "cpu" if cluster else device, None)
    how: dict = {"rarity": rarity, "progress": bar(quiet), "count": texts, "cut": cut}
    with joined(cluster):
        for encoder in ready.encoders.values():
            over = of_encoder(ready, encoder.name, cluster)
            for some in together(encoder, layer or encoder.effective):
                found = obtain_all(encoder, some, corpus or ready.corpus, tokens, padding, **how, over=over)
                for at, made in found.items():
                    say(quiet, f"{encoder.site(at)}: {made.tokens} tokens of {made.corpus}")


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(help="'pocket', a folder or a hub id. Without it the families are listed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the families of models that can be edited, or describe one model, or list what the bundled model knows.

    Example: refact models pocket --json
    """
    from ..families import FAMILIES

    if name is None:
        rows = {f.name: {"title": f.title, "encoders": [e.name for e in f.encoders]} for f in FAMILIES.values()}
        lines = [f"{key:6} {row['title']:32} {', '.join(row['encoders'])}" for key, row in rows.items()]
        tell_json(rows) if as_json else say(False, *lines)
    elif name == "pocket":
        from .. import pocket

        world = pocket.world()
        named = {c["id"]: c["wordings"][0] for c in world["concepts"]}
        shows = {c["id"]: f" -> {named[c['depicts']]}" for c in world["concepts"] if c["kind"] == "role"}
        text = "\n".join(f"{c['kind']:7} {named[c['id']]}{shows.get(c['id'], '')}" for c in world["concepts"])
        tell_json(world) if as_json else say(False, text)
    else:
        ready = open_model(name)
        form = {"name": ready.name, "family": ready.family.name, "encoders": ready.fingerprints()}
        form["device"] = str(ready.device)
        tell_json(form) if as_json else say(False, *(f"{k}: {shown(v)}" for k, v in form.items()))
