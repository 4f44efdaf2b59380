"""Caption agreement: what a captioner says of an image means what its caption means, by sentence embeddings."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from stages.label.rewards._pixels import image
from stages.parts import part
from stages.records import Candidate, Prompt

BLANK = "an empty picture"


@part(paper="arXiv 1908.10084", needs=("encoder",), range=(-1.0, 1.0), families=("image",))
def caption_agreement(prompts: list[Prompt], candidates: list[Candidate], *, encoder: Any) -> list[float | None]:
    """Cosine of the caption's embedding and that of the nearest thing that can truly be said of the image.

        r = max over what the captioner says of cos(e(caption), e(said))

    The captioner is the detector of scenes: coloured shapes on a plain ground. It names everything that it sees, with
    and without colours and sizes, and where two kinds of thing lie from each other. It says several things since a
    caption that leaves a colour open is no less true.

    Args:
        prompts: the last message is the caption.
        candidates: images.
        encoder: `.embed(list[str])` gives rows of norm 1, `[n,d]`.

    Returns:
        A number in [-1, 1] each, 1 where the caption is among what is said, None where there is no image.

    Differences from the paper: none in the cosine; the encoder is whichever the stage was given.

    Example: a red cross is a cross.

    >>> import torch
    >>> from stages.images import encode
    >>> from stages.scenes.draw import render
    >>> from stages.scenes.words import Scene
    >>> class Letters:  # counts of a to z
    ...     def embed(self, texts):
    ...         counts = torch.tensor([[float(t.count(chr(97 + i))) for i in range(26)] for t in texts])
    ...         return torch.nn.functional.normalize(counts, dim=1)
    >>> drawn = encode(render(Scene(objects=({"shape": "cross", "color": "red"},)), 0))
    >>> asked = [Prompt(id="p", messages=({"role": "user", "content": c},)) for c in ("a cross", "a blue cross")]
    >>> seen = Candidate(id="p/0", prompt="p", image=drawn)
    >>> [round(r, 3) for r in caption_agreement(asked, [seen, seen], encoder=Letters())]
    [1.0, 0.816]

    Source: Reimers and Gurevych, Sentence-BERT, EMNLP 2019, arXiv 1908.10084.
    """
    said = [describe(image(c)) if c.image else [] for c in candidates]
    captions = [prompt.messages[-1].content for prompt in prompts]
    texts = sorted({*captions, *(text for some in said for text in some)})
    row = {text: i for i, text in enumerate(texts)}
    e = encoder.embed(texts)  # [n,d]
    best = [
        max((float(e[row[caption]] @ e[row[text]]) for text in some), default=None)
        for caption, some in zip(captions, said, strict=True)
    ]
    return [value if value is None else min(max(value, -1.0), 1.0) for value in best]


def describe(pixels: Tensor) -> list[str]:
    """What can truly be said of a scene `[c,h,w]` in [-1, 1], each naming all that is there.

    Up to four of a kind are counted; what has no known shape is passed over.
    """
    from stages.scenes.look import detect
    from stages.scenes.words import COUNTS, Relation, Scene, Thing, caption

    found = [one for one in detect(pixels) if one.shape]
    scenes = []
    for looks in (("shape",), ("shape", "color"), ("shape", "color", "size")):
        kinds = Counter(tuple(getattr(one, look) for look in looks) for one in found)
        things = [Thing(**dict(zip(looks, kind)), count=min(n, len(COUNTS))) for kind, n in kinds.items()]
        if things:
            scenes += [Scene(objects=tuple(things)), Scene(objects=tuple(things[::-1]))]
        if len(things) == 2:
            members = [[one for one in found if tuple(getattr(one, look) for look in looks) == kind] for kind in kinds]
            for a, b in ((0, 1), (1, 0)):
                related = [Relation(a=a, b=b, where=where) for where in _everywhere(members[a], members[b])]
                scenes += [Scene(objects=tuple(things), relation=relation) for relation in related]
    return list(dict.fromkeys(map(caption, scenes))) or [BLANK]


def _everywhere(ones: list, others: list) -> list:
    """Where all of `ones` lie from all of `others`."""
    from stages.scenes.look import relations

    where = [relations(a.box, b.box) for a in ones for b in others]
    return sorted(where[0].intersection(*where[1:]))
