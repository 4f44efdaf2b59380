"""Tiny real CLIP and BLIP models, with tokenizers and heads, built in code."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CLIP_WIDTH = 24  # of its embeddings
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LOOKS = {**WIDTHS, "image_size": 16, "patch_size": 8, "initializer_range": 0.3, "initializer_factor": 8.0}


def clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a two-layer CLIP of about 50,000 weights whose tokenizer knows bytes, in another order for an odd seed."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=bool(seed % 2))
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    words = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    words.save_pretrained(folder)
    end = len(tokens) - 1
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        max_position_embeddings=77,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
        **WIDTHS,
    )
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=CLIPVisionConfig(**LOOKS).to_dict(), projection_dim=CLIP_WIDTH
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    return folder


def blip(folder: Path, *, seed: int = 0) -> Path:
    """Write a two-layer BLIP with its tokenizer and a head on its text features."""
    from tokenizers import pre_tokenizers
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipTextConfig, BlipVisionConfig

    letters = [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c.isascii()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(folder)
    text = BlipTextConfig(vocab_size=len(tokens), max_position_embeddings=64, encoder_hidden_size=32, **WIDTHS)
    config = BlipConfig(text_config=text.to_dict(), vision_config=BlipVisionConfig(**LOOKS).to_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BlipForImageTextRetrieval(config).save_pretrained(folder)
    head(folder / "reward_head.safetensors", (32, 8, 4, 1), seed=seed)
    return folder


def head(file: Path, widths: tuple[int, ...], *, seed: int = 0, prefix: str = "layers.") -> Path:
    """Write a chain of linear layers as the published heads are named: even numbers, dropout between them."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for i, (enter, leave) in enumerate(zip(widths, widths[1:])):
        tensors[f"{prefix}{2 * i}.weight"] = torch.randn(leave, enter, generator=random) / enter**0.5
        tensors[f"{prefix}{2 * i}.bias"] = torch.full((leave,), 0.5)
    save_file(tensors, file)
    return file


def pickled(folder: Path) -> Path:
    """Write a folder whose weights are a pickle."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    torch.save({}, folder / "pytorch_model.bin")
    return folder
