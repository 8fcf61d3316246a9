"""The README.md of an exported folder: what the network is, and how to draw with it."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

SHOWN = 20  # class names
MAX_NOTE = 300  # characters of a note on the data


@dataclass(frozen=True)
class CardFacts:
    """What a card says beyond the pipeline's own config.

    Attributes:
        name: of the exported folder, and so of the model.
        weights: which of the run's weights.
        images_seen: images seen in training by then.
        data_source: where the training images came from.
        data_licence: note on what they may be used for.
        data_images: how many there are.
        licence: of the weights, as the hub abbreviates it; None where the exporter did not say.
    """

    name: str
    weights: str
    images_seen: int
    data_source: str
    data_licence: str
    data_images: int
    licence: str | None


def model_card(
    facts: CardFacts,
    *,
    image_size: int,
    parameters: int,
    class_names: Sequence[str],
    num_classes: int,
    scheduler: dict[str, Any],
) -> str:
    """The text of a model card.

    Args:
        facts: what is known from training. Notes on the data are not trusted: one line, escaped.
        image_size: side of the images in pixels.
        parameters: of the network.
        class_names: of the classes, by label.
        num_classes: that the network has room for; 0 if it is unconditional.
        scheduler: config of the `PixelScheduler`.
    """
    rows = {
        "images": f"{image_size} x {image_size} pixels, no autoencoder",
        "parameters": f"{parameters:,}",
        "classes": _classes(class_names, num_classes),
        "weights": f"`{facts.weights}`, after {facts.images_seen:,} images of training",
        "prediction": f"`{scheduler['prediction_type']}`",
        "noise schedule": f"`{_schedule(scheduler['schedule'])}`",
        "sampling by default": _sampling(scheduler),
        "training data": f"{facts.data_images:,} images: {_note(facts.data_source)}",
        "licence of that data": _note(facts.data_licence),
        "licence of these weights": facts.licence or "not stated",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
{_front_matter(facts, num_classes)}---

# {_note(facts.name)}

A pixel-space image diffusion model, trained with simple_diffusion.

| | |
|---|---|
{table}

## Use

With `diffusers` and `simple_diffusion` installed (the network is defined there), and this folder
downloaded:

```python
import simple_diffusion.pipelines
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({facts.name!r})
{_call(class_names, num_classes)}
images[0].save("image.png")
```

Image number i of a set depends on `seed`, i and its class alone; other images come from another
`seed` or `first_index`.
"""


def _front_matter(facts: CardFacts, num_classes: int) -> str:
    tags = ["simple-diffusion", "diffusers", "pixel-space-diffusion", "image-generation"]
    if num_classes:
        tags.append("class-conditional")
    front = {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",  # the hub has no tag for classes
        "license": facts.licence or "unknown",
        "tags": tags,
    }
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _classes(names: Sequence[str], num_classes: int) -> str:
    if not num_classes:
        return "none (unconditional)"
    if not names:
        return f"{num_classes}, without names"
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{len(names):,}: {', '.join(_note(name) for name in names[:SHOWN])}{more}"


def _schedule(tree: dict[str, Any]) -> str:
    fields = [
        f"{key}={_schedule(value) if isinstance(value, dict) else f'{value:g}'}"
        for key, value in tree.items()
        if key != "type"
    ]
    return f"{tree['type']}({', '.join(fields)})"


def _sampling(scheduler: dict[str, Any]) -> str:
    text = (
        f"`{scheduler['sampler']}`, {scheduler['num_inference_steps']} steps even in "
        f"`{scheduler['spacing']}`, guidance {scheduler['guidance_scale']:g}"
    )
    low, high = scheduler["guidance_interval"]
    if low is None and high is None:
        return text
    ends = ["-∞" if low is None else f"{low:g}", "∞" if high is None else f"{high:g}"]
    return f"{text} for λ in [{', '.join(ends)}]"


def _call(names: Sequence[str], num_classes: int) -> str:
    if not num_classes:
        return "images = pipe(num_images=4, seed=0).images"
    some: list[str] | list[int] = list(names[:2]) or list(range(min(2, num_classes)))
    return f"images = pipe(class_labels={some!r}, num_images=4, seed=0).images"


def _note(text: str) -> str:
    """Text of unknown origin as one line that neither HTML nor a table cell can break out of."""
    line = " ".join(text.split())
    line = line if len(line) <= MAX_NOTE else line[: MAX_NOTE - 1] + "…"
    for mark in "\\`*_[]|#":
        line = line.replace(mark, f"\\{mark}")
    return html.escape(line, quote=False)
