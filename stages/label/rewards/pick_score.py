"""PickScore: a CLIP that learnt which of two images people picked for a caption."""

from functools import partial

from torch import Tensor

from stages.label.rewards import _vision as vision
from stages.label.rewards._pixels import told
from stages.parts import part
from stages.records import Candidate, Prompt

WHERE = "reward pick_score model"
MODEL = "yuvalkirstain/PickScore_v1"
WORDS = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@part(paper="arXiv 2305.01569", equation="1", range=(-100.0, 100.0), families=("image",))
def pick_score(
    prompts: list[Prompt], candidates: list[Candidate], *, model: str = MODEL, tokenizer: str = WORDS
) -> list[float | None]:
    """Cosine of image and caption, times the temperature that the model learnt.

        r = T * cos(e(x), e(c))        P(x is picked over y) = sigmoid(r(x) - r(y))

    Images lie between 15 and 26. A panel's scale divides by 200: with `temperature: 0.005` a panel of this reward
    alone gives the model's own probabilities.

    Args:
        prompts: the last message is the caption.
        candidates: images.
        model: hub id or local folder of the fine-tuned CLIP, in safetensors.
        tokenizer: hub id or local folder with its tokenizer, which the published model's authors take from the
            CLIP they started from; "" for the model's own.

    Returns:
        Log-odds in [-100, 100] each, None where there is no image.

    Raises:
        UserError: the model cannot be had; also where there is no candidate at all, so that one can find out first.

    Differences from the paper: none; some report cosines without T, which is 100.

    Source: Kirstain et al., Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation, NeurIPS 2023.
    """
    vision.clip(model, where=WHERE), vision.tokenizer(tokenizer or model, where=WHERE)
    return told(pick_score, partial(pixels, model=model, tokenizer=tokenizer), prompts, candidates)


def pixels(images: Tensor, prompts: list[Prompt], *, model: str = MODEL, tokenizer: str = WORDS) -> Tensor:
    """The same `[b]` of images `[b,c,h,w]` in [-1, 1], differentiable."""
    captions = [prompt.messages[-1].content for prompt in prompts]
    scale = vision.clip(model, where=WHERE).logit_scale.exp().to(images.device)
    return scale * vision.cosine(images, captions, model, tokenizer, where=WHERE)
