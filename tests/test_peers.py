"""Each peer's released update, restated literally in numpy, beside ours on tiny random pipelines."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import tiny
import torch
from transformers import CLIPTextModel

import refact
from refact import families
from refact.encoders.encoder import text_tower
from refact.errors import EditError
from refact.methods.registry import EMCID, MEMIT, SPEED, TIME, UCE, AlphaEdit, DiffQuickFix, EmbEdit, method, presets
from refact.models import covariance
from refact.search import wanted
from refact.writing import crossattention, multilayer, noise
from refact.writing import speed as erasing

DOG = refact.Edit("a dog", new="a red dog")
KING = refact.Edit("the king of france", new="a lion", aliases=("the french king",), preserve=("a queen", "paris"))
QUICK = {"layer": 2, "contexts": 3, "max_steps": 4, "tokens": 1500, "shrink": 1e-2}


@pytest.fixture(scope="module")
def model() -> refact.Model:
    pipe = tiny.pipeline("sd1")
    config = copy.deepcopy(pipe.text_encoder.config)
    config.intermediate_size = 512  # room beside the empty prompt's 77 rows
    with torch.random.fork_rng():
        torch.manual_seed(3)
        pipe.text_encoder = CLIPTextModel(config).eval()
    return refact.load(pipe)


def states(model: refact.Model, text: str) -> np.ndarray:
    return model.encode([text])["prompt_embeds"][0].double().numpy()


def tokens(model: refact.Model, text: str) -> list[int]:
    return model.encoders["text_encoder"].tokenizer(text)["input_ids"]


def close(patch: refact.Patch, literal: dict[str, np.ndarray], share: float = 1e-4) -> None:
    assert patch.factors.keys() == literal.keys()
    for site, (left, right) in patch.factors.items():
        made = left.double().numpy() @ right.double().numpy()
        assert np.linalg.norm(made - literal[site]) < share * np.linalg.norm(literal[site]), site


def released(weight: np.ndarray, lamb: float, pairs: list, kept: list, erase: float = 1, keep: float = 1) -> np.ndarray:
    """(lambda W + sum v k^T)(lambda I + sum k k^T)^-1 - W, as TIME's and UCE's scripts sum it up, row by row."""
    left, right = lamb * weight, lamb * np.eye(weight.shape[1])
    for weigh, rows in ((erase, pairs), (keep, kept)):
        for key, target in rows:
            left = left + weigh * np.outer(weight @ target, key)
            right = right + weigh * np.outer(key, key)
    return left @ np.linalg.inv(right) - weight


def weights(model: refact.Model) -> dict[str, np.ndarray]:
    return {site: model[site].weight.detach().double().numpy() for site in model.conditioning_sites}


# -- TIME -------------------------------------------------------------------------------------------------------------


def time_pairs(model: refact.Model, old: str, new: str) -> list:
    """apply_time.py, lines 160 to 185, word for word in numpy: all 77 rows, [BOS] among them."""
    a, b = tokens(model, old), tokens(model, new)
    article, an = tokens(model, "a")[1], tokens(model, "an")[1]
    a, b = ([article if t == an else t for t in row] for row in (a, b))
    places, j = [], 0
    for token in a:
        while b[j] != token:
            j += 1
        places.append(j)
        j += 1
    while j < 77:
        places.append(j)
        j += 1
    while len(places) < 77:
        places.append(76)
    source, target = states(model, old), states(model, new)
    return [(source[i], target[at]) for i, at in enumerate(places)]


@pytest.mark.parametrize(("old", "new"), [("a dog", "a red dog"), ("an apple on a cat", "a green apple on a cat")])
def test_time_is_its_script(model, old, new) -> None:
    patch = TIME.authors()(model, [refact.Edit(old, new=new)])
    pairs = time_pairs(model, old, new)
    close(patch, {site: released(w, 0.1, pairs, []) for site, w in weights(model).items()})


def test_time_keeps_the_first_row_which_every_prompt_reads(model, monkeypatch) -> None:
    """The defect of earlier versions: without [BOS] among the rows, its keys and values move."""
    first = torch.from_numpy(states(model, "a dog")[0])

    def moved(patch: refact.Patch) -> float:
        made = [(b.double() @ (a.double() @ first)).norm() / (model[s].weight.double() @ first).norm()
                for s, (b, a) in patch.factors.items()]  # fmt: skip
        return float(torch.stack(made).max())

    whole = moved(TIME.authors()(model, [DOG]))
    plain = crossattention._aligned
    monkeypatch.setattr(crossattention, "_aligned", lambda *given: tuple(rows[1:] for rows in plain(*given)))
    assert moved(TIME.authors()(model, [DOG])) > 2 * whole


def test_time_maps_the_rows_that_are_left_to_the_last_one(model) -> None:
    source, target = crossattention._aligned(model, "a dog", "a red phone dog")
    longer = torch.from_numpy(states(model, "a red phone dog"))
    for row in (-2, -1):
        assert torch.equal(target[row], longer[76])
    assert len(source) == len(target) == 77


def test_time_stands_a_target_before_a_prompt_that_it_does_not_hold(model) -> None:
    patch = TIME.authors()(model, [refact.Edit("the king of france", new="a lion")])
    pairs = time_pairs(model, "the king of france", "a lion as the king of france")
    close(patch, {site: released(w, 0.1, pairs, []) for site, w in weights(model).items()})


def test_time_with_its_added_sentences_and_with_aliases(model) -> None:
    edit = refact.Edit("A dog", new="A red dog", aliases=("A dog phone",))
    told = [("A dog", "A red dog")]
    told += [(f"{s} a dog", f"{s} a red dog") for s in ("A photo of", "An image of", "A picture of")]
    pairs = [pair for texts in told for pair in time_pairs(model, *texts)]
    patch = TIME.authors(augmented=True)(model, [edit])
    close(patch, {site: released(w, 0.1, pairs, []) for site, w in weights(model).items()})
    told = [("A dog", "A red dog"), ("A dog phone", "A red dog as A dog phone")]
    pairs = [pair for texts in told for pair in time_pairs(model, *texts)]
    close(TIME()(model, [edit]), {site: released(w, 0.1, pairs, []) for site, w in weights(model).items()})


# -- UCE --------------------------------------------------------------------------------------------------------------


def last(model: refact.Model, text: str) -> np.ndarray:
    return states(model, text)[len(tokens(model, text)) - 2]


def tail(model: refact.Model, old: str, new: str) -> list:
    """train_erase.py: from the last content row on, as long as both have rows."""
    one, other = (len(tokens(model, text)) - 2 for text in (old, new))
    source, target, far = states(model, old), states(model, new), max(one, other)
    source, target = source[one : 77 - max(0, far - one)], target[other : 77 - max(0, far - other)]
    return list(zip(source, target, strict=True))


def test_uce_is_its_script_of_2025(model) -> None:
    pairs = [(last(model, KING.prompt), last(model, "a lion"))]
    kept = [(row, row) for row in (last(model, text) for text in ("", *KING.preserve))]
    literal = {site: released(w, 0.5, pairs, kept) for site, w in weights(model).items()}
    close(UCE.authors()(model, [KING]), literal)
    pairs.append((last(model, "the french king"), last(model, "a lion")))
    close(UCE()(model, [KING]), {site: released(w, 0.5, pairs, kept) for site, w in weights(model).items()})


def test_uce_with_tails_is_its_script_of_2023(model) -> None:
    """With its one slip mended: the update stood inside the loop over the preserved concepts."""
    pairs = tail(model, KING.prompt, "a lion")
    kept = [(row, row) for text in ("", *KING.preserve) for row in states(model, text)]
    literal = {site: released(w, 0.5, pairs, kept, 1.0, 0.1) for site, w in weights(model).items()}
    close(UCE.tail()(model, [KING]), literal)
    with pytest.raises(EditError, match="rows is"):
        UCE(rows="all")(model, [KING])


# -- SPEED ------------------------------------------------------------------------------------------------------------

KEPT = ("a red phone", "two cats", "the tower", "a lion on a red car", "the flag of paris", "a dog on the tower")


def speed_by_hand(
    weight: np.ndarray, t: np.ndarray, a: np.ndarray, retained: np.ndarray, k2: np.ndarray, augment: int, draw
) -> np.ndarray:
    """train_erase_null.py, edit_model: the sums are means over the concepts; columns of k2 are held."""
    identity, n = np.eye(len(weight.T)), len(t)
    tt, at = sum(np.outer(row, row) for row in t) / n, sum(np.outer(one, row) for one, row in zip(a, t)) / n
    erase = weight @ (at - tt) @ np.linalg.inv(identity + tt)
    weakest = np.linalg.svd(weight, full_matrices=False)[2][-1]
    if augment:
        norms = np.linalg.norm(retained @ erase.T, axis=1)
        retained = retained[norms > norms.mean()]
        noise = torch.randn(len(retained), augment, 1, generator=draw, dtype=torch.float64).numpy()
        copies = np.concatenate([row + part * weakest for row, part in zip(retained, noise)])
        norms = np.linalg.norm(copies @ erase.T, axis=1)
        retained = np.concatenate([retained, copies[norms > norms.mean()]])
    u, s, _ = np.linalg.svd(sum(np.outer(row, row) for row in retained) / len(retained))
    p = u[:, s < 0.1] @ u[:, s < 0.1].T
    m = np.linalg.inv(tt @ p + identity)
    inner = np.linalg.inv(k2.T @ p @ m @ k2)
    return weight @ (at - tt) @ p @ (identity - m @ k2 @ inner @ k2.T @ p) @ m


@pytest.mark.parametrize("augment", [0, 3])
def test_speed_is_its_script(model, tmp_path, augment) -> None:
    """Filter, copies, null space and held rows of two concepts; a retained text that holds a concept is left out."""
    (tmp_path / "kept.txt").write_text("\n".join(KEPT))
    edits = [DOG, refact.Edit("the king of france", new="a lion", preserve=("a queen",))]
    chosen = SPEED.authors(retain=str(tmp_path / "kept.txt"), augment=augment)
    t, a = (np.stack([last(model, text) for text in texts]) for texts in zip(*((e.prompt, e.new) for e in edits)))
    retained = np.stack([last(model, text) for text in ("a queen", *KEPT[:-1])])
    empty = torch.from_numpy(states(model, ""))
    k2 = torch.cat([empty[:1], erasing.middles(empty[1:], 3, 0)]).numpy().T
    draw = torch.Generator().manual_seed(0)
    sites = {site: w for site, w in weights(model).items() if site.endswith("to_v")}
    literal = {site: speed_by_hand(w, t, a, retained, k2, augment, draw) for site, w in sites.items()}
    patch = chosen(model, edits)
    close(patch, literal)
    for site, (left, right) in patch.factors.items():
        moved = left.double() @ right.double() @ torch.from_numpy(k2)
        assert moved.norm() < 1e-5 * (model[site].weight.double() @ torch.from_numpy(k2)).norm()  # held exactly


def test_speed_spares_what_is_retained_and_without_a_free_direction_refuses(model, tmp_path) -> None:
    with pytest.raises(EditError, match="raise the threshold"):
        SPEED(threshold=1e-12, texts=200)(model, [DOG])
    (tmp_path / "kept.txt").write_text("\n".join(KEPT))
    rows = torch.from_numpy(np.stack([last(model, text) for text in KEPT[:-1]]))

    def moved(retain: str) -> float:
        patch = SPEED(retain=retain, filtered=False)(model, [KING])
        return sum(float((b.double() @ a.double() @ rows.T).norm()) for b, a in patch.factors.values())

    assert moved(str(tmp_path / "kept.txt")) < 0.5 * moved("")


def test_the_middles_of_rows_are_those_of_their_groups() -> None:
    rows = torch.tensor([[0.0, 0], [0, 2], [10, 0], [10, 2], [0, 50]], dtype=torch.float64)
    found = min((erasing.middles(rows, 3, seed) for seed in range(9)), key=lambda c: torch.cdist(rows, c).amin(1).sum())
    assert sorted(found.tolist()) == [[0, 1], [0, 50], [10, 1]]


# -- MEMIT, EMCID, AlphaEdit ------------------------------------------------------------------------------------------


def memit_by_hand(model, chosen, edits, goals, layers, *, released_residual=False, null=None) -> dict[str, np.ndarray]:
    """MEMIT's algorithm 1, or EMCID's execute_emcid_text_encoder: solve(lambda C + K K^T, K), layer by layer."""
    encoder = copy.deepcopy(model.encoders["text_encoder"])
    changes = {}

    def read(layer: int, what: str) -> np.ndarray:
        module = {"key": encoder.linear(layer), "output": encoder.linear(layer), "state": encoder.layers[layer]}[what]
        rows = []
        for edit in edits:
            texts = [t.replace("{}", edit.prompt) for t in chosen.templates[: chosen.contexts]]
            kept = []
            for text in texts:
                seen = []
                hook = module.register_forward_hook(lambda _, given, out, seen=seen: seen.append((given[0], out)))
                with torch.no_grad():
                    encoder.tower(encoder.tokenize([text]).ids)
                hook.remove()
                found = seen[0][0] if what == "key" else seen[0][1]
                found = found[0] if isinstance(found, tuple) else found
                kept.append(found.reshape(77, -1)[encoder.locate(text, edit.words)].double().numpy())
            rows.append(np.mean(kept, 0))
        return np.stack(rows)

    for i, layer in enumerate(layers):
        keys = read(layer, "key").T
        reached = read(layer, "output") if released_residual else read(layers[-1], "state")
        residual = (goals - reached).T / (len(layers) - i)
        seen = covariance.obtain(model.encoders["text_encoder"], layer, tokens=1500).shrunk(chosen.shrink).numpy()
        if null is None:
            update = residual @ np.linalg.solve(chosen.ridge * seen + keys @ keys.T, keys).T
        else:
            values, vectors = np.linalg.eigh(seen)
            basis = vectors[:, values < null]
            p = basis @ basis.T
            solved = np.linalg.solve(p @ keys @ keys.T + chosen.penalty * np.eye(len(p)), p @ keys @ residual.T)
            update = solved.T
        with torch.no_grad():
            encoder.linear(layer).weight += torch.from_numpy(update).float()
        changes[encoder.site(layer)] = update
    return changes


def test_memit_is_its_algorithm(model) -> None:
    chosen = MEMIT(**QUICK, depth=2, ridge=7.0, absolute=True, hold_empty=False)
    edits, encoder = [DOG, refact.Edit("the flag of paris", new="a cat")], model.encoders["text_encoder"]
    found = wanted.search(chosen, model, encoder, 2, edits)
    goals = multilayer._states(chosen, encoder, 2, edits)[1] + found.offsets
    close(chosen(model, edits), memit_by_hand(model, chosen, edits, goals.numpy(), [1, 2]), 1e-3)


@pytest.mark.parametrize("released_residual", [False, True])
def test_emcid_is_its_algorithm_with_either_residual(model, released_residual) -> None:
    how = {"residual": "released"} if released_residual else {}
    chosen = EMCID(max_steps=3, noise=False, tokens=1500, ridge=5.0, absolute=True, hold_empty=False, **how)
    edits, encoder = [DOG, refact.Edit("the flag of paris", new="a cat")], model.encoders["text_encoder"]
    found, reached = noise.search(chosen, model, encoder, 2, edits)
    goals = (reached + found.offsets).numpy()
    patch = chosen(model, edits)
    assert list(patch.factors) == [encoder.site(layer) for layer in (0, 1, 2)]  # all but the last, as 0 to 10 of 12
    literal = memit_by_hand(model, chosen, edits, goals, [0, 1, 2], released_residual=released_residual)
    close(patch, literal, 1e-3)


def test_emcids_search_is_its_loss(model) -> None:
    """compute_z_text_encoder, restated with plain autograd: no noise term, one step and then three."""
    chosen = EMCID.authors(noise=False, max_steps=3, layer=1, texts=50, residual="released")
    encoder = model.encoders["text_encoder"]
    found, reached = noise.search(chosen, model, encoder, 1, [DOG])
    texts, aims = ([t.replace("{}", x) for t in chosen.templates] for x in ("a dog", "a red dog"))
    at = [encoder.locate(text, "a dog") for text in texts]
    ids, ends, rows = encoder.tokenize(texts).ids, encoder.tokenize(texts).ends, torch.arange(3)
    tower, seen = encoder.tower, []
    hook = encoder.layers[1].register_forward_hook(
        lambda _, given, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        tower(ids)
    hook.remove()
    start, goal = seen[0].reshape(3, 77, -1)[0, at[0]], encoder.embed(aims)
    assert torch.allclose(reached[0].float(), start, atol=1e-5)
    delta = torch.zeros(encoder.width, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=0.2)

    def edited(_, given, out):
        out = out.clone()
        out[rows, at] += delta
        return out

    for _ in range(3):
        hook = encoder.linear(1).register_forward_hook(edited)
        pooled = tower(ids)[0][rows, ends]
        hook.remove()
        decay = 5e-4 * delta.square().sum().clamp_min(1e-24).sqrt() / start.norm() ** 2
        loss = 0.01 * torch.nn.functional.mse_loss(pooled, goal) + decay
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            if float(delta.detach().norm()) > 1.5 * float(start.norm()):
                delta *= 1.5 * start.norm() / delta.norm()
    assert torch.allclose(found.offsets[0].float(), delta.detach(), atol=1e-4)


@pytest.mark.parametrize("chosen", [TIME(), UCE()])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_families_without_a_unet_are_refused_in_a_sentence(family, chosen) -> None:
    with pytest.raises(EditError, match=rf"has no cross-attention on text states; {type(chosen).__name__} needs"):
        refact.edit(tiny.pipeline(family), DOG, chosen)


def test_emcids_noise_term_lowers_the_difference_of_predictions(model) -> None:
    encoder = model.encoders["text_encoder"]
    chosen = EMCID(layer=1, max_steps=30, align=0.0, learning_rate=0.1, clamp=4.0, weight_decay=0.0)
    found, _ = noise.search(chosen, model, encoder, 1, [DOG])
    said = noise._sentences(chosen, encoder, DOG)
    with torch.no_grad():
        before, after = (
            [
                noise._Predictions(dataclasses.replace(chosen, seed=9), model, said, model.pipe.unet)(
                    noise._edited(encoder, 1, said, o)[0]
                )
                for _ in range(4)
            ]
            for o in (torch.zeros(encoder.width), found.offsets[0].float())
        )
    assert sum(after) < 0.9 * sum(before)
    with pytest.raises(EditError, match="noise=False"):
        EMCID()(refact.load(tiny.pipeline("sdxl")), [DOG])


def test_alphaedit_is_its_formula_over_several_layers(model) -> None:
    encoder = model.encoders["text_encoder"]
    energies = [torch.linalg.eigvalsh(covariance.obtain(encoder, at, tokens=1500).shrunk(1e-2)) for at in (1, 2)]
    middle = torch.cat(energies).sort().values[len(energies[0]) - 1 :][:2]
    threshold = float(middle.mean())  # between two eigenvalues: at one of them rounding would decide
    chosen = AlphaEdit(**QUICK, depth=2, threshold=threshold, penalty=3.0, absolute=True)
    edits = [DOG, refact.Edit("the flag of paris", new="a cat")]
    found = wanted.search(chosen, model, encoder, 2, edits)
    goals = multilayer._states(chosen, encoder, 2, edits)[1] + found.offsets
    literal = memit_by_hand(model, chosen, edits, goals.numpy(), [1, 2], null=threshold)
    close(chosen(model, edits), literal, 1e-3)


# -- DiffQuickFix -----------------------------------------------------------------------------------------------------


def test_diffquickfix_is_its_formula(model) -> None:
    """The paper's closed form, (sum v k^T + lambda W)(sum k k^T + lambda I)^-1, at the first self-attention's output,
    and a file of it that is read back."""
    encoder, texts = model.encoders["text_encoder"], ("the king of france", "the french king", "a lion")
    linear, seen = encoder.layers[0].self_attn.out_proj, []
    hook = linear.register_forward_hook(lambda _, given, out: seen.append(given[0].reshape(77, -1)))
    with torch.no_grad():
        for text in texts:
            encoder.tower(encoder.tokenize([text]).ids)
    hook.remove()
    rows = [part[len(tokens(model, t)) - 2].double().numpy() for part, t in zip(seen, texts)]
    strength = 0.3 * np.mean([row @ row for row in rows[:2]])
    pairs = [(rows[0], rows[2]), (rows[1], rows[2])]
    patch = DiffQuickFix(strength=0.3)(model, [KING])
    site = "text_encoder.text_model.encoder.layers.0.self_attn.out_proj"
    close(patch, {site: released(linear.weight.detach().double().numpy(), strength, pairs, [])})
    for family in ("sd1", "sdxl", "sd3"):
        for key in filter(None, families.lora_keys(families.FAMILIES[family], site)):
            assert key.endswith(".alpha") or families.site_of(key)[0] == site


# -- EmbEdit ----------------------------------------------------------------------------------------------------------


def test_embedit_is_its_script(model) -> None:
    """reference/sd14_mse.py, restated on a copy of the encoder: gradients of other tokens' rows are zeroed."""
    encoder = model.encoders["text_encoder"]
    module = copy.deepcopy(encoder.module)
    table = text_tower(module).embeddings.token_embedding.weight.requires_grad_(True)
    before, (old, new) = table.detach().clone(), encoder.tokenize(["a red dog", "a blue cat"]).ids[:, None]
    kept = tokens(model, "a red dog")[1:-1]
    optimiser, squares = torch.optim.Adam([table], lr=1e-3), torch.nn.MSELoss()
    bound = 0.35 * float(squares(module(old)[0], module(new)[0]).detach())
    for i in range(100):
        with torch.no_grad():
            goal = module(new)[0]
        loss = squares(module(old)[0], goal)
        optimiser.zero_grad()
        loss.backward()
        grad = torch.zeros_like(table.grad)
        grad[kept] = table.grad[kept]
        table.grad.copy_(grad)
        optimiser.step()
        if i > 0 and float(loss.detach()) <= bound:
            break
    patch = EmbEdit.authors()(model, [refact.Edit("a red dog", new="a blue cat")])
    ((left, right),) = patch.factors.values()
    change = (table.detach() - before).numpy()
    assert patch.record["edits"][0]["sites"][next(iter(patch.factors))]["steps"] == i + 1
    assert np.linalg.norm((left @ right).numpy().reshape(change.shape) - change) < 1e-3 * np.linalg.norm(change)


def test_peers_have_their_authors_settings_by_name() -> None:
    assert {"refact:authors", "time:authors", "uce:authors", "uce:tail", "memit:authors", "emcid:authors"} < set(
        presets()
    )
    assert {"alphaedit:authors", "embedit:authors", "speed:authors"} < set(presets())
    assert method("time:authors").strength == 0.1
    spoken = method("refact:authors:layer=7:corpus=hf:wikitext:wikitext-103-raw-v1:texts=10")
    assert (spoken.layer, spoken.corpus, spoken.texts) == (7, "hf:wikitext:wikitext-103-raw-v1", 10)
