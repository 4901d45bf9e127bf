"""`refact stats` and `refact models`: what is known of a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import RefactError, shown
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
    by: Annotated[
        str, typer.Option("--method", help="The method to collect for; by default what edits of this model use.")
    ] = "",
    tokens: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="How many tokens to read; by default as the method.")
    ] = None,
    texts: Annotated[
        int | None, typer.Option(min=0, max=10**9, help="How many texts to read, instead of tokens.")
    ] = None,
    cut: Annotated[
        int | None, typer.Option(min=0, max=10**6, help="Longest text in tokens; 0: as the encoder has it.")
    ] = None,
    padding: Annotated[bool | None, typer.Option(help="Count the pipeline's padding rows too.")] = None,
    rarity: Annotated[
        float | None, typer.Option(min=0, max=4, help="Weight of a key: its token's frequency to minus this power.")
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    *,
    cluster: Any,
) -> None:
    """Collect the second moments of the MLPs' inputs over a corpus, and keep it in the cache ($REFACT_CACHE).

    Statistics are found again by methods that ask for the same ones, down to each of these settings.

    Example: refact stats -m stable-diffusion-v1-5/stable-diffusion-v1-5 --layer 7 --layer 9
    """
    from ..methods.registry import method
    from ..methods.usual import usual_for
    from ..models.covariance import obtain_all, together
    from ..models.parallel import joined, of_encoder

    ready = open_model(model, "cpu" if cluster else device, None)
    like = method(by) if by else usual_for(ready, [])
    if not hasattr(like, "rarity"):
        raise RefactError(f"{by} uses no covariance")
    given = {"tokens": tokens, "texts": texts, "cut": cut, "padding": padding, "rarity": rarity}
    how: dict[str, Any] = {name: getattr(like, name) if value is None else value for name, value in given.items()}
    asked, count = corpus or getattr(like, "corpus", "") or ready.corpus, how.pop("texts")
    deepest = max(ready.encoders.values(), key=lambda encoder: encoder.n_layers)
    for at in layer or ():
        deepest.linear(at)  # raises where there is none
    wanted = {e.name: [at for at in layer or e.effective if at < e.n_layers] for e in ready.encoders.values()}
    with joined(cluster):
        for encoder in ready.encoders.values():
            over = of_encoder(ready, encoder.name, cluster)
            for some in together(encoder, wanted[encoder.name]):
                found = obtain_all(encoder, some, asked, **how, count=count, progress=bar(quiet), over=over)
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
