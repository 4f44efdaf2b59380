"""What a folder of weights must hold before anything reads it."""

from __future__ import annotations

from pathlib import Path

from stages.errors import UserError


def check_weights(folder: Path) -> None:
    """Refuse a folder without a model, or with weights that only a pickle could hold.

    Raises:
        UserError: naming the folder or the file.
    """
    if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        raise UserError(
            "holds no config.json and no adapter_config.json",
            where=str(folder),
            mend="name a save_pretrained folder or a PEFT adapter",
        )
    if not list(folder.glob("*.safetensors")):
        pickled = [f.name for f in folder.iterdir() if f.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}]
        what = f"holds only pickled weights ({pickled[0]}), which are never loaded" if pickled else "holds no weights"
        raise UserError(what, where=str(folder), mend="save the model as safetensors")
