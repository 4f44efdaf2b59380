"""Human preference score v2: a CLIP that learnt how people rank images of one caption."""

from functools import partial

from torch import Tensor

from stages.label.rewards import _vision as vision
from stages.label.rewards._pixels import told
from stages.parts import part
from stages.records import Candidate, Prompt

WHERE = "reward hps model"
MODEL = "adams-story/HPSv2-hf"
WORDS = "openai/clip-vit-base-patch32"


@part(paper="arXiv 2306.09341", range=(-1.0, 1.0), families=("image",))
def hps(
    prompts: list[Prompt], candidates: list[Candidate], *, model: str = MODEL, tokenizer: str = WORDS
) -> list[float | None]:
    """Cosine of image and caption under the fine-tuned CLIP.

        r = cos(e(x), e(c))        P(x is preferred to y) = sigmoid(100 * (r(x) - r(y)))

    Images lie between 0.2 and 0.35; papers often print 100 times that. A panel's scale halves it: with
    `temperature: 0.005` a panel of this reward alone gives the model's own probabilities.

    Args:
        prompts: the last message is the caption.
        candidates: images.
        model: hub id or local folder in the format of transformers' CLIPModel, in safetensors. The authors publish an
            open_clip pickle, which is not read: name a converted one (transformers ships the script for CLIP).
        tokenizer: hub id or local folder with a CLIP tokenizer (all published ones are the same); "" for the
            model's own.

    Returns:
        A number in [-1, 1] each, None where there is no image.

    Raises:
        UserError: the model cannot be had; also where there is no candidate at all, so that one can find out first.

    Differences from the paper: none in the score.

    Source: Wu et al., Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences of Text-to-Image
    Synthesis, 2023, arXiv 2306.09341.
    """
    vision.clip(model, where=WHERE), vision.tokenizer(tokenizer or model, where=WHERE)
    return told(hps, partial(pixels, model=model, tokenizer=tokenizer), prompts, candidates)


def pixels(images: Tensor, prompts: list[Prompt], *, model: str = MODEL, tokenizer: str = WORDS) -> Tensor:
    """The same `[b]` of images `[b,c,h,w]` in [-1, 1], differentiable."""
    captions = [prompt.messages[-1].content for prompt in prompts]
    return vision.cosine(images, captions, model, tokenizer, where=WHERE)
