"""params.yaml (YAML 1.2) to frozen typed configs. Unknown keys are errors that name the line and the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from stages import parts
from stages.errors import UserError, nearest

PARAMS = Path("params.yaml")


class Config(BaseModel):
    """A frozen node of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnyConfig = TypeVar("AnyConfig", bound=Config)


class Choice(Config):
    """A chosen part: its name and its settings, checked against the part's signature when it is found."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    def part(self, kind: str, where: str) -> tuple[parts.Part, dict[str, Any]]:
        """The part and its settings, defaults filled in.

        Raises:
            UserError: no such part, or a setting it does not take.
        """
        found = parts.find(kind, self.name, where=f"{PARAMS} {where}.name")
        return found, parts.check(found, self.model_extra or {}, where=f"{PARAMS} {where}")


class Run(Config):
    """What the whole run shares."""

    family: Literal["text", "image"] = "text"
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    policy: dict[str, Any] = Field(default_factory=dict)  # the family's own settings: see stages/policies/family.py

    def place(self) -> tuple[str, Any]:
        """Device and number format: what was asked for, else the best that is there.

        Raises:
            UserError: the device asked for is not there.
        """
        import torch

        here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        device = next(name for name, there in here.items() if there) if self.device == "auto" else self.device
        if not here[device]:
            raise UserError(f"no {device} device here", where=f"{PARAMS} run.device", mend="use auto or cpu")
        dtype = ("bfloat16" if device == "cuda" else "float32") if self.dtype == "auto" else self.dtype
        return device, getattr(torch, dtype)


class Training(Config):
    """Settings of the training loop, under the names of Hugging Face's trainers."""

    num_train_epochs: Annotated[int, Field(ge=0)] = 1
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = 4  # examples that share one forward pass
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    lora_r: Annotated[int, Field(ge=0)] = 8  # rank of the adapter; 0 trains all weights
    save_steps: Annotated[int, Field(ge=1)] = 10  # a kill loses at most these many steps


def read_params(file: Path = PARAMS) -> Any:
    """The whole of params.yaml, with the line of every key.

    Raises:
        UserError: no file, or not YAML.
    """
    try:
        return YAML().load(file.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError("no such file", where=str(file), mend="run from the folder that holds dvc.yaml") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"not YAML: {error.problem}", where=f"{file}:{line}", mend="mend the line") from None


def load(schema: type[AnyConfig], file: Path = PARAMS) -> AnyConfig:
    """Read the nodes of params.yaml that a stage's config names as its fields.

    Raises:
        UserError: naming line, key and, for an unknown key, the nearest known one.
    """
    params = read_params(file)
    try:
        return schema.model_validate({name: _plain(params[name]) for name in schema.model_fields if name in params})
    except ValidationError as error:
        raise _user_error(error, schema, params, file) from None


def _plain(node: Any) -> Any:
    """Ruamel's containers as plain ones."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list) else node


def _user_error(error: ValidationError, schema: type[Config], params: Any, file: Path) -> UserError:
    """The first fault, with the line it stands on and what to write instead."""
    first = error.errors()[0]
    path = [part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    node: Any = params
    line = 1
    for key in path:
        if isinstance(node, dict) and key in node:
            line = node.lc.key(key)[0] + 1  # type: ignore[attr-defined]  # ruamel's containers know their lines
        elif isinstance(node, list) and isinstance(key, int) and key < len(node):
            line = node.lc.item(key)[0] + 1  # type: ignore[attr-defined]
        else:
            break
        node = node[key]
    where = f"{file}:{line} {'.'.join(map(str, path))}"
    if first["type"] == "extra_forbidden":
        return UserError("unknown key", where=where, mend=nearest(str(path[-1]), _known(schema, path[:-1])))
    if first["type"] == "missing":
        return UserError("missing", where=where, mend="add it")
    return UserError(f"{first['input']!r}: {first['msg']}", where=where, mend="correct the value")


def _known(schema: Any, path: list[Any]) -> list[str]:
    """Field names of the node that a path leads to."""
    for key in path:
        field = getattr(schema, "model_fields", {}).get(key)
        schema = field.annotation if field else getattr(schema, "__args__", [schema])[-1]
    return list(getattr(schema, "model_fields", {"(any)": 0}))
