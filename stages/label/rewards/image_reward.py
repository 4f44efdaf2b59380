"""ImageReward: a BLIP that reads the caption while looking at the image, trained on people's rankings."""

from functools import partial

import torch
from torch import Tensor

from stages.label.rewards import _vision as vision
from stages.label.rewards._pixels import told
from stages.parts import part
from stages.records import Candidate, Prompt

WHERE = "reward image_reward model"
MODEL = "models/image-reward"
HEAD = "reward_head.safetensors"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of its scores on the authors' data
TOKENS = 35  # of a caption; the rest is cut


@part(paper="arXiv 2304.05977", equation="1", range=(-5.0, 5.0), families=("image",))
def image_reward(prompts: list[Prompt], candidates: list[Candidate], *, model: str = MODEL) -> list[float | None]:
    """A head of linear layers on the caption's first token, which has attended to the image, standardised.

        r = (MLP(BLIP(c, x)[CLS]) - 0.1672) / 1.0333        P(x is preferred to y) = sigmoid(1.0333 * (r(x) - r(y)))

    A panel's scale divides by 10: with `temperature: 0.0968` (0.1 / 1.0333) a panel of this reward alone gives the
    model's own probabilities.

    Args:
        prompts: the last message is the caption.
        candidates: images.
        model: a folder that holds config.json and model.safetensors of transformers' BlipForImageTextRetrieval (of
            which the image encoder and the text encoder are used), its tokenizer, and `reward_head.safetensors` with
            the tensors `layers.<n>.weight` and `layers.<n>.bias` of the head (768, 1024, 128, 64, 16, 1). The authors
            publish one pickle, which is not read: transformers' conversion of BLIP's names makes such a folder of it
            (`blip.visual_encoder.*` and `blip.text_encoder.*` become the model, `mlp.layers.*` the head). No such
            folder is published under a known name, so the default is a local one; a hub id of the same layout will do.

    Returns:
        A number in [-5, 5] each (mean 0, spread 1 on the authors' data), None where there is no image.

    Raises:
        UserError: the model cannot be had; also where there is no candidate at all, so that one can find out first.

    Differences from the paper: the bounds.

    Source: Xu et al., ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation, NeurIPS
    2023, arXiv 2304.05977.
    """
    vision.blip(model, where=WHERE), vision.tokenizer(model, where=WHERE), vision.head(model, HEAD, where=WHERE)
    return told(image_reward, partial(pixels, model=model), prompts, candidates)


def pixels(images: Tensor, prompts: list[Prompt], *, model: str = MODEL) -> Tensor:
    """The same `[b]` of images `[b,c,h,w]` in [-1, 1], differentiable and without the bounds."""
    blip, words = vision.blip(model, where=WHERE).to(images.device), vision.tokenizer(model, where=WHERE)
    captions = [prompt.messages[-1].content for prompt in prompts]
    read = words(captions, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt").to(images.device)
    seen = vision.looked_at(images.float(), blip.config.vision_config.image_size)
    patches = blip.vision_model(pixel_values=seen).last_hidden_state  # [b,p,d]
    said = blip.text_encoder(
        input_ids=read["input_ids"],
        attention_mask=read["attention_mask"],
        encoder_hidden_states=patches,
        encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=images.device),
    ).last_hidden_state[:, 0]  # [b,d]
    return (vision.judged(said, vision.head(model, HEAD, where=WHERE), where=WHERE) - MEAN) / STD
