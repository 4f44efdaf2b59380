"""Aesthetic: how beautiful an image is, by LAION's predictor on CLIP's image embedding; the caption has no say."""

from functools import partial

from torch import Tensor

from stages.label.rewards import _vision as vision
from stages.label.rewards._pixels import told
from stages.parts import part
from stages.records import Candidate, Prompt

WHERE = "reward aesthetic"
MODEL = "openai/clip-vit-large-patch14"
HEAD = "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE"


@part(paper="arXiv 2210.08402", range=(0.0, 10.0), families=("image",))
def aesthetic(
    prompts: list[Prompt], candidates: list[Candidate], *, model: str = MODEL, head: str = HEAD
) -> list[float | None]:
    """A head of linear layers on the unit embedding.

        r = W_n (... (W_1 e(x) + b_1) ...) + b_n        0 where it is below, 10 where it is above

    Its second version has layers of 1024, 128, 64, 16 and 1 with dropout and nothing else between them; its first
    version is one layer.

    Args:
        prompts: not read.
        candidates: images.
        model: hub id or local folder of CLIP ViT-L/14 in safetensors.
        head: safetensors file of the head, or a folder or hub id whose model.safetensors holds it, with tensors named
            `layers.<n>.weight` and `.bias`, or `weight` and `bias`. The authors publish a pickle, which is not read.

    Returns:
        A number in [0, 10] each (people rated 1 to 10), None where there is no image.

    Raises:
        UserError: the model or the head cannot be had; also where there is no candidate at all, so that one can find
            out first.

    Differences from the source: the bounds.

    Source: Schuhmann et al., LAION-5B, NeurIPS 2022, arXiv 2210.08402.
    """
    vision.clip(model, where=f"{WHERE} model"), vision.head(head, where=f"{WHERE} head")
    return told(aesthetic, partial(pixels, model=model, head=head), prompts, candidates)


def pixels(images: Tensor, prompts: list[Prompt], *, model: str = MODEL, head: str = HEAD) -> Tensor:
    """The same `[b]` of images `[b,c,h,w]` in [-1, 1], differentiable and without the bounds."""
    e = vision.embed_images(vision.clip(model, where=f"{WHERE} model"), images)  # [b,d]
    return vision.judged(e, vision.head(head, where=f"{WHERE} head"), where=f"{WHERE} head")
