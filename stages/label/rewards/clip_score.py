"""CLIP score: how well an image fits its caption, by the cosine of CLIP's embeddings."""

from functools import partial

from torch import Tensor

from stages.label.rewards import _vision as vision
from stages.label.rewards._pixels import told
from stages.parts import part
from stages.records import Candidate, Prompt

WHERE = "reward clip_score model"


@part(paper="arXiv 2104.08718", equation="1", range=(0.0, 100.0), families=("image",))
def clip_score(
    prompts: list[Prompt], candidates: list[Candidate], *, model: str = "openai/clip-vit-large-patch14"
) -> list[float | None]:
    """A hundred times the cosine of image and caption.

        r = 100 * max(cos(e(x), e(c)), 0)

    Real captions and images lie between 15 and 35, which a panel's scale makes 0.15 to 0.35: a panel of this reward
    alone wants a `temperature` of about 0.01.

    Args:
        prompts: the last message is the caption.
        candidates: images.
        model: hub id or local folder of a CLIP model with its tokenizer, in safetensors.

    Returns:
        A number in [0, 100] each, None where there is no image.

    Raises:
        UserError: the model cannot be had; also where there is no candidate at all, so that one can find out first.

    Differences from the paper: the factor is 100, as the field reports it, where the paper has 2.5; no prefix
    ("A photo depicts") is put before the caption.

    Source: Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning, EMNLP 2021.
    """
    vision.clip(model, where=WHERE), vision.tokenizer(model, where=WHERE)
    return told(clip_score, partial(pixels, model=model), prompts, candidates)


def pixels(images: Tensor, prompts: list[Prompt], *, model: str = "openai/clip-vit-large-patch14") -> Tensor:
    """The same `[b]` of images `[b,c,h,w]` in [-1, 1], differentiable."""
    captions = [prompt.messages[-1].content for prompt in prompts]
    return 100 * vision.cosine(images, captions, model, model, where=WHERE).clamp(min=0)
